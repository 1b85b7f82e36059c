"""Declares ``lmcache bench``: what does reuse give me?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.options.flags import Config, Json, Quiet, flag, flattened

EXAMPLES = (
    "Examples:  lmcache bench   |   lmcache bench rag --corpus docs/ --cpu-size 1GiB,4GiB"
    "   |   lmcache bench chat --engine simulated --chunk-tokens 16,64,256 --json -"
)


def _flags_of_run(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes an interrupted run's settings the command's defaults. Raises ``UserError`` for a file
    that is no such run."""
    if path is None or ctx.resilient_parsing:
        return path
    from lmcache_cli.bench.resume import Interrupted

    defaults = Interrupted.read(path).flags()
    ctx.default_map = {**(ctx.default_map or {}), **defaults, "out": str(path.parent)}
    return path


@flattened
def bench(
    options: BenchOptions,
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORKLOAD",
            help="Workloads: long-context, rag, chat, agent, random; or trace."
            " \\[default: long-context rag]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, flag("Folder for the run file.", metavar="FOLDER")] = Path("runs"),
    resume: Annotated[
        Path | None,
        flag(
            "Finish an interrupted run, with its flags and in its file.",
            metavar="RUN",
            is_eager=True,
            callback=_flags_of_run,
            show_default=False,
        ),
    ] = None,
    json: Json = None,
    csv: Annotated[
        str | None, flag("Write CSV; - for stdout.", metavar="FILE", show_default=False)
    ] = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Runs workloads through an engine with and without KV reuse, side by side, and prints TTFT,
    ITL, throughput, hit rates and the speed-up."""
    from lmcache_cli.bench.plan import make_plan
    from lmcache_cli.bench.report import run_and_report

    if workloads:
        options = replace(options, workloads=tuple(workloads))
    raise typer.Exit(run_and_report(make_plan(options, out), out, json, csv, quiet, resume))
