"""Random histories through vLLM's own scheduler and the connector, without a model.

    python -m benchmarks.vllm_simulation --seeds 0:200

Each seed draws its settings (tiers, policies, slow and failing reads, async scheduling, preemption,
speculation, resets, new weights, aborts) and its traffic. Every token of KV that attention would
read, and every state, is checked in every step, by what it leads to. ``--kinds`` are of what the
model's layers keep. The last line of each is ``seeds N, steps N, wrong N, leaks N``; exit code 1
unless both are 0.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterable
from functools import partial

from benchmarks.vllm_sim.engine_config import set_environment
from benchmarks.vllm_sim.layers import KINDS
from benchmarks.vllm_sim.settings import Settings
from benchmarks.vllm_sim.simulation import Result, Simulation, import_all


def simulated(kind: str, seed: int) -> tuple[Settings, Result]:
    """One seed's history. What ends the engine counts as wrong."""
    settings = Settings.drawn(seed, kind)
    try:
        with contextlib.closing(Simulation(settings)) as simulation:
            return settings, simulation.run()
    except Exception:  # noqa: BLE001 - a history that ends the engine is the worst that can happen
        return settings, Result(wrong=[traceback.format_exc()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:200", metavar="A:B", help="from A up to B")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=["full"], help="what the model's layers keep"
    )
    parser.add_argument("--processes", type=int, default=min(8, len(os.sched_getaffinity(0))))
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    given = parser.parse_args()
    first, _, last = given.seeds.partition(":")
    seeds = range(int(first), int(last or int(first) + 1))
    set_environment()
    import_all()
    wrong = 0
    # Importing vLLM takes longer than thousands of steps: once, before the processes part.
    with multiprocessing.get_context("fork").Pool(given.processes) as pool:
        for kind in given.kinds:
            histories = pool.imap(partial(simulated, kind), seeds)
            wrong += look_at(kind, len(seeds), histories, given.verbose)
    return 0 if not wrong else 1


def look_at(
    kind: str, count: int, histories: Iterable[tuple[Settings, Result]], verbose: bool
) -> int:
    """Prints what ``count`` histories came to. Returns what was wrong with them."""
    began = time.monotonic()
    total = Result()
    wrong = leaks = 0
    for settings, result in histories:
        total.steps, total.compared = total.steps + result.steps, total.compared + result.compared
        total.counts += result.counts
        wrong += len(result.wrong) + len(result.stuck)
        leaks += sum(result.leaks.values())
        said = f"seed {settings.seed}: {result.steps} steps, {dict(result.counts)}"
        if verbose or not result.good:
            print(said, flush=True)
        if not result.good:
            print(f"  STUCK {result.stuck} LEAKS {result.leaks} WRONG", *result.wrong)
            print(f"  {settings}", flush=True)
    print(
        f"{kind}: {total.compared} answers compared, {total.counts['loaded']} tokens loaded,"
        f" {total.counts['fetched']} chunks moved ahead, {total.counts['lost']} reads failed,"
        f" in {time.monotonic() - began:.0f} s"
    )
    print(f"seeds {count}, steps {total.steps}, wrong {wrong}, leaks {leaks}", flush=True)
    return wrong + leaks


if __name__ == "__main__":
    sys.exit(main())
