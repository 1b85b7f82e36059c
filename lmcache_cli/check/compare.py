"""Judges stored runs against stored runs."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_cli.check.run import CheckOutputs
from lmcache_cli.check.side import Judgement
from lmcache_cli.check.stored_runs import (
    ComparedRun,
    cells_of_loads,
    noise_of_history,
    read_runs,
    refuse_unlike_runs,
    without_chance,
)
from lmcache_cli.errors import UserError
from reports.verdict.round import Round
from reports.verdict.trial import Comparison, Trial

_FIXED = (
    "stored runs are judged once, and were not run in turns: what the machine did on a day is in"
    " all runs of that day, so they are one sample; give runs of several days a side, or --noise"
)


def run_compare(
    base: str,
    new: str,
    judgement: Judgement,
    outputs: CheckOutputs,
    quiet: bool,
) -> int:
    """Compares stored runs and writes the verdict. Returns the exit code. Raises ``UserError`` for
    runs that can't be read or are not alike."""
    outputs.check()
    warnings: list[str] = []
    allowed = judgement.allowed
    before, after = read_runs(base, "BASE", warnings), read_runs(new, "NEW", warnings)
    before, after = cells_of_loads(before, after)
    different = refuse_unlike_runs(before, after, allowed, warnings)
    both, chance = without_chance([*before, *after])
    before, after = both[: len(before)], both[len(before) :]
    warnings += chance
    warnings += [w for run in (*before, *after) for w in run.warnings]
    warnings.append(_FIXED)
    if undated := [str(run.path) for run in (*before, *after) if not run.when]:
        which = ", ".join(undated[:3]) + (
            "" if len(undated) <= 3 else f" and {len(undated) - 3} more"
        )
        warnings.append(f"no day told, so taken to be of a day of its own: {which}")
    noise = noise_of_history(judgement.noise, judgement.rules, before[0])
    comparisons = _pair(before, after, "cells" in allowed)
    strictness = judgement.counters
    trial = Trial(
        comparisons,
        judgement.rules,
        strictness,
        paired=False,
        noise=noise,
        optional=judgement.default,
    )
    sides = {
        name: {
            "runs": [str(run.path) for run in runs],
            "tool": runs[0].tool,
            "version": runs[0].facts.get("version"),
            "commit": runs[0].facts.get("commit"),
            "hardware": runs[0].facts.get("hardware"),
        }
        for name, runs in (("baseline", before), ("candidate", after))
    }
    settings = {
        "fail_on": [str(rule) for rule in judgement.rules],
        "counters": judgement.counters,
        "inconclusive": judgement.inconclusive,
        "noise": noise,
        "allow_different": list(allowed),
    }
    return outputs.write(
        "compare", trial, sides, settings, warnings, True, quiet, judgement, different
    )


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
