"""Declares ``lmcache tune``: how big should each tier be?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lmcache_cli.options.bench import BenchOptions, LoadFlags, WorkloadFlags
from lmcache_cli.options.flags import Json, Quiet, flattened
from lmcache_cli.options.tune import TuneFlags

EXAMPLES = (
    "Examples:  lmcache tune trace.jsonl --model llama-3.1-8b --hardware h100 --devices 2"
    " --slo ttft.p90=2s --max-cpu 512GiB   |   lmcache tune rag --probe runs/probe.json --validate"
)


@flattened
def tune(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A trace (see `lmcache trace info FILE`), or a workload of bench: long-context,"
            " rag, chat, agent, random.",
        ),
    ],
    flags: TuneFlags,
    workload: WorkloadFlags,
    load: LoadFlags,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Sizes storage by a trace or a workload: exact hits at every size, times from data sheets or a
    probe, the cheapest stack that keeps what you ask for. What it says is predicted; --validate
    measures it and exits with 1 if it was wrong."""
    from lmcache_cli.tune.run import run_tune
    from lmcache_cli.tune.source import TuneOptions

    bench = BenchOptions(engine="simulated", scale=flags.scale, **asdict(workload), **asdict(load))
    options = TuneOptions(source=source, bench=bench, **asdict(flags))
    raise typer.Exit(run_tune(options, json, quiet))
