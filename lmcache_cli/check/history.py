"""Finds, for ``compare --history``, after which run a metric changed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lmcache_cli.check.compare import read_runs
from lmcache_cli.check.run import CheckOutputs, Judgement
from lmcache_cli.check.stored_runs import ComparedRun, refuse_unlike_runs
from lmcache_cli.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, MissingError, UserError
from lmcache_cli.output import write_output
from reports.bench_json import json_text
from reports.verdict.interval import LEAST_RUNS, change_points
from reports.verdict.rule import Rule

HISTORY_SCHEMA = "lmcache.history/1"


@dataclass(frozen=True, slots=True)
class Change:
    """``metric`` of ``cell`` has a new level from ``run`` on, the ``index``-th of the history:
    ``before`` and ``after`` are the levels, ``change`` is a share (or a difference of shares).
    ``regression``: beyond the rule's limit."""

    cell: str
    metric: str
    run: str
    version: str
    index: int
    before: float
    after: float
    change: float
    regression: bool


def run_history(
    folder: Path, judgement: Judgement, allowed: Sequence[str], outputs: CheckOutputs, quiet: bool
) -> int:
    """Prints every change of level. Returns 1 if one is a regression, 3 with fewer than six runs.
    Raises ``UserError`` for a folder that can't be read, or runs that are not alike."""
    outputs.check()
    if outputs.junit or outputs.markdown or outputs.github:
        raise UserError("--history: writes a table and --json only")
    if not folder.is_dir():
        raise UserError(f"--history: {folder} is no folder; give one of run files")
    try:
        import ruptures  # noqa: F401
    except ImportError as error:
        raise MissingError(
            f"--history needs the package {error.name}; run: pip install 'lmcache-bench[check]'"
        ) from error
    # Files without a time are ordered by name, and those come first.
    warnings: list[str] = []
    read = read_runs(str(folder), "--history", warnings)
    runs = sorted(read, key=lambda run: (run.when, run.path.name))
    warnings += refuse_unlike_runs(runs[:1], runs[1:], allowed)
    found = [
        change
        for cell in runs[0].cells
        for rule in judgement.rules
        for change in changes_of(runs, cell, rule)
    ]
    talk = Console(stderr=True, quiet=quiet)
    for warning in warnings:
        talk.print(
            f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )
    if outputs.json:
        document = {
            "schema": HISTORY_SCHEMA,
            "runs": [str(run.path) for run in runs],
            "warnings": warnings,
            "changes": [asdict(change) for change in found],
        }
        write_output(outputs.json, json_text(document))
    if outputs.json != "-":
        Console().print(_table(found) if found else f"{len(runs)} runs, no change of level")
    if len(runs) < LEAST_RUNS:
        talk.print(f"{len(runs)} runs are too few to tell; {LEAST_RUNS} are needed")
        return EXIT_INCONCLUSIVE
    return EXIT_FAILED if any(change.regression for change in found) else 0


def changes_of(runs: Sequence[ComparedRun], cell: str, rule: Rule) -> list[Change]:
    """Returns the changes of one metric in a cell. A run of several rounds counts with their
    median; runs without the metric are left out."""
    measured = []
    for run in runs:
        values = [r.value(rule.metric) for r in run.cells.get(cell, [])]
        usable = [v for v in values if v is not None and (rule.points or v > 0)]
        if usable:
            measured.append((run, float(np.median(usable))))
    scaled = [rule.scaled(value) for _, value in measured]
    bounds = [0, *change_points(scaled), len(scaled)]
    levels = [float(np.mean(scaled[a:b])) for a, b in itertools.pairwise(bounds) if a < b]
    found = []
    for i, (before, after) in enumerate(itertools.pairwise(levels)):
        change = rule.change(after - before)
        run, _ = measured[bounds[i + 1]]
        ends = (before, after) if rule.points else (math.exp(before), math.exp(after))
        worse = change < rule.limit if rule.falling else change > rule.limit
        found.append(
            Change(
                cell,
                rule.metric,
                str(run.path),
                run.facts.get("version", ""),
                bounds[i + 1],
                *ends,
                change,
                worse,
            )
        )
    return found


def _table(found: Sequence[Change]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("cell", "metric", "from run", "version", "change", ""):
        table.add_column(name, justify="right" if name == "change" else "left")
    for change in found:
        table.add_row(
            change.cell,
            change.metric,
            Path(change.run).name,
            change.version,
            f"{change.change * 100:+.1f}",
            "regression" if change.regression else "",
            style="bold red" if change.regression else "",
        )
    return table
