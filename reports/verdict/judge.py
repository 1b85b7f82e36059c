"""Did it get worse? A verdict per metric, and one over all of them.

PASS is a claim, as FAIL is: a change that is worse than allowed has been ruled out. What supports
neither is INCONCLUSIVE. A run that measured nothing never passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from reports.verdict.interval import Interval, stored_error
from reports.verdict.looks import LEAST_ROUNDS, QUICK, SURE_ROUNDS, Looks, decide, signs
from reports.verdict.round import Round, measured_by_clock, share_below
from reports.verdict.rule import Rule

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
LEVEL = 0.05
"""The chance of any false FAIL, over all metrics and looks."""
_CLOCKED = 4
"""The least number of values that all equal are no clock's."""
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
    seen with 80 % power. ``signs`` are those of :func:`.signs`, of rounds that ran in turns.
    ``exact``: without noise, so without an interval. ``reason`` says why, in words."""

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
    signs: Mapping[str, float] = field(default_factory=dict)
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


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which metrics are judged.

    ``paired``: round i of both sides ran in turns, so that what they share cancels, and unless
    ``over`` more rounds follow until something is decided; the first decision stands. Else the
    rounds lie there already and belong to no pairs; ``noise``, if given, is the coefficient of
    variation from one day's runs to another's. ``metrics`` is how many are judged together: a FAIL
    of any fails all, so its level is divided among them (Bonferroni); PASS needs each of them, so
    its level is not.
    """

    paired: bool = True
    metrics: int = 1
    noise: float | None = None
    over: bool = True

    @property
    def levels(self) -> tuple[float, float]:
        """Returns the chances of a wrong FAIL and of a wrong PASS of one metric."""
        return LEVEL / self.metrics, LEVEL


def judge(
    cell: str, base: Sequence[Round], new: Sequence[Round], rule: Rule, terms: Terms
) -> Verdict:
    """Returns the verdict on one metric of one cell."""
    if not measured_by_clock(rule.metric):
        return _judge_steady(cell, base, new, rule, terms)
    before = [r.value(rule.metric) for r in base]
    after = [r.value(rule.metric) for r in new]
    typical = _typical(before), _typical(after)
    rounds = min(len(base), len(new))
    trouble = (
        _nothing(base, new)
        or _unusable([*before, *after], rule.metric)
        or _collapsed(before, after)
        or too_few_each((*base, *new), rule.metric)
    )
    if trouble:
        found = _verdict(cell, rule, "INCONCLUSIVE", trouble, typical, rounds)
        return replace(found, hopeless=True)
    if trouble := _too_few_in_all(base, new, rule.metric):
        return _verdict(cell, rule, "INCONCLUSIVE", trouble, typical, rounds)
    return _judge_scaled(cell, rule, base, new, typical, terms)


def _judge_scaled(
    cell: str,
    rule: Rule,
    base: Sequence[Round],
    new: Sequence[Round],
    typical: tuple[float | None, float | None],
    terms: Terms,
) -> Verdict:
    x, y = _scaled(base, rule), _scaled(new, rule)
    if terms.paired:
        return _judge_pairs(cell, rule, [*x.values()], [*y.values()], typical, terms)
    low, high, count = -math.inf, math.inf, min(len(x), len(y))
    from scipy import stats

    middle = float(np.mean([*y.values()]) - np.mean([*x.values()]))
    fail_level, pass_level = (level / 2 for level in terms.levels)
    freedom = math.inf
    if terms.noise is not None:
        error = terms.noise * math.sqrt(1 / len(x) + 1 / len(y))
    else:
        found, free = stored_error([*x.values()], [*y.values()])
        error, freedom = float(found), float(free)
    if math.isfinite(error) and error > 0:
        worse, better = (
            float(stats.t.isf(level, freedom)) * error for level in (fail_level, pass_level)
        )
        below, above = (better, worse) if rule.falling else (worse, better)
        low, high = middle - below, middle + above
    interval = Interval(low, middle, high, error if math.isfinite(error) else 0.0, count)
    outcome = _decides(interval, rule)
    rounds = min(len(base), len(new))
    if count < 2 and terms.noise is None:
        reason = (
            "runs of one day are one sample, and one a side tells nothing of the noise between"
            " days: give runs of several, or --noise (a share, or a folder of old runs), or use"
            " lmcache check"
        )
    elif outcome == "PASS" and terms.noise is None and rounds < SURE_ROUNDS:
        outcome = "INCONCLUSIVE"
        reason = (
            f"no change shows, but a PASS of stored runs needs {SURE_ROUNDS} rounds a side, and"
            f" there are {rounds}{_missed(rounds)}; give more runs, runs of more rounds (--repeat),"
            " or --noise"
        )
    else:
        reason = _reason(outcome, interval) + (_missed(rounds) if outcome == "PASS" else "")
    return _verdict(cell, rule, outcome, reason, typical, count, interval)


