"""Finds, for ``compare --history``, after which run a metric changed last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lmcache_cli.check.run import CheckOutputs
from lmcache_cli.check.side import Judgement
from lmcache_cli.check.stored_runs import ComparedRun, read_runs, refuse_unlike_runs
from lmcache_cli.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_NOT_WRITTEN, UserError
from lmcache_cli.output import write_output
from reports.bench_json import json_text
from reports.verdict.levels import LEAST_RUNS, newest_change
from reports.verdict.rule import Rule

HISTORY_SCHEMA = "lmcache.history/1"


KNOWN = "known-changes.txt"
"""The file in a history's folder that acknowledges changes: on each line the name of a run file, a
commit or a version, a metric if not all are meant, and after ``#`` why."""
_NEAR = 3


@dataclass(frozen=True, slots=True)
class Change:
    """``metric`` of ``cell`` has a new level from ``run`` on, the ``index``-th on its hardware:
    ``before`` and ``after`` are the levels, ``change`` is a share (or a difference of shares), and
    ``chance`` how often noise alone makes a step as large. ``seen``: runs before it were at that
    level already, so that it may be a machine with two states. ``regression``: beyond the rule's
    limit, not ``seen`` and not ``acknowledged``; ``undecided``: but for ``seen`` it would be."""

    cell: str
    metric: str
    hardware: str
    run: str
    version: str
    commit: str
    index: int
    before: float
    after: float
    change: float
    unit: str
    chance: float
    acknowledged: bool
    seen: bool
    regression: bool
    undecided: bool


def run_history(folder: Path, judgement: Judgement, outputs: CheckOutputs, quiet: bool) -> int:
    """Prints the newest change of level of each metric. Returns 1 if one is a regression, 3 if one
    may be, or with fewer than six runs on every hardware. Raises ``UserError`` for a folder that
    can't be read, or runs on one hardware that are not alike."""
    outputs.check()
    if outputs.junit or outputs.markdown or outputs.github or outputs.comment:
        raise UserError("--history: writes a table and --json only")
    if not folder.is_dir():
        raise UserError(f"--history: {folder} is no folder; give one of run files")
    # Files without a time are ordered by name, and those come first.
    warnings: list[str] = []
    read = read_runs(str(folder), "--history", warnings)
    runs = sorted(read, key=lambda run: (run.when, run.path.name))
    known = _acknowledged(folder / KNOWN)
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(run.facts.get("hardware", ""), []).append(run)
    everywhere = {name for run in runs for name in run.facts}
    for group in groups.values():
        elsewhere = everywhere - {name for run in group for name in run.facts}
        allowed = [name for name in judgement.allowed if name not in elsewhere]
        refuse_unlike_runs(group[:1], group[1:], allowed, warnings)
    if len(groups) > 1:
        counts = ", ".join(f"{name or 'unknown'} ({len(g)} runs)" for name, g in groups.items())
        warnings.append(f"runs of several machines, each judged alone: {counts}")
    found = [
        change
        for group in groups.values()
        for cell in dict.fromkeys(cell for run in group for cell in run.cells)
        for rule in judgement.rules
        if (change := newest_of(group, cell, rule, known)) is not None
    ]
    if outputs.json != "-":
        Console().print(_table(found) if found else f"{len(runs)} runs, no change of level")
    talk = Console(stderr=True, quiet=quiet)
    for warning in warnings:
        talk.print(
            f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )
    for change in (change for change in found if change.regression or change.undecided):
        name = change.commit or Path(change.run).name
        before = " as runs before it were, so it may be a machine that has two states"
        talk.print(
            f"{change.metric} is {_text(change)} since {Path(change.run).name}"
            f" (commit {change.commit or 'unknown'}){before if change.seen else ''}. If that is"
            f" meant, a line in {folder / KNOWN}: {name} {change.metric}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if outputs.json:
        document = {
            "schema": HISTORY_SCHEMA,
            "runs": [str(run.path) for run in runs],
            "warnings": warnings,
            "changes": [asdict(change) for change in found],
        }
        try:
            write_output(outputs.json, json_text(document))
        except UserError as error:
            error.exit_code = EXIT_NOT_WRITTEN
            raise
    undecided = 0 if judgement.inconclusive == "pass" else EXIT_INCONCLUSIVE
    if max(len(group) for group in groups.values()) < LEAST_RUNS:
        talk.print(f"{len(runs)} runs are too few to tell; {LEAST_RUNS} on one machine are needed")
        return undecided
    if any(change.regression for change in found):
        return EXIT_FAILED
    return undecided if any(change.undecided for change in found) else 0


def newest_of(
    runs: Sequence[ComparedRun], cell: str, rule: Rule, known: Sequence[Sequence[str]] = ()
) -> Change | None:
    """Returns the newest change of one metric in a cell, if there is any. A run of several rounds
    counts with their median; runs without the metric are left out. Changes in ``known`` (first word
    a run, commit or version, the second a metric) are acknowledged; as noise hides where exactly a
    level begins, a run nearby will do."""
    measured = []
    for run in runs:
        values = [r.value(rule.metric) for r in run.cells.get(cell, [])]
        usable = [v for v in values if v is not None and (rule.points or v > 0)]
        if usable:
            measured.append((run, float(np.median(usable))))
    level = newest_change([rule.scaled(value) for _, value in measured])
    if level is None:
        return None
    change = rule.change(level.after - level.before)
    run, _ = measured[level.start]
    before, after = level.before, level.after
    near = [r for r, _ in measured[max(level.start - _NEAR, 0) : level.start + _NEAR]]
    acknowledged = any(
        (len(words) < 2 or words[1] == rule.metric)
        and any(
            words[0] in (each.path.name, each.facts.get("version"))
            or (len(words[0]) >= 7 and each.facts.get("commit", "").startswith(words[0]))
            for each in near
        )
        for words in known
    )
    worse = change < rule.limit if rule.falling else change > rule.limit
    return Change(
        cell,
        rule.metric,
        run.facts.get("hardware", ""),
        str(run.path),
        run.facts.get("version", ""),
        run.facts.get("commit", ""),
        level.start,
        before if rule.points else math.exp(before),
        after if rule.points else math.exp(after),
        change,
        "pp" if rule.points else "%",
        level.chance,
        acknowledged,
        level.seen,
        worse and not acknowledged and not level.seen,
        worse and not acknowledged and level.seen,
    )


def _acknowledged(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--history: {path} can't be read: {error}") from error
    return [words for line in lines if (words := line.partition("#")[0].split())]


def _said(change: Change) -> str:
    if change.regression:
        return "regression"
    return "seen before" if change.undecided else "known" if change.acknowledged else ""


def _text(change: Change) -> str:
    return f"{change.change * 100:+.1f} {change.unit}"


def _table(found: Sequence[Change]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("cell", "metric", "from run", "version", "commit", "change", ""):
        table.add_column(
            name,
            justify="right" if name == "change" else "left",
            no_wrap=name in ("metric", "change"),
            overflow="fold",
        )
    for change in found:
        table.add_row(
            change.cell,
            change.metric,
            Path(change.run).name,
            change.version,
            change.commit[:10],
            _text(change),
            _said(change),
            style="bold red" if change.regression else "",
        )
    return table
