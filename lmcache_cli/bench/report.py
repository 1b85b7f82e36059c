"""Runs a plan, writes the run file, prints what came out."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from cache_core.memory_limits import tightest_limit
from lmcache_cli.bench.budget import Pace, cell_seconds, fit_plan
from lmcache_cli.bench.cells import BenchPlan, Cell, Refusals, groups_that_fit
from lmcache_cli.bench.measure import Measured, measure_cells
from lmcache_cli.bench.preflight import check_places
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.bench.requests import engine_requests
from lmcache_cli.bench.resume import (
    INTERRUPTED,
    Interrupted,
    digest,
    missing,
    progress_of,
    undisturbed,
)
from lmcache_cli.engines.engine import Engine
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NOT_WRITTEN, UserError
from lmcache_cli.machine import CpuMeter, commit, machine, versions
from lmcache_cli.modes.blend import verified
from lmcache_cli.output import check_output, write_output
from reports.bench_json import bench_json, csv_text, json_text
from reports.run_file import RunFileError, write_run
from reports.sample import Sample
from reports.summary import BASES, CellSummary, RefusedCell, TierWork, summarise
from reports.tables.layout import bench_tables
from workloads import seen_before, warming

_SHARED = 0.1
"""The share of the cores that others may have before the table says so."""
# Of the memory that is free when the model is loaded, what tiers may take.
_TIER_SHARE = 0.7


def run_and_report(
    plan: BenchPlan,
    out: Path,
    json_file: str | None,
    csv_file: str | None,
    quiet: bool,
    resume: Path | None = None,
) -> int:
    """Measures, writes ``out/bench-TIME.parquet``, prints tables (or JSON or CSV) to stdout.
    Returns the exit code. Ctrl-C and SIGTERM keep what was measured; ``resume`` is the run file
    that they left, which is finished and replaced. What can't be written is said on stderr, after
    the tables."""
    talk = Console(stderr=True, quiet=quiet)
    began = time.monotonic()
    pace = Pace()
    budget: dict[str, Any] | None = None
    check_folder(out)
    if json_file == csv_file == "-":
        raise UserError("--json - and --csv - would both take stdout; give one a FILE")
    check_output(json_file)
    check_output(csv_file, "--csv")
    started = datetime.now(UTC)
    earlier = None if resume is None else Interrupted.read(resume)
    measured = Measured()
    if earlier is not None:
        known = {"config": plan.config(), "machine": machine(), "versions": versions()}
        earlier.refuse_other(known)
        measured = earlier.measured()
        talk.print(earlier.kept_text(len(measured.samples)), highlight=False, soft_wrap=True)
        budget = earlier.meta.get("time_budget")
    kept = len(measured.samples)

    def say(text: str) -> None:
        if text in measured.warnings:
            return
        measured.warn(text)
        if len(refusals.found) < len(plan.cells):  # of the last one the command's error tells
            talk.print(text, style="yellow", highlight=False)

    refusals = Refusals(say)
    interrupted = False
    stopped: UserError | None = None
    engine_facts: dict[str, object] = {}
    notes: list[str] = []
    with BenchProgress(Console(stderr=True), quiet) as progress:
        try:
            check_places(plan)
            progress.phase(f"loading engine {plan.options.engine}")
            options = plan.options
            serving = plan.serving(out, progress.phase)
            engine = start_engine(
                options.engine,
                options.model,
                options.device,
                options.dtype,
                serving,
                options.jitter,
                options.probe,
                options.hardware,
            )
            engine_facts = engine.facts()
            if options.engine in ("transformers", "vllm"):
                measured.meter = CpuMeter(children=options.engine == "vllm")
            try:
                if plan.options.time_budget is not None and earlier is None:
                    progress.phase("measuring how fast it is")
                    sized = fit_plan(plan, engine, out, began)
                    plan, pace, budget = sized.plan, sized.pace, sized.to_json()
                    measured.heading.append(sized.text())
                    progress.tell(sized.text())
                plan = verified(plan, engine, notes.append, measured.warn, refusals)
                _measure_all(
                    plan, engine, measured, progress, notes.append, earlier, refusals, pace
                )
                if not measured.samples:
                    refusals.raise_first()
                measured.complete = True
            finally:
                engine.close()
                if plan.scratch is not None:
                    shutil.rmtree(plan.scratch, ignore_errors=True)
        except KeyboardInterrupt:
            interrupted = True
            measured.warn(INTERRUPTED)
        except UserError as error:
            if len(measured.samples) == kept:
                raise
            stopped = error
            measured.warn(f"void: {error}")
    if not measured.samples:
        return EXIT_INTERRUPTED
    busy = measured.busy()
    if busy is not None and busy["other_cores"] >= _SHARED * busy["cores"]:
        measured.head(
            f"busy machine: others had {busy['other_cores']:.1f} of {busy['cores']} cores meanwhile"
            f" (at most {busy['other_cores_max']:.1f}; load {busy['load']:.1f} at the start): read"
            " ratios, not times, and run it again when the machine is free"
        )
    unwritten: list[str] = []
    with undisturbed():
        names = str(engine_facts["engine"]), str(engine_facts["model"])
        cells = summaries(plan, measured, *names)
        refused = [
            RefusedCell(each.cell.meta(plan.scenarios[each.cell.scenario], *names), each.reason)
            for each in refusals.found.values()
        ]
        meta = _run_meta(plan, measured, cells, engine_facts, started, earlier)
        meta["busy"] = busy
        meta["time_budget"] = budget
        meta["refused"] = [cell.to_json() for cell in refused]
        path = out / f"bench-{started:%Y%m%dT%H%M%S%f}.parquet"
        if earlier is not None and stopped is None:
            path = earlier.path
        if interrupted:
            meta["progress"] = progress_of(measured)
        try:
            write_run(path, measured.samples, meta)
        except RunFileError as error:
            unwritten.append(f"--out: {error}")
    if stopped is not None:
        for line in unwritten or [f"run file of what was measured: {path}"]:
            talk.print(line, highlight=False)
        raise stopped
    if "-" not in (json_file, csv_file):
        for text in measured.heading:
            Console().print(text, style="yellow", highlight=False, markup=False)
        Console().print(bench_tables(cells, refused), crop=False)
    document = bench_json(
        cells,
        meta["machine"],
        meta["versions"],
        meta["config"],
        measured.warnings,
        measured.complete,
        refused,
        busy,
        meta["started"],
        meta["commit"],
        budget,
    )
    try:
        if json_file is not None:
            write_output(json_file, json_text(document))
        if csv_file is not None:
            write_output(csv_file, csv_text(cells), "--csv")
    except UserError as error:
        unwritten.append(str(error))
    for warning in (w for w in measured.warnings if w not in measured.heading):
        talk.print(f"warning: {warning}", style="yellow", highlight=False)
    for note in notes:
        talk.print(note, highlight=False)
    if unwritten:
        for line in unwritten:
            print(f"lmcache: {line}", file=sys.stderr)
        return EXIT_NOT_WRITTEN
    talk.print(f"run file: {path}", highlight=False)
    if interrupted:
        talk.print(f"to finish it: lmcache bench --resume {path}", highlight=False, soft_wrap=True)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if all(s.error for s in measured.samples) else refusals.exit_code


def _measure_all(
    plan: BenchPlan,
    engine: Engine,
    measured: Measured,
    progress: BenchProgress,
    note: Callable[[str], None],
    earlier: Interrupted | None,
    refusals: Refusals,
    pace: Pace,
) -> None:
    work = []
    for index, scenario in enumerate(plan.scenarios):
        progress.phase(f"making requests for {scenario.workload}")
        requests = engine_requests(scenario, plan.corpus, engine, measured.head, note)
        measured.requests.append(digest(requests))
        measured.any_position[index] = seen_before(requests)
        cells = [cell for cell in plan.cells if cell.scenario == index]
        for cell in cells:
            with refusals.of(cell):
                engine.tier_capacity(cell.spec)
        cells = [cell for cell in cells if cell not in refusals]
        if not cells:
            continue
        room = int(tightest_limit().free * _TIER_SHARE)
        if engine.name == "simulated":
            room = sys.maxsize
        if earlier is None:
            groups = groups_that_fit(cells, room, engine.session_bytes())
        else:
            groups = earlier.groups(cells)
        work += [(scenario, requests, group) for group in groups]
    if earlier is not None:
        earlier.refuse_other({"engine": engine.facts(), "requests": measured.requests})
    measured.groups = [[cell.index for cell in group] for _, _, group in work]
    repeats = plan.options.repeat
    turns = []
    for number, (scenario, requests, group) in enumerate(work):
        # The base cell stands in every group: its rounds must not share numbers.
        rounds = range(number * repeats, (number + 1) * repeats)
        for cells, those in missing(group, rounds, measured.finished):
            turns.append((scenario, requests, cells, those))
    progress.expect(
        sum(len(reqs) * len(cells) * len(those) for _, reqs, cells, those in turns),
        # A virtual clock tells nothing of what it takes, and may have a million requests to serve.
        None
        if engine.name == "simulated"
        else sum(
            cell_seconds(engine, cell, reqs, pace, warming(reqs) if scenario.warm else ())
            * len(those)
            for scenario, reqs, cells, those in turns
            for cell in cells
        ),
    )
    for scenario, requests, cells, rounds in turns:

        def label(cell: Cell, sample: Sample, workload: str = scenario.workload) -> None:
            took = 1.0 if engine.name == "simulated" else pace.took(cell, sample)
            progress.served(f"{workload} {cell.reuse}", sample, took)

        def warmed(cell: Cell, sample: Sample, workload: str = scenario.workload) -> None:
            took = 0.0 if engine.name == "simulated" else pace.took(cell, sample)
            progress.warmed(f"{workload} {cell.reuse}", sample, took)

        progress.phase(f"{scenario.workload}: warming up")
        warm = warming(requests) if scenario.warm else []
        measure_cells(
            engine,
            scenario,
            requests,
            cells,
            plan.load,
            rounds,
            measured,
            label,
            warm,
            refusals=refusals,
            on_warm=warmed,
        )


def check_folder(out: Path) -> None:
    """Makes the folder of run files. Raises ``UserError`` if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".lmcache-{time.time_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--out: {out} can't be written: {reason}; name another folder") from error


