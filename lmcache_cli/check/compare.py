"""Judges stored runs against stored runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lmcache_cli.check.foreign import NoRunError
from lmcache_cli.check.run import CheckOutputs, Judgement
from lmcache_cli.check.stored_runs import (
    ComparedRun,
    cells_of_loads,
    read_compared,
    refuse_unlike_runs,
    without_chance,
    without_copies,
)
from lmcache_cli.errors import UserError
from reports.run_file import CheckRecordError, read_among
from reports.verdict.round import Round
from reports.verdict.trial import Comparison, Trial

_FIXED = (
    "stored runs are judged once, and were not run in turns: a drift of the machine between them is"
    " in the change"
)


def run_compare(
    base: str,
    new: str,
    judgement: Judgement,
    allowed: Sequence[str],
    noise: float | None,
    outputs: CheckOutputs,
    quiet: bool,
) -> int:
    """Compares stored runs and writes the verdict. Returns the exit code. Raises ``UserError`` for
    runs that can't be read or are not alike."""
    outputs.check()
    if noise is not None and not 0 < noise < 1:
        raise UserError(f"--noise: {noise} is no share; write 0.05 for 5 %")
    warnings: list[str] = []
    before, after = read_runs(base, "BASE", warnings), read_runs(new, "NEW", warnings)
    before, after = cells_of_loads(before, after)
    warnings += refuse_unlike_runs(before, after, allowed)
    both, chance = without_chance([*before, *after])
    before, after = both[: len(before)], both[len(before) :]
    warnings += chance
    warnings += [w for run in (*before, *after) for w in run.warnings]
    warnings.append(_FIXED)
    comparisons = _pair(before, after, "cells" in allowed)
    strictness = judgement.counters
    trial = Trial(comparisons, judgement.rules, strictness, paired=False, noise=noise)
    sides = {
        name: {"runs": [str(run.path) for run in runs], "tool": runs[0].tool}
        for name, runs in (("baseline", before), ("candidate", after))
    }
    settings = {
        "fail_on": [str(rule) for rule in judgement.rules],
        "counters": judgement.counters,
        "noise": noise,
        "allow_different": list(allowed),
    }
    return outputs.write("compare", trial, sides, settings, warnings, True, quiet)


def read_runs(text: str, side: str, warnings: list[str]) -> list[ComparedRun]:
    """Reads a file, several with commas, or a folder of them, or of folders of them. What ``check``
    keeps is skipped where there are other files, and in a folder what is of no known tool or
    repeats other files, each with a line in ``warnings``. Raises ``UserError``."""
    paths: list[Path] = []
    listed: set[Path] = set()
    for part in filter(None, text.split(",")):
        path = Path(part)
        if path.is_dir():
            inside = _runs_in(path.iterdir()) or _runs_in(path.rglob("*"))
            listed.update(inside)
            paths += inside
        else:
            paths.append(path)
    if not paths:
        raise UserError(f"{side}: {text} holds no run; give run files or a folder of them")

    def skip(path: Path, error: Exception) -> str:
        return error.why if isinstance(error, NoRunError) and path in listed else ""

    try:
        found, skipped = read_among(paths, read_compared, skip)
    except CheckRecordError as error:
        raise UserError(str(error)) from error
    found, copies = without_copies(found)
    warnings += [warning for warning in (*skipped, *copies) if warning not in warnings]
    return found


def _runs_in(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix in (".parquet", ".json", ".jsonl"))


def _pair(
    before: Sequence[ComparedRun], after: Sequence[ComparedRun], lenient: bool
) -> list[Comparison]:
    """Pairs cells by their label, the rounds of all runs of a side together. If each side has one
    cell only, they are compared whatever they are called."""
    base, new = _merged(before), _merged(after)
    if len(base) == len(new) == 1:
        (label, rounds), (_, others) = *base.items(), *new.items()
        return [Comparison(label, rounds, others)]
    if base.keys() != new.keys() and not lenient:
        only = sorted(base.keys() ^ new.keys())
        raise UserError(
            f"the runs don't have the same cells: only one side has {', '.join(only)}; to compare"
            " the others: --allow-different cells"
        )
    shared = [label for label in base if label in new]
    if not shared:
        raise UserError("the runs have no cell in common")
    return [Comparison(label, base[label], new[label]) for label in shared]


def _merged(runs: Sequence[ComparedRun]) -> dict[str, list[Round]]:
    merged: dict[str, list[Round]] = {}
    for run in runs:
        for label, rounds in run.cells.items():
            merged.setdefault(label, []).extend(rounds)
    return merged
