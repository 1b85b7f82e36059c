"""Whether reuse decays: hits and work of blend over novel prompts, by windows of 50.

python benchmarks/blend_decay.py [--prompts 500] [--pool 40] [--seed 1]

The model is tinyqa's, the documents are its task's. From a cold start each prompt is of six
documents of the pool, drawn and ordered anew, and none comes twice. Nothing is ever warmed but by
the prompts themselves.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.blend_answers import InTransformers, documents, prompt
from lmcache_cli.engines.cache_spec import BlendSettings
from tests.models.tinyqa_task import questions

COUNT, WINDOW = 6, 50


def main() -> None:
    """Prints a row for each window."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--pool", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    rng = random.Random(wanted.seed)
    asked = questions(wanted.seed, wanted.pool, COUNT, ("cross",))
    pool = documents(asked)[: wanted.pool]
    question = asked[0].ids[asked[0].starts[-1] :]
    engine = InTransformers(wanted.pool + 1)
    found, orders = list[tuple[float, float]](), set[tuple[int, ...]]()
    while len(found) < wanted.prompts:
        order = tuple(rng.sample(range(len(pool)), COUNT))
        if order in orders:
            continue
        orders.add(order)
        ids, starts = prompt([pool[place] for place in order], question)
        _, work = engine.ask(ids, starts, BlendSettings().ratio)
        found.append((engine.hits / len(ids), work))
    table = Table("prompts", "hit share", "work", title=f"tinyqa, pool of {len(pool)} documents")
    for first in range(0, len(found), WINDOW):
        hits, work = np.mean(found[first : first + WINDOW], axis=0)
        table.add_row(f"{first + 1}-{first + WINDOW}", f"{hits:.3f}", f"{work:.3f}")
    Console(width=100).print(table)
    engine.close()


if __name__ == "__main__":
    main()
