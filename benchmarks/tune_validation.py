"""Does what ``lmcache tune`` predicts happen? Three workloads x three sizes on a real engine.

    python benchmarks/tune_validation.py [--quick] [--model FOLDER_OR_ID] [--disk] [--json FILE]

First the engine's costs are probed, then each workload is served from a cold start under a cpu tier
of a quarter, a half and all of what it uses. The sizes take turns request by request, with a
reference prefill between them that tells how far the machine's speed has moved since the probe.
Exit code 1 if a hit differs, or TTFT p50 or p90 is further off than 15 and 25 %; 3 if the machine
drifted. With SmolLM2 on two cores it takes 6 to 10 minutes; ``--quick`` takes one, and its times
say little.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from lmcache_cli.engines.measured_costs import probed_engine
from lmcache_cli.engines.start import start_engine
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.probe.engine import probe_engine
from lmcache_cli.probe.report import engine_tables
from lmcache_cli.tune.candidates import Prices, TierConfiguration
from lmcache_cli.tune.cost import probed_cost
from lmcache_cli.tune.report_sections import drift_text, point_row, point_table, validation_json
from lmcache_cli.tune.source import RequestSource, TuneOptions, made_source
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.validate import Tolerance, Validation, validate
from workloads import WORKLOAD_USES

WORKLOADS = ("long-context", "rag", "chat")
SHARES = (("1/4", 4), ("1/2", 2), ("all", 1))
_CHUNK = 64
_DISK_FLOOR = 32 << 20


def bench_options(workload: str, quick: bool, requests: int, seed: int) -> BenchOptions:
    """Prompts of 500 to 1,500 tokens; ``quick``: of 100 to 400."""
    small = dict(context_tokens="200", passage_tokens=64, system_tokens=64, rounds=2)
    full = dict(context_tokens="1000", passage_tokens=300, system_tokens=256, rounds=4)
    chosen: dict[str, Any] = small if quick else full
    knobs: dict[str, Any] = {
        "documents": 3,
        "questions": 4,
        "passages": 3,
        "corpus_passages": 4,
        "sessions": 3,
    }
    knobs |= chosen
    return BenchOptions(
        workloads=(workload,),
        engine="simulated",
        requests=requests,
        output_tokens=4,
        seed=seed,
        **{name: value for name, value in knobs.items() if name in WORKLOAD_USES[workload]},
    )


def stacks(study: Study, source: RequestSource, disk: bool) -> list[tuple[str, TierConfiguration]]:
    """Shares of the distinct chunks that the requests use; with ``disk``, all of them below."""
    used = study.references(_CHUNK).distinct * study.cost.chunk_bytes(_CHUNK)
    below = (("disk", max(4 * used, _DISK_FLOOR)),) if disk else ()
    return [
        (
            name,
            TierConfiguration(
                (("cpu", max(study.cost.chunk_bytes(_CHUNK), used // share)), *below), _CHUNK
            ),
        )
        for name, share in SHARES
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="default: the embedded SmolLM2-135M")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--disk", action="store_true", help="with a disk tier below the cpu tier")
    parser.add_argument("--requests", type=int, default=12, help="of each workload")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--probe-rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for disk tiers; default: a temporary one")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    console, began = Console(width=110), time.perf_counter()
    engine: Any = start_engine("transformers", asked.model, "cpu", "auto")
    found: dict[str, Validation] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        folder = Path(made)
        sources = {
            name: made_source(
                TuneOptions(source=name, chunk_tokens=str(_CHUNK)),
                bench_options(name, asked.quick, asked.requests, asked.seed),
                engine.encode,
                engine.bos,
            )
            for name in WORKLOADS
        }
        longest = max(int(source.arrays.input_tokens.max()) for source in sources.values())
        probe = probe_engine(engine, folder, longest + 1, asked.probe_rounds)
        for shown in engine_tables(probe):
            console.print(shown)
        probed = probed_engine(json.loads(json.dumps(asdict(probe))), "probed just now")
        print(f"probed in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        for name, source in sources.items():
            study = Study(source.arrays, probed_cost(probed), Prices(), clients=1)
            found[name] = validate(
                study,
                source,
                engine,
                stacks(study, source, asked.disk),
                tolerance=Tolerance(),
                folder=folder,
                repeats=asked.repeats,
                prefill_points=probed.prefill_points,
            )
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    engine.close()
    table = point_table("workload")
    for name, validation in found.items():
        for point in validation.points:
            table.add_row(name, *point_row(point, validation))
    console.print(table)
    for name, validation in found.items():
        drift = drift_text(validation.drift) if validation.drift is not None else ""
        console.print(f"{name}: {validation.verdict}; {drift}", highlight=False)
        for warning in validation.warnings:
            console.print(f"{name}: warning: {warning}", highlight=False)
    if asked.json is not None:
        document = {name: validation_json(validation) for name, validation in found.items()}
        asked.json.write_text(json.dumps(document, indent=1) + "\n")
    codes = [validation.exit_code for validation in found.values()]
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