def _scaled(rounds: Sequence[Round], rule: Rule) -> dict[str, float]:
    """Returns the values by sample, in order: rounds of one sample, which share what the machine
    did on that day, count with their mean. Rounds of no sample are one each."""
    by_sample: dict[str, list[float]] = {}
    for i, each in enumerate(rounds):
        value = each.value(rule.metric)
        if value is not None:
            by_sample.setdefault(each.sample or f"#{i}", []).append(rule.scaled(value))
    return {name: float(np.mean(by_sample[name])) for name in by_sample}


def _judge_pairs(
    cell: str,
    rule: Rule,
    x: Sequence[float],
    y: Sequence[float],
    typical: tuple[float | None, float | None],
    terms: Terms,
) -> Verdict:
    rounds = min(len(x), len(y))
    if not rounds:
        return _verdict(cell, rule, "INCONCLUSIVE", "no round", typical, 0)
    a, b = np.array(x[:rounds]), np.array(y[:rounds])
    looks = Looks.of(a, b)
    found = decide(looks, rule.bound, rule.falling, *terms.levels, terms.over)
    at = int(found.at)
    error = float(looks.errors(QUICK)[0][at])
    middle = float(looks.middle[at])
    interval = Interval(float(found.low), middle, float(found.high), error, at + 1)
    outcome: Outcome = ("INCONCLUSIVE", "FAIL", "PASS")[int(found.outcome)]
    told = signs(looks, b - a)
    if outcome == "INCONCLUSIVE" and rounds < LEAST_ROUNDS:
        reason = f"{rounds} of at least {LEAST_ROUNDS} rounds"
    else:
        reason = _reason(outcome, interval)
        if outcome == "PASS":
            reason += _missed(interval.n)
        elif outcome == "FAIL" and interval.n < SURE_ROUNDS:
            reason += f"; noise that stays with one side for {interval.n} rounds looks the same"
        reason += _spoken(told, rounds)
    return replace(_verdict(cell, rule, outcome, reason, typical, at + 1, interval), signs=told)


def _missed(rounds: int) -> str:
    """Says which share of slow rounds stays out of so many in more than 5 % of the cases."""
    share = 1 - LEVEL ** (1 / rounds)
    return f"; what slows less than {share * 100:.0f} % of rounds may be missed"


def _spoken(told: Mapping[str, float], rounds: int) -> str:
    """Says what speaks against independent rounds, if anything does."""
    said = ""
    if told["effective_rounds"] < 0.7 * rounds:
        said += (
            f"; noise sticks from round to round (lag 1: {told['lag1']:.2f}): they tell as much as"
            f" {told['effective_rounds']:.0f}"
        )
    if told["moved"]:
        said += f"; the change itself moved by {told['moved'] * 100:.1f} % with the machine or time"
    if told["outliers"]:
        said += f"; {told['outliers']:.0f} outliers"
    return said


def _reason(outcome: Outcome, interval: Interval) -> str:
    if outcome == "INCONCLUSIVE" and not math.isfinite(interval.high - interval.low):
        return "too few rounds to tell the noise" if interval.error else "no noise: equal values"
    return {
        "PASS": "the interval excludes the limit",
        "FAIL": "the whole interval is beyond the limit",
        "INCONCLUSIVE": "the interval holds the limit",
    }[outcome]


def _decides(interval: Interval, rule: Rule) -> Outcome:
    worse = interval.high < rule.bound if rule.falling else interval.low > rule.bound
    better = interval.low > rule.bound if rule.falling else interval.high < rule.bound
    return "FAIL" if worse else "PASS" if better else "INCONCLUSIVE"


def _judge_steady(
    cell: str,
    base: Sequence[Round],
    new: Sequence[Round],
    rule: Rule,
    terms: Terms,
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
    if terms.paired and rounds < LEAST_COUNTED:
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
    return _judge_scaled(cell, rule, base, new, typical, replace(terms, noise=None))


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
        if len(known) < _CLOCKED:
            continue
        if max(known) - min(known) <= _SAME * max(known):
            return f"the {name}'s values are all equal: no clock measured them"
    return ""


def too_few_each(rounds: Sequence[Round], metric: str) -> str:
    """Returns why a round has too few values for a percentile, which needs one beyond it in each
    round; else empty text."""
    each = least_values(metric)
    least = min(r.count(metric) for r in rounds)
    if least < each:
        statistic = metric.partition(".")[2]
        return f"{statistic} of {least} values a round says nothing: it needs {each}"
    return ""


def least_values(metric: str) -> int:
    """Returns how many values a round needs for the metric; 1 for what is no percentile."""
    return math.ceil(round(1 / (1 - _longer_share(metric)), 6))


def _too_few_in_all(base: Sequence[Round], new: Sequence[Round], metric: str) -> str:
    """Returns why all rounds together have fewer values than make a 95 % bound for a percentile,
    else empty text: ln 0.05 / ln q (S. S. Wilks, "Determination of sample sizes for setting
    tolerance limits", Ann. Math. Stat. 12, 1941)."""
    share = _longer_share(metric)
    total = math.ceil(math.log(LEVEL) / math.log(share)) if share else 0
    pooled = min(sum(r.count(metric) for r in side) for side in (base, new))
    if pooled < total:
        statistic = metric.partition(".")[2]
        return f"{statistic} of {pooled} values in all says nothing: it needs {total}"
    return ""


def _longer_share(metric: str) -> float:
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
