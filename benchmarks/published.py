"""Published times of KV reuse beside what ``lmcache tune``'s catalogue says, nothing fitted.

    python benchmarks/published.py [--efficiency 0.5] [--json FILE]

The published table (the LMCache project's first README, 2024): Llama-70B on A40, a document of
25,000 tokens, TTFT 28 s without reuse and 3.7 s with; RAG over 4 passages of 2,000 tokens, 13 s and
3.6 s. It names neither the number of GPUs nor where the KV lay, so ours is given for several. The
last columns turn the published times around: the share of the peak, and the rate of loading, that
they would take.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lmcache_cli.tune.catalogue import find_architecture, find_hardware
from lmcache_cli.tune.cost import EFFICIENCY_RANGE, RequestCost, catalogue_cost

MODEL, HARDWARE = "llama-2-70b", "a40"
DEVICES = (1, 2, 4)
QUESTION = 64
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Case:
    """``tokens`` are reused of the prompt; ``recomputed`` of them are computed again (blend)."""

    name: str
    tokens: int
    recomputed: float
    cold_s: float
    reused_s: float


CASES = (
    Case("25,000 tokens", 25_000, 0.0, 28.0, 3.7),
    Case("RAG 4 x 2,000", 8_000, 0.15, 13.0, 3.6),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds. ``cold_range``: at the ends of the efficiency that is assumed. ``reused_s`` by tier.
    ``published_efficiency`` and ``published_bytes_s`` are what the published times would take."""

    case: str
    devices: int
    fits: bool
    cold_s: float
    cold_range_s: tuple[float, float]
    published_cold_s: float
    reused_s: dict[str, float]
    published_reused_s: float
    published_efficiency: float
    published_bytes_s: float | None


def cost_of(devices: int, efficiency: float) -> RequestCost:
    return catalogue_cost(
        find_hardware(HARDWARE), find_architecture(MODEL), devices=devices, efficiency=efficiency
    )


def row(case: Case, devices: int, efficiency: float) -> Row:
    cost = cost_of(devices, efficiency)
    prompt = case.tokens + QUESTION
    cold = cost.prefill.seconds(prompt)
    ends = [cost_of(devices, share).prefill.seconds(prompt) for share in EFFICIENCY_RANGE]
    # Recomputed tokens attend to all of the prompt, as the question does.
    again = round(case.recomputed * case.tokens)
    compute = cost.prefill.seconds(again + QUESTION, case.tokens - again)
    reused = {
        tier: cost.load_s(tier, case.tokens, CHUNK) + compute for tier in ("cpu", "disk", "remote")
    }
    left = case.reused_s - compute
    work = (cold - cost.prefill.a) * efficiency  # seconds at the whole peak
    return Row(
        case.name,
        devices,
        cost.device is not None and cost.device.nbytes > 0,
        cold,
        (min(ends), max(ends)),
        case.cold_s,
        reused,
        case.reused_s,
        work / case.cold_s,
        case.tokens * cost.token_bytes / left if left > 0 else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--efficiency", type=float, default=0.5, help="of the peak, in prefill")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = [row(case, n, asked.efficiency) for case in CASES for n in DEVICES]
    table = Table(
        title=f"{MODEL} on {HARDWARE}: TTFT in s, ours from data sheets / published",
        title_justify="left",
    )
    for name in (
        "case", "GPUs", "weights fit", "cold", "reused: cpu", "disk", "remote",
        "published takes: of peak", "load GB/s",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "case" else "right")
    for one in rows:
        low, high = one.cold_range_s
        rate = one.published_bytes_s
        table.add_row(
            one.case,
            str(one.devices),
            "yes" if one.fits else "no",
            f"{one.cold_s:.1f} ({low:.0f}-{high:.0f}) / {one.published_cold_s:.0f}",
            *(f"{seconds:.2f} / {one.published_reused_s}" for seconds in one.reused_s.values()),
            f"{100 * one.published_efficiency:.0f} %",
            "none left" if rate is None else f"{rate / 1e9:.1f}",
        )
    console = Console(width=140)
    console.print(table)
    for note in cost_of(DEVICES[-1], asked.efficiency).notes:
        console.print(f"· {note}", highlight=False)
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
