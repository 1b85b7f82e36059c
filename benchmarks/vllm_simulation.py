"""Random histories through vLLM's own scheduler and the connector, without a model.

    python -m benchmarks.vllm_simulation --seeds 0:200

Each seed draws its settings (tiers, policies, slow and failing reads, async scheduling, preemption,
speculation, resets, new weights, aborts) and its traffic. Every token of KV that attention would
read is checked in every step, by what it leads to. The last line is ``seeds N, steps N, wrong N,
leaks N``; exit code 1 unless both are 0.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from benchmarks.vllm_sim.engine_config import set_environment
from benchmarks.vllm_sim.settings import Settings
from benchmarks.vllm_sim.simulation import Simulation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:200", metavar="A:B", help="from A up to B")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    given = parser.parse_args()
    first, _, last = given.seeds.partition(":")
    seeds = range(int(first), int(last or int(first) + 1))
    set_environment()
    steps = wrong = leaks = compared = 0
    began = time.monotonic()
    for seed in seeds:
        settings = Settings.drawn(seed)
        bad = ""
        try:
            simulation = Simulation(settings)
            try:
                result = simulation.run()
            finally:
                simulation.close()
        except Exception:  # noqa: BLE001 - a history that ends the engine is the worst that can happen
            wrong += 1
            print(f"seed {seed}: {settings}", traceback.format_exc(), sep="\n", flush=True)
            continue
        steps, compared = steps + result.steps, compared + result.compared
        wrong += len(result.wrong) + len(result.stuck)
        leaks += sum(result.leaks.values())
        if not result.good:
            bad = f" WRONG {result.wrong} STUCK {result.stuck} LEAKS {result.leaks}"
        if bad or given.verbose:
            print(f"seed {seed}: {result.steps} steps, {dict(result.counts)}{bad}", flush=True)
            if bad:
                print(f"  {settings}", flush=True)
    print(f"{compared} answers compared in {time.monotonic() - began:.0f} s")
    print(f"seeds {len(seeds)}, steps {steps}, wrong {wrong}, leaks {leaks}")
    return 0 if not wrong and not leaks else 1


if __name__ == "__main__":
    sys.exit(main())
