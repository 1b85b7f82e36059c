"""The task of tinyqa in English on the embedded SmolLM2-135M: selections beside their work.

python benchmarks/blend_smollm2.py [--prompts 24] [--calibration 32] [--documents 6] [--seed 1]

Some documents say "they" for a person whom an earlier one introduced; every question needs both.
Right is where the likeliest next token starts the answer. KL is to a full prefill, at the
question's tokens, in nats.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.blend_rules.attention_guided import AttentionGuided
from benchmarks.blend_rules.calibrate import calibrate, kl
from benchmarks.blend_rules.known import Deviation, Rows, every, nothing, scattered
from benchmarks.blend_rules.offline import Offline
from benchmarks.blend_rules.reference import Reference, Reused, Selection
from lmcache_cli.engines.transformers.models import load_model

NAMES = ["Alice", "Bob", "Carol", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack"]
SAID = {
    "lives in the city of": ["Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Tokyo"],
    "likes the color": ["red", "blue", "green", "yellow", "black", "white", "purple"],
    "has a pet": ["cat", "dog", "horse", "rabbit", "snake", "fish", "turtle"],
    "works as a": ["nurse", "pilot", "farmer", "lawyer", "teacher", "judge", "chef"],
}
FILLER = [
    "The weather was calm that day.",
    "There is a market near the river.",
    "The road to the north was closed.",
    "A small garden lies behind the bridge.",
]
BASE = {"lives": "live", "likes": "like", "has": "have", "works": "work"}


def plural(said: str) -> str:
    """With the verb that "they" takes."""
    verb, _, rest = said.partition(" ")
    return f"{BASE[verb]} {rest}"


def prompt(rng: random.Random, documents: int) -> tuple[list[str], str]:
    """Texts of a prompt's segments, the question last, and the answer."""
    names = rng.sample(NAMES, documents // 2)
    texts: list[str] = []
    facts: list[tuple[str, str, str]] = []
    for name in names:
        head, tail = rng.sample(list(SAID), 2)
        own, other = rng.choice(SAID[head]), rng.choice(SAID[tail])
        filler = rng.sample(FILLER, 2)
        texts.append(f"This is about {name}. {name} {head} {own}. {filler[0]}\n\n")
        texts.append(f"{filler[1]} They also {plural(tail)} {other}. It is well known.\n\n")
        facts.append((name, tail, other))
    name, said, value = rng.choice(facts)
    return [*texts, f"As was said above, {name} {said}"], " " + value


def prompts(
    reference: Reference, loaded: Any, seed: int, count: int, documents: int
) -> list[tuple[Reused, int]]:
    """Prompts with their chunks' KV, and the first token of each answer."""
    rng = random.Random(seed)
    made: list[tuple[Reused, int]] = []
    for _ in range(count):
        texts, answer = prompt(rng, documents)
        ids, starts = [1], [0]
        for number, text in enumerate(texts):
            if number:
                starts.append(len(ids))
            ids += list(loaded.encode(text))
        made.append((reference.reuse(ids, starts, bos=1), int(loaded.encode(answer)[0])))
    return made


def table(
    reference: Reference, rules: dict[str, Selection], asked: Sequence[tuple[Reused, int]]
) -> Table:
    """Right answers, KL and work of each rule."""
    shown = Table("selection", "right", "KL", "work")
    shown.title = f"n = {len(asked)}, {sum(len(p.ids) for p, _ in asked) / len(asked):.0f} tokens"
    truth = [reference.blend(p, Rows(every), len(p.ids) - p.question) for p, _ in asked]
    for name, rule in rules.items():
        right, far, work = 0, 0.0, 0.0
        for (each, answer), full in zip(asked, truth, strict=True):
            done = reference.blend(each, rule, len(full.logits))
            right += int(done.logits[-1].argmax()) == answer
            far += kl(full.logits, done.logits) / len(asked)
            work += done.work / len(asked)
        shown.add_row(name, f"{right} ({right / len(asked):.2f})", f"{far:.4f}", f"{work:.3f}")
    return shown


def main() -> None:
    """Learns a profile, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    loaded = load_model(None, "cpu", "auto")
    reference = Reference(loaded.model)
    console = Console(width=100)
    known = prompts(reference, loaded, 1_000_003, wanted.calibration, wanted.documents)
    read, targets = (1, 4, 8, 12, 16, 20, 24, 28), (2, 6, 10, 14, 18, 22, 26, 29)
    found = calibrate(reference, loaded.id, [p for p, _ in known], read, 0.2, targets)
    far = ", ".join(f"layer {layer} {nats:.4f}" for layer, nats in found.kl.items())
    console.print(f"profile: target layer {found.profile.target}; KL by target: {far}")
    rules: dict[str, Selection] = {
        "full prefill": Rows(every),
        "naive reuse": Rows(nothing),
        "random 20 %": Rows(scattered(0.2, 0)),
    }
    for ratio in (0.15, 0.3):
        rules[f"top {ratio:.0%} at layer 1 (CacheBlend)"] = Deviation(1, ratio)
    for ratio in (0.1, 0.15, 0.2, 0.3):
        rules[f"offline {ratio:.0%}"] = Offline(found.profile, ratio, reference.rotate)
    for layer, ratio in ((1, 0.15), (3, 0.15), (6, 0.15)):
        rules[f"attention out of the chunk, layer {layer}, {ratio:.0%}"] = AttentionGuided(
            layer, ratio
        )
    asked = prompts(reference, loaded, wanted.seed, wanted.prompts, wanted.documents)
    console.print(table(reference, rules, asked))


if __name__ == "__main__":
    main()
