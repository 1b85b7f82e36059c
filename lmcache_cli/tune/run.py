"""Reads the trace, searches, reports."""

from __future__ import annotations

from rich.console import Console

from lmcache_cli.errors import UserError
from lmcache_cli.output import write_output
from lmcache_cli.sizes import parse_size
from lmcache_cli.tune.architectures import find_architecture
from lmcache_cli.tune.cost import catalogue_cost
from lmcache_cli.tune.hardware import find_hardware
from lmcache_cli.tune.options import TuneOptions
from lmcache_cli.tune.report import json_text, print_report
from lmcache_cli.tune.search import search
from lmcache_cli.tune.study import Study
from workloads.traces.arrays import load_arrays
from workloads.traces.lines import TraceError
from workloads.traces.trace import open_trace


def run_tune(options: TuneOptions, json_file: str | None, quiet: bool) -> int:
    """Prints the report (or JSON) and returns the exit code."""
    goal, prices = options.goal(), options.prices()
    if options.devices < 1:
        raise UserError(f"--devices: {options.devices} is too small; it must be at least 1")
    if not 0 < options.efficiency <= 1:
        raise UserError(f"--efficiency: {options.efficiency} must be above 0 and at most 1")
    if not options.speed_up > 0:
        raise UserError(f"--speed-up: {options.speed_up} must be above 0")
    cost = catalogue_cost(
        find_hardware(options.hardware),
        find_architecture(options.model),
        devices=options.devices,
        efficiency=options.efficiency,
        disk_bytes_s=float(parse_size(options.disk_bandwidth, "--disk-bandwidth")),
        overlap=options.overlap,
    )
    talk = Console(stderr=True, quiet=quiet)
    with talk.status("reading the trace") as status:
        try:
            trace = open_trace(options.path(), options.format)
            arrays = load_arrays(trace.requests())
        except TraceError as error:
            raise UserError(str(error)) from error
        if not arrays.chunk_tokens:
            raise UserError(
                f"{options.source}: a trace of lengths only ({trace.format}) does not say what"
                " prompts share, so no cache can be sized by it"
            )
        chunks = options.chunks(arrays.chunk_tokens)
        study = Study(arrays, cost, prices, options.speed_up)
        found = search(study, goal, chunks, options.worth, status.update)
    for example in trace.malformed.examples:
        talk.print(f"warning: {example}", style="yellow", highlight=False)
    if trace.malformed.count:
        talk.print(f"warning: {trace.malformed.count} lines were left out", style="yellow")
    if json_file is not None:
        text = json_text(study, found, chunks)
        write_output(json_file, text)
    if json_file != "-":
        print_report(Console(), study, found)
    return 0
