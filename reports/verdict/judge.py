"""Did it get worse? A verdict per metric, and one over all of them.

PASS is a claim, as FAIL is: a change that is worse than allowed has been ruled out. What supports
neither is INCONCLUSIVE. A run that measured nothing never passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reports.verdict.interval import Interval, anytime_intervals, welch_interval
from reports.verdict.round import Round, measured_by_clock, share_below
from reports.verdict.rule import Rule

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
LEVEL = 0.05
"""The chance of any false FAIL, over all metrics and looks."""
LEAST_ROUNDS = 5
"""The least number of rounds; below it, no number of decimals makes noise known."""
LEAST_COUNTED = 2
"""The least number of rounds for a counter: a change that shows in one round may be chance; in two,
each side has proven to be steady."""
_UNMEASURED = "{} was not measured in every round"
_SAME = 1e-9
"""Values that differ by less, relatively, are the same but for rounding."""
_POWER_80 = 0.8416  # the normal quantile


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one metric of one cell. ``base`` and ``new`` are its typical values (seconds,
    shares, counts; None if there is none), ``change`` with ``low`` and ``high`` its interval in the
    unit of the rule's limit, ``smallest`` the smallest change for the worse that would have been
    seen with 80 % power. ``exact``: without noise, so without an interval. ``reason`` says why, in
    words."""

    cell: str
    metric: str
    rule: str
    outcome: Outcome
    reason: str
    base: float | None = None
    new: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    smallest: float | None = None
    rounds: int = 0
    exact: bool = False
    points: bool = False
    hopeless: bool = False
    """Whether no further round would change the verdict."""

    @property
    def settled(self) -> bool:
        """Returns whether the verdict is decided, or can't be."""
        return self.hopeless or self.outcome != "INCONCLUSIVE"


