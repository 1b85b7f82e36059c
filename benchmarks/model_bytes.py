"""Prints what the models of the catalogue, and of any folders, keep of a prompt, in 16 bits.

    python benchmarks/model_bytes.py [FOLDER|config.json|ID ...]

Bytes of K and V (or of latents and an indexer's keys) a token: of layers that keep all, and of
layers that see only a span of it; states; what a hit needs; and the share of a tier's slots that
stays empty in chunks of 64 and of 256 tokens. It is the table of docs/models.md.
"""

from __future__ import annotations

import argparse

from cache_core.groups import balanced_groups, wasted
from lmcache_cli.engines.architecture import Architecture
from lmcache_cli.tune.catalogue import ARCHITECTURES, find_architecture
from reports.units import bytes_text

HIT_TOKENS = 32_000
CHUNKS = (64, 256)
HEADER = (
    "| model | layers that keep all, a span, a state | a token stays | a token in sight | span |"
    f" states | a hit of {HIT_TOKENS:,} | if all stayed | waste at {CHUNKS[0]} / {CHUNKS[1]} |"
)


def row(model: Architecture) -> str:
    """Returns the model's row of the table."""
    stays = sum(k.layers * k.token_bytes() for k in model.kept if k.keeps == "all")
    spans = [k for k in model.kept if k.span]
    seen = sum(k.layers * k.token_bytes() for k in spans)
    count = [
        sum(k.layers for k in model.kept if of(k.keeps))
        for of in ("all".__eq__, ("window", "local").__contains__, "state".__eq__)
    ]
    waste = []
    for chunk in CHUNKS:
        groups = balanced_groups(model.kept_layers(), chunk)
        waste.append(f"{100 * wasted(groups):.0f} % ({len(groups)})")
    states = model.state_bytes()
    whole = HIT_TOKENS * model.kv_bytes() + states
    cells = [
        model.name,
        ", ".join(map(str, count)),
        f"{stays:,}",
        f"{seen:,}" if spans else "",
        ", ".join(
            sorted({f"{k.span:,}" + (" local" if k.keeps == "local" else "") for k in spans})
        ),
        bytes_text(states) if states else "",
        bytes_text(model.hit_bytes(HIT_TOKENS)),
        bytes_text(whole) if spans else "",
        " / ".join(waste),
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    models = parser.parse_args().models
    print(HEADER)
    print("|---" * HEADER.count(" |") + "|")
    for model in [find_architecture(name) for name in models] or ARCHITECTURES.values():
        print(row(model))


if __name__ == "__main__":
    main()
