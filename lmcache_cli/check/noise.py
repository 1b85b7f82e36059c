"""Runs the baseline against itself, for ``check --calibrate``: how noisy is this machine, and how
many rounds does a verdict need?"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.check.run import CheckOutputs, CheckResult
from lmcache_cli.check.side import Budget, Judgement, Side
from lmcache_cli.errors import EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, UserError
from lmcache_cli.machine import machine
from lmcache_cli.output import write_output
from reports.bench_json import json_text
from reports.verdict.judge import Terms
from reports.verdict.looks import LAST_SHARE, SURE_ROUNDS, Looks, decide
from reports.verdict.round import measured_by_clock
from reports.verdict.rule import Rule
from reports.verdict.trial import Comparison

NOISE_SCHEMA = "lmcache.calibrate/1"
_REPLAYS = 1000
_LEAST = 5
_MOST_ROUNDS = 2000


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one metric in one cell. ``cv``: standard deviation of the rounds' log-ratios
    over sqrt 2, about the coefficient of variation of one side's round. ``bias`` is the mean ratio
    less 1, 0 but for chance. ``false_alarms``: share of resampled A/A checks of ``rounds`` rounds
    that FAIL, as a check looks. ``rounds_needed``: to find a change of twice the limit, and no
    fewer than a verdict needs that holds against noise that sticks."""

    cell: str
    metric: str
    rounds: int
    cv: float
    bias: float
    false_alarms: float
    rounds_needed: int | None


def run_calibrate(
    side: Side,
    judgement: Judgement,
    budget: Budget,
    seed: int,
    out: Path,
    outputs: CheckOutputs,
    quiet: bool,
) -> int:
    """Runs all rounds of the budget. Returns the exit code: 3 with too few rounds to tell."""
    outputs.check()
    if side.stored:
        raise UserError("--calibrate needs flags of bench as --baseline, not a run file")
    check = CheckResult(side, replace(side, name="candidate"), judgement, budget, seed, out, [], [])
    interrupted = False
    with BenchProgress(Console(stderr=True), quiet) as progress:
        try:
            check.measure(progress, until_spent=True)
        except KeyboardInterrupt:
            interrupted = True
    asked = [(c, rule) for c in check.comparisons for rule in judgement.rules]
    metrics = sum(measured_by_clock(rule.metric) for _, rule in asked)
    told = [noise_of(comparison, rule, metrics, seed) for comparison, rule in asked]
    found = [noise for noise in told if isinstance(noise, Noise)]
    if outputs.json:
        document = {
            "schema": NOISE_SCHEMA,
            "machine": machine(),
            "complete": not interrupted,
            "metrics": [asdict(noise) for noise in found],
        }
        write_output(outputs.json, json_text(document))
    if found and outputs.json != "-":
        Console().print(_table(found))
    for reason in (reason for reason in told if isinstance(reason, str)):
        print(f"lmcache: no noise to tell of: {reason}", file=sys.stderr)
    if interrupted:
        return EXIT_INTERRUPTED
    return 0 if found else EXIT_INCONCLUSIVE


def noise_of(comparison: Comparison, rule: Rule, metrics: int = 1, seed: int = 0) -> Noise | str:
    """Returns the noise of a metric, one of so many ``metrics``, or why there is none: rounds
    without the metric, too few of them, or without any spread."""
    where = f"{comparison.cell}, {rule.metric}"
    if not measured_by_clock(rule.metric):
        return f"{where}: a counter is judged exactly; give --fail-on a time or a rate"
    before = [r.value(rule.metric) for r in comparison.base]
    after = [r.value(rule.metric) for r in comparison.new]
    pairs = [(a, b) for a, b in zip(before, after, strict=False) if a and b and a > 0 and b > 0]
    ratios = [math.log(b / a) for a, b in pairs]
    if len(ratios) < _LEAST:
        measured = f"{len(ratios)} of {min(len(before), len(after))} rounds measured it"
        return (
            f"{where}: {measured}, {_LEAST} are needed; raise --max-rounds or --max-time, or"
            " choose another metric"
        )
    if np.ptp(ratios) == 0:
        return (
            f"{where}: all {len(ratios)} rounds took equally long, so no clock measured them; give"
            " the simulated engine noise: --jitter 0.05"
        )
    spread = float(np.std(ratios, ddof=1))
    rng = np.random.default_rng(seed)
    # Either side could have been called the candidate: with both signs there is no bias.
    both = np.array([*ratios, *(-ratio for ratio in ratios)])
    replayed = Looks.of(0.0, rng.choice(both, (_REPLAYS, len(ratios))))
    levels = Terms(metrics=metrics).levels
    alarms = decide(replayed, rule.bound, rule.falling, *levels, True).outcome == 1
    return Noise(
        comparison.cell,
        rule.metric,
        len(ratios),
        spread / math.sqrt(2),
        math.expm1(float(np.mean(ratios))),
        float(alarms.mean()),
        rounds_needed(spread, rule, levels[0]),
    )


def rounds_needed(spread: float, rule: Rule, level: float) -> int | None:
    """Returns the rounds until a change of twice the limit is found, at ``spread``, the standard
    deviation of the log-ratios, and ``level``, the chance of a false FAIL; None for more than
    2,000. The power is 95 % for an interval that takes rounds to be independent, and some 90 % for
    a check, which widens its own by any sign that they are not."""
    gap = abs(math.log1p(2 * rule.limit) - math.log1p(rule.limit)) if 2 * rule.limit > -1 else 0
    if not gap:
        return None
    from scipy import stats

    n = np.arange(SURE_ROUNDS, _MOST_ROUNDS + 1)
    reach = stats.t.isf(level * LAST_SHARE, n - 1) + float(stats.norm.isf(0.05))
    enough = n[reach * spread / np.sqrt(n) <= gap]
    return int(enough[0]) if enough.size else None


def _table(found: Sequence[Noise]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("cell", "metric", "rounds", "noise", "A/A ratio", "false alarms", "rounds needed"):
        table.add_column(name, justify="left" if name in ("cell", "metric") else "right")
    for noise in found:
        table.add_row(
            noise.cell,
            noise.metric,
            str(noise.rounds),
            f"{noise.cv * 100:.1f} %",
            f"{1 + noise.bias:.3f}",
            f"{noise.false_alarms * 100:.1f} %",
            str(noise.rounds_needed or f"over {_MOST_ROUNDS}"),
        )
    return table