def overall(verdicts: Sequence[Verdict]) -> Outcome:
    """Returns FAIL if any verdict fails; PASS if there are verdicts and all pass; else
    INCONCLUSIVE."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if "FAIL" in outcomes:
        return "FAIL"
    return "PASS" if outcomes == {"PASS"} else "INCONCLUSIVE"


def judge(
    cell: str,
    base: Sequence[Round],
    new: Sequence[Round],
    rule: Rule,
    *,
    paired: bool,
    metrics: int = 1,
    noise: float | None = None,
) -> Verdict:
    """Returns the verdict on one metric of one cell.

    ``paired``: round i of both sides ran in turns, so that what they share cancels, and more rounds
    follow until something is decided; the first decision stands. Else the rounds lie there already
    and belong to no pairs; ``noise``, if given, is the coefficient of variation from run to run,
    and stands for what a single run can't tell. ``metrics`` is how many are judged together: the
    level is divided among them (Bonferroni).
    """
    if not measured_by_clock(rule.metric):
        return _judge_steady(cell, base, new, rule, paired, metrics)
    before = [r.value(rule.metric) for r in base]
    after = [r.value(rule.metric) for r in new]
    typical = _typical(before), _typical(after)
    rounds = min(len(base), len(new))
    trouble = (
        _nothing(base, new)
        or _unusable([*before, *after], rule.metric)
        or _collapsed(before, after)
        or _too_few_each(base, new, rule.metric)
    )
    if trouble:
        found = _verdict(cell, rule, "INCONCLUSIVE", trouble, typical, rounds)
        return replace(found, hopeless=True)
    if trouble := _too_few_in_all(base, new, rule.metric):
        return _verdict(cell, rule, "INCONCLUSIVE", trouble, typical, rounds)
    x = [rule.scaled(v) for v in before if v is not None]
    y = [rule.scaled(v) for v in after if v is not None]
    return _judge_scaled(cell, rule, x, y, typical, paired, LEVEL / metrics, noise)


def _judge_scaled(
    cell: str,
    rule: Rule,
    x: Sequence[float],
    y: Sequence[float],
    typical: tuple[float | None, float | None],
    paired: bool,
    level: float,
    noise: float | None,
) -> Verdict:
    if paired:
        looks = anytime_intervals([b - a for a, b in zip(x, y, strict=False)], level)
        looks = looks or [Interval(-math.inf, 0.0, math.inf, 0.0, 0)]
        found = next((i for i in looks if _decides(i, rule) != "INCONCLUSIVE"), looks[-1])
    elif noise is not None:
        from scipy import stats

        middle = sum(y) / len(y) - sum(x) / len(x)
        error = noise * math.sqrt(1 / len(x) + 1 / len(y))
        width = float(stats.norm.isf(level / 2)) * error
        found = Interval(middle - width, middle, middle + width, error, min(len(x), len(y)))
    else:
        found = welch_interval(x, y, level)
    outcome = _decides(found, rule)
    needs_more = not paired and noise is None and min(len(x), len(y)) < 2
    if needs_more:
        reason = (
            "one run a side tells nothing of the noise between runs: give several, or --noise,"
            " or use lmcache check"
        )
    elif paired and found.n < LEAST_ROUNDS:
        reason = f"{found.n} of at least {LEAST_ROUNDS} rounds"
    elif outcome == "INCONCLUSIVE" and not math.isfinite(found.high - found.low):
        reason = "too few rounds to tell the noise" if found.error else "no noise: equal values"
    else:
        reason = {
            "PASS": "the interval excludes the limit",
            "FAIL": "the whole interval is beyond the limit",
            "INCONCLUSIVE": "the interval holds the limit",
        }[outcome]
    return _verdict(cell, rule, outcome, reason, typical, found.n, found)


def _decides(interval: Interval, rule: Rule) -> Outcome:
    worse = interval.high < rule.bound if rule.falling else interval.low > rule.bound
    better = interval.low > rule.bound if rule.falling else interval.high < rule.bound
    return "FAIL" if worse else "PASS" if better else "INCONCLUSIVE"


def _judge_steady(
    cell: str,
    base: Sequence[Round],
    new: Sequence[Round],
    rule: Rule,
    paired: bool,
    metrics: int,
) -> Verdict:
    """Judges a counter with a limit: exact where it does not vary."""
    before = [r.value(rule.metric) for r in base]
    after = [r.value(rule.metric) for r in new]
    typical = _typical(before), _typical(after)
    rounds = min(len(base), len(new))
    unmeasured = _UNMEASURED.format(rule.metric) if None in (*before, *after) else ""
    if trouble := _nothing(base, new) or unmeasured:
        found = _verdict(cell, rule, "INCONCLUSIVE", trouble, typical, rounds)
        return replace(found, hopeless=True)
    if paired and rounds < LEAST_COUNTED:
        reason = f"{rounds} of at least {LEAST_COUNTED} rounds"
        return _verdict(cell, rule, "INCONCLUSIVE", reason, typical, rounds)
    a, b = {v for v in before if v is not None}, {v for v in after if v is not None}
    if len(a) == len(b) == 1:
        old, now = a.pop(), b.pop()
        change = now - old if rule.points else (now / old - 1 if old else math.inf * (now > 0))
        worse = change < rule.limit if rule.falling else change > rule.limit
        return Verdict(
            cell,
            rule.metric,
            str(rule),
            "FAIL" if worse else "PASS",
            "exact, and beyond the limit" if worse else "exact, and within the limit",
            old,
            now,
            change if math.isfinite(change) else None,
            rounds=rounds,
            exact=True,
            points=rule.points,
        )
    values = [*a, *b]
    if not rule.points and min(values) <= 0:
        return _verdict(cell, rule, "INCONCLUSIVE", "varies, and is 0 at times", typical, rounds)
    x = [rule.scaled(v) for v in before if v is not None]
    y = [rule.scaled(v) for v in after if v is not None]
    return _judge_scaled(cell, rule, x, y, typical, paired, LEVEL / metrics, None)


def _nothing(base: Sequence[Round], new: Sequence[Round]) -> str:
    for name, rounds in (("baseline", base), ("candidate", new)):
        if not rounds:
            return f"the {name} ran no round"
        if all(r.n == 0 for r in rounds):
            failed = sum(r.failed for r in rounds)
            why = f"all {failed} requests failed" if failed else "no request was served"
            return f"the {name} measured nothing: {why}"
    return ""


def _unusable(values: Sequence[float | None], metric: str) -> str:
    if None in values:
        return _UNMEASURED.format(metric)
    known = [v for v in values if v is not None]
    if not all(math.isfinite(v) and v > 0 for v in known):
        return f"{metric} has values that are no times: zero, negative or not a number"
    return ""


def _collapsed(before: Sequence[float | None], after: Sequence[float | None]) -> str:
    for name, values in (("baseline", before), ("candidate", after)):
        known = [v for v in values if v is not None]
        if len(known) < LEAST_ROUNDS - 1:
            continue
        if max(known) - min(known) <= _SAME * max(known):
            return f"the {name}'s values are all equal: no clock measured them"
    return ""


def _too_few_each(base: Sequence[Round], new: Sequence[Round], metric: str) -> str:
    """Returns why a round has too few values for a percentile, which needs one beyond it in each
    round; else empty text."""
    share = _refusable(base, new, metric)
    each = math.ceil(round(1 / (1 - share), 6))
    least = min(r.count(metric) for r in (*base, *new))
    if share and least < each:
        statistic = metric.partition(".")[2]
        return f"{statistic} of {least} values a round says nothing: it needs {each}"
    return ""


def _too_few_in_all(base: Sequence[Round], new: Sequence[Round], metric: str) -> str:
    """Returns why all rounds together have fewer values than make a 95 % bound for a percentile,
    else empty text: ln 0.05 / ln q (S. S. Wilks, "Determination of sample sizes for setting
    tolerance limits", Ann. Math. Stat. 12, 1941)."""
    share = _refusable(base, new, metric)
    total = math.ceil(math.log(LEVEL) / math.log(share)) if share else 0
    pooled = min(sum(r.count(metric) for r in side) for side in (base, new))
    if pooled < total:
        statistic = metric.partition(".")[2]
        return f"{statistic} of {pooled} values in all says nothing: it needs {total}"
    return ""


def _refusable(base: Sequence[Round], new: Sequence[Round], metric: str) -> float:
    """Returns the share on the longer side of a percentile; 0 for what is none."""
    share = share_below(metric.partition(".")[2])
    return max(share, 1 - share) if share else 0.0


def _typical(values: Sequence[float | None]) -> float | None:
    known = sorted(v for v in values if v is not None and math.isfinite(v))
    return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else None


def _verdict(
    cell: str,
    rule: Rule,
    outcome: Outcome,
    reason: str,
    typical: tuple[float | None, float | None],
    rounds: int,
    interval: Interval | None = None,
) -> Verdict:
    known = interval is not None and math.isfinite(interval.high - interval.low)
    low = high = change = smallest = None
    if interval is not None:
        change = rule.change(interval.middle)
    if interval is not None and known:
        low, high = rule.change(interval.low), rule.change(interval.high)
        reach = (interval.high - interval.low) / 2 + _POWER_80 * interval.error
        smallest = rule.change(rule.bound - reach if rule.falling else rule.bound + reach)
    return Verdict(
        cell,
        rule.metric,
        str(rule),
        outcome,
        reason,
        *typical,
        change,
        low,
        high,
        smallest,
        rounds,
        points=rule.points,
    )
