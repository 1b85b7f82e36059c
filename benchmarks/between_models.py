"""SmolLM2-135M's KV under a fine-tune of it: quality and time by the layers that are recomputed.

    python benchmarks/models/fine_tune.py FOLDER
    python benchmarks/between_models.py FOLDER [--prompts 16] [--facts 24] [--seed 1]

The prompts are the fine-tune's own task, of another seed than it was trained on: a document of
facts, which the base has prefilled, and a question behind it. Right is an answer that is the
expected JSON, token by token. KL is to the fine-tune's full prefill over its own answer, in nats.
TTFT is of computing alone, nothing is loaded; the sets take turns in an order drawn per prompt.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.fine_tune import task
from rich.console import Console
from rich.table import Table

from lmcache_cli.engines.transformers.cross_model.forward import prefill_over
from lmcache_cli.engines.transformers.cross_model.layers import layer_groups
from lmcache_cli.engines.transformers.cross_model.quality_by_layer import SharedPrompt
from lmcache_cli.engines.transformers.engine import TransformersEngine
from reports.quality import Quality, pooled
from workloads import Request

SETS = "none,0,0-1,10%,25%,50%,75%,all,15-29"
_ANSWER = 24


def greedy(prompt: SharedPrompt, first: torch.Tensor, end: int) -> list[int]:
    """The answer over ``prompt.work``, up to and without the token ``end``."""
    tokens, n = [int(first.argmax())], len(prompt.ids)
    with torch.inference_mode():
        while tokens[-1] != end and len(tokens) < _ANSWER:
            step = torch.tensor(tokens[-1:])
            hidden = prompt.runner.behind(step, prompt.work, n + len(tokens) - 1)
            tokens.append(int(prompt.runner.logits(hidden)[-1].argmax()))
    return [token for token in tokens if token != end]


def seconds(prompt: SharedPrompt, groups: tuple[range, ...]) -> float:
    """Of the fine-tune's own work until the first token's logits."""
    began = time.perf_counter()
    prefill_over(prompt.runner, prompt.ids, prompt.work, prompt.shared, groups, prompt.hidden)
    return time.perf_counter() - began


def main() -> None:
    """Measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the fine-tune")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--facts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sets", default=SETS)
    wanted = parser.parse_args()
    engine = TransformersEngine(str(wanted.folder))
    base = engine.shared_base("embedded")
    sets = {text: layer_groups(text, len(base.runner.layers)) for text in wanted.sets.split(",")}
    rng = random.Random(1_000_003 + wanted.seed)
    end = int(engine.loaded.tokenizer.eos_token_id)
    found: dict[str, list[tuple[Quality, bool, float, float]]] = {name: [] for name in sets}
    of_base, lengths = [], []
    for number in range(wanted.prompts):
        document, question, answer = task(rng, wanted.facts)
        shared = len(engine.encode(document))
        ids = np.array([*engine.encode(document), *engine.encode(question)], dtype=np.int32)
        request = Request(f"q{number}", "s", 0.0, ids, (), len(engine.encode(answer)))
        prompt = SharedPrompt(engine, base, request, shared)
        lengths.append(len(ids))
        of_base.append([prompt.base_quality])
        for name in rng.sample(list(sets), len(sets)):
            spent = seconds(prompt, sets[name])
            done = prompt.over_base(sets[name])
            right = greedy(prompt, done.logits, end) == list(engine.encode(answer))
            found[name].append((done.quality, right, spent, done.share))
    Console(width=100).print(table(found, of_base))
    print(f"n = {wanted.prompts} prompts of {np.mean(lengths):.0f} tokens on average")


def table(found: dict[str, list[tuple[Quality, bool, float, float]]], of_base: Any) -> Table:
    """A row for each set of layers, and one for the base in the fine-tune's place."""
    shown = Table("recomputed", "run %", "KL", "95 %", "top-1 %", "right", "TTFT ms", "speed-up")
    spent = {name: float(np.median([row[2] for row in rows])) for name, rows in found.items()}
    for name, rows in found.items():
        far = pooled([[row[0]] for row in rows])
        shown.add_row(
            name,
            f"{100 * np.mean([row[3] for row in rows]):.1f}",
            f"{far.kl:.4f}",
            f"{far.kl_low:.4f}-{far.kl_high:.4f}",
            f"{100 * (far.agreement or 0):.1f}",
            f"{sum(row[1] for row in rows)}/{len(rows)}",
            f"{1e3 * spent[name]:.0f}",
            f"{spent['all'] / spent[name]:.2f}x" if "all" in spent else "",
        )
    far = pooled(of_base)
    interval = f"{far.kl_low:.4f}-{far.kl_high:.4f}"
    agree = f"{100 * (far.agreement or 0):.1f}"
    shown.add_row("the base itself", "", f"{far.kl:.4f}", interval, agree, "", "", "")
    return shown


if __name__ == "__main__":
    main()
