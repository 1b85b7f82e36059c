"""Runs a plan, writes the run file, prints what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from lmcache_cli.bench.cells import Cell, groups_that_fit
from lmcache_cli.bench.measure import Measured, measure
from lmcache_cli.bench.plan import Plan
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.engine import Engine
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError
from reports.sample import Sample
from workloads import CorpusError, Request, generate

# Of the memory that is free when the model is loaded, what tiers may take.
_TIER_SHARE = 0.7


def run_and_report(
    plan: Plan, out: Path, json_file: str | None, csv_file: str | None, quiet: bool
) -> int:
    """Measures, writes ``out/bench-TIME.parquet``, prints tables (or JSON or CSV) to stdout.
    Returns the exit code. Ctrl-C keeps what was measured."""
    talk = Console(stderr=True, quiet=quiet)
    _check_folder(out)
    started = datetime.now(UTC)
    measured = Measured()
    interrupted = False
    engine_facts: dict[str, object] = {}
    with BenchProgress(Console(stderr=True), quiet) as progress:
        try:
            progress.phase(f"loading engine {plan.options.engine}")
            options = plan.options
            engine = start_engine(options.engine, options.model, options.device, options.dtype)
            engine_facts = engine.facts()
            try:
                _measure_all(plan, engine, measured, progress)
                measured.complete = True
            finally:
                engine.close()
        except KeyboardInterrupt:
            interrupted = True
            measured.warn("interrupted: the tables show what was measured until then")
    if not measured.samples:
        return EXIT_INTERRUPTED
    path = out / f"bench-{started:%Y%m%dT%H%M%S%f}.parquet"
    meta = _meta(plan, measured, engine_facts, started)
    _print_all(plan, measured, meta, path, json_file, csv_file)
    for warning in measured.warnings:
        talk.print(f"warning: {warning}", style="yellow", highlight=False)
    talk.print(f"run file: {path}", highlight=False)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if all(s.error for s in measured.samples) else 0


def _measure_all(plan: Plan, engine: Engine, measured: Measured, progress: BenchProgress) -> None:
    work = []
    for index, scenario in enumerate(plan.scenarios):
        progress.phase(f"making requests for {scenario.workload}")
        requests = _requests(plan, engine, index)
        _refuse_too_long(engine, requests)
        cells = [cell for cell in plan.cells if cell.scenario == index]
        for cell in cells:
            engine.tier_capacity(cell.spec)
        room = int(psutil.virtual_memory().available * _TIER_SHARE)
        if engine.name == "simulated":
            room = sys.maxsize
        work += [(scenario, requests, group) for group in groups_that_fit(cells, room)]
    repeats = plan.options.repeat
    progress.expect(sum(len(reqs) * len(group) * repeats for _, reqs, group in work))
    for number, (scenario, requests, group) in enumerate(work):
        # The base cell stands in every group: its rounds must not share numbers.
        rounds = range(number * repeats, (number + 1) * repeats)

        def label(cell: Cell, sample: Sample, workload: str = scenario.workload) -> None:
            progress.served(f"{workload} {cell.reuse}", sample)

        progress.phase(f"{scenario.workload}: warming up")
        measure(engine, scenario, requests, group, plan.load, rounds, measured, label)


def _requests(plan: Plan, engine: Engine, index: int) -> list[Request]:
    scenario = plan.scenarios[index]
    try:
        return generate(
            scenario.workload, scenario.settings, plan.corpus, engine.encode, engine.bos
        )
    except (CorpusError, ValueError) as error:
        raise UserError(f"{scenario.workload}: {error}") from error


def _refuse_too_long(engine: Engine, requests: Sequence[Request]) -> None:
    longest = max(requests, key=lambda r: len(r.token_ids) + r.max_tokens)
    need = len(longest.token_ids) + longest.max_tokens
    if need > engine.max_context:
        raise UserError(
            f"request {longest.id} needs {need} tokens (prompt and output), but {engine.model}'s"
            f" context is {engine.max_context}; lower --context-tokens or use another --model"
        )


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".lmcache-{time.time_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--out: {out} can't be written: {reason}; name another folder") from error


def _meta(
    plan: Plan, measured: Measured, engine: dict[str, object], started: datetime
) -> dict[str, Any]:
    from lmcache_cli.machine import machine, versions

    cells = []
    for cell in plan.cells:
        facts = cell.facts(plan.scenarios[cell.scenario])
        facts |= {"engine": engine.get("engine"), "model": engine.get("model")}
        facts["busy_s"] = measured.busy_s.get(cell.index)
        facts["tier_counters"] = {
            name: asdict(counters)
            for name, counters in measured.counters.get(cell.index, {}).items()
        }
        cells.append(facts)
    return {
        "kind": "bench",
        "started": started.isoformat(),
        "complete": measured.complete,
        "command": sys.argv[1:],
        "config": plan.config(),
        "salt": plan.salt,
        "machine": machine(),
        "versions": versions(),
        "engine": engine,
        "cells": cells,
        "warnings": measured.warnings,
    }


def _print_all(
    plan: Plan,
    measured: Measured,
    meta: dict[str, Any],
    path: Path,
    json_file: str | None,
    csv_file: str | None,
) -> None:
    raise NotImplementedError
