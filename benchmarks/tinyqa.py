"""Accuracy of selections on tinyqa, the model and task of tests/models, beside their work.

python benchmarks/tinyqa.py [--prompts 300] [--documents 6,12] [--seed 1] [--kind cross]

Each document is encoded alone behind the BOS. Work is the share of token-layers run. Intervals are
Wilson's, 95 %. The profile is learnt from prompts of other seeds with 6 documents, without answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.blend_rules.attention_guided import AttentionGuided
from benchmarks.blend_rules.calibrate import calibrate
from benchmarks.blend_rules.known import Deviation, Rows, every, first, nothing, scattered
from benchmarks.blend_rules.offline import Offline, Profile
from benchmarks.blend_rules.reference import Reference, Reused, Selection
from tests.models.tinyqa_task import BOS, ID, Question, questions

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "tinyqa"
CALIBRATION_SEED = 1_000_003
KINDS = ("named", "local", "cross")


class Score(NamedTuple):
    """Right answers of `prompts`, and the mean share of token-layers run."""

    right: int
    prompts: int
    work: float

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        n, p, z = self.prompts, self.right / self.prompts, 1.96
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
        return middle - half, middle + half


def tinyqa() -> Reference:
    """The model of tests/models/tinyqa."""
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return Reference(model.eval())


def reused(reference: Reference, asked: Sequence[Question]) -> list[Reused]:
    """The prompts with the KV of their documents."""
    return [reference.reuse(q.ids, q.starts, BOS) for q in asked]


def learnt(reference: Reference, prompts: int = 400) -> tuple[Profile, dict[int, float]]:
    """A profile for a fifth of the rows, and the KL by target layer it was chosen by."""
    asked = questions(CALIBRATION_SEED, prompts, 6, KINDS)
    found = calibrate(reference, "tinyqa", reused(reference, asked), range(5), 0.2)
    return found.profile, found.kl


def oracle(prompt: Reused) -> torch.Tensor:
    """The word "they" and the value behind it, everywhere but in the first document."""
    ids = torch.tensor(prompt.ids)
    they = torch.nonzero(ids[: prompt.question] == ID["they"])[:, 0]
    they = they[they >= prompt.exact]
    return torch.cat([they, they + 1]).sort().values


def score(
    reference: Reference, rule: Selection, prompts: Sequence[Reused], asked: Sequence[Question]
) -> Score:
    """How often the likeliest next token is the answer."""
    right, work = 0, 0.0
    for prompt, question in zip(prompts, asked, strict=True):
        done = reference.blend(prompt, rule)
        right += int(done.logits[-1].argmax()) == question.answer
        work += done.work / len(asked)
    return Score(right, len(asked), work)


def rules(reference: Reference, profile: Profile) -> dict[str, Selection]:
    """Every row of the table."""
    known: dict[str, Selection] = {
        "full prefill": Rows(every),
        "naive reuse": Rows(nothing),
        "top 15 % at layer 1 (CacheBlend)": Deviation(1, 0.15),
        "top 30 % at layer 1": Deviation(1, 0.30),
        "top 50 % at layer 1": Deviation(1, 0.50),
        "top 15 % at layer 2": Deviation(2, 0.15),
        "top 5 % at layer 3": Deviation(3, 0.05),
        "first 15 % of each chunk (EPIC)": Rows(first(0.15)),
        "random 30 %": Rows(scattered(0.30, 0)),
        "oracle: they and their values": Rows(oracle),
    }
    ours: dict[str, Selection] = {
        f"offline {ratio:.0%}": Offline(profile, ratio, reference.rotate)
        for ratio in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    }
    guided: dict[str, Selection] = {
        f"attention out of the chunk, layer {layer}, {ratio:.0%}": AttentionGuided(layer, ratio)
        for layer, ratio in ((0, 0.2), (1, 0.1), (1, 0.15), (1, 0.2), (1, 0.25), (2, 0.1))
    }
    return known | ours | guided


def main() -> None:
    """Prints one table for each number of documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--documents", default="6,12")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, default="cross")
    wanted = parser.parse_args()
    reference = tinyqa()
    profile, distance = learnt(reference)
    console = Console(width=100)
    shown = ", ".join(f"layer {layer} {nats:.4f}" for layer, nats in distance.items())
    console.print(f"profile: target layer {profile.target}; KL in nats by target: {shown}")
    for documents in map(int, wanted.documents.split(",")):
        asked = questions(wanted.seed, wanted.prompts, documents, (wanted.kind,))
        prompts = reused(reference, asked)
        table = Table("selection", "accuracy", "95 %", "work")
        table.title = f"{documents} documents, {wanted.kind}, n = {len(asked)}, seed {wanted.seed}"
        for name, rule in rules(reference, profile).items():
            got = score(reference, rule, prompts, asked)
            low, high = got.interval
            table.add_row(
                name, f"{got.right / got.prompts:.3f}", f"{low:.3f}-{high:.3f}", f"{got.work:.3f}"
            )
        console.print(table)


if __name__ == "__main__":
    main()