def summaries(plan: BenchPlan, measured: Measured, engine: str, model: str) -> list[CellSummary]:
    """Returns one summary per cell that was measured, in table order."""
    found = []
    for cell in plan.cells:
        mine = [s for s in measured.samples if s.cell == cell.index]
        if not mine:
            continue
        base = next(
            (c for c in plan.cells if c.scenario == cell.scenario and c.reuse in BASES), None
        )
        off = None
        if base is not None and base is not cell:
            off = [s for s in measured.samples if s.cell == base.index]
        meta = cell.meta(plan.scenarios[cell.scenario], engine, model)
        meta["command"] = plan.command(meta["workload"])
        meta["busy_s"] = measured.busy_of(cell.index)
        if (share := measured.any_position.get(cell.scenario)) is not None:
            meta["any_position"] = share
        meta["tier_work"] = _tier_work(measured, cell.index)
        if plan.load.concurrency is None:
            del meta["busy_s"]  # open loop: arrivals set the pace
        found.append(summarise(mine, off, meta))
    return found


def _tier_work(measured: Measured, cell: int) -> dict[str, TierWork]:
    size = measured.chunk_bytes.get(cell, 0)
    return {
        name: TierWork(
            promised_chunks=work.promised_chunks,
            delivered_chunks=work.read_chunks,
            read_bytes=work.read_chunks * size,
            read_s=work.read_s,
            written_bytes=work.written_chunks * size,
            write_s=work.write_s,
            evicted_chunks=work.evicted_chunks,
            failed_chunks=work.failures,
            dropped_chunks=work.dropped_chunks,
            suspensions=work.suspensions,
            troubles=measured.troubles.get(cell, {}).get(name, {}),
        )
        for name, work in measured.counters.get(cell, {}).items()
    }


def _run_meta(
    plan: BenchPlan,
    measured: Measured,
    cells: Sequence[CellSummary],
    engine: Mapping[str, object],
    started: datetime,
    earlier: Interrupted | None,
) -> dict[str, Any]:
    when: dict[str, Any] = {"started": started.isoformat()}
    if earlier is not None:
        resumed = [*earlier.meta.get("resumed", []), started.isoformat()]
        when = {"started": earlier.meta["started"], "resumed": resumed}
    return {
        "kind": "bench",
        **when,
        "complete": measured.complete,
        "command": sys.argv[1:],
        "config": plan.config(),
        "salt": plan.salt,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "engine": dict(engine),
        "cells": [dict(cell.meta) for cell in cells],
        "warnings": measured.warnings,
    }
