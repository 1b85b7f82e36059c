"""Parses rules of what a regression is: ``ttft.p50>5%``, ``hit_rate<-0.5pp``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from reports.verdict.round import COUNTERS, RATES, TIMES, is_metric

DEFAULT_RULE = "ttft.p50>5%"
DEFAULT_RULES = (DEFAULT_RULE, "ttft.mean>5%", "ttft.p90>10%")
"""What is judged if nothing is said: the typical request, what hits a share of them, and the
spread."""
_RULE = re.compile(r"\s*([\w.]+)\s*([<>])\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*(%|pp)\s*")


class RuleError(ValueError):
    """A rule that can't be read; one line that says what it should look like."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A change of ``metric`` beyond ``limit`` is a regression: above it, or below it if
    ``falling``. ``limit`` is a share of the baseline's value (0.05 is 5 %), or a difference of
    shares if ``points`` (0.005 is half a percentage point)."""

    metric: str
    limit: float
    falling: bool = False
    points: bool = False

    def __str__(self) -> str:
        sign, unit = "<" if self.falling else ">", "pp" if self.points else "%"
        return f"{self.metric}{sign}{self.limit * 100:g}{unit}"

    @property
    def bound(self) -> float:
        """Returns the limit on the scale on which changes are judged: see :meth:`scaled`."""
        return self.limit if self.points else math.log1p(self.limit)

    def scaled(self, value: float) -> float:
        """Returns a value on the scale on which changes are differences: its logarithm, or itself
        for points. Raises ``ValueError`` for a value that has none."""
        return value if self.points else math.log(value)

    def change(self, scaled: float) -> float:
        """Returns a difference on the scale of :meth:`scaled` as a change in ``limit``'s unit."""
        if self.points or math.isinf(scaled):
            return scaled
        return math.expm1(min(scaled, 700.0))


def parse_rule(text: str) -> Rule:
    """Parses a rule. Raises ``RuleError`` for what is no rule, an unknown metric, or a limit that
    makes no sense for it."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise RuleError(
            f"{text!r} is no rule; write METRIC>LIMIT or METRIC<-LIMIT with % or pp, like"
            f" {DEFAULT_RULE} or hit_rate<-0.5pp"
        )
    metric, sign, number, unit = match.groups()
    if not is_metric(metric):
        raise RuleError(
            f"{text!r}: no metric {metric!r}; there are {', '.join(TIMES)} with .mean or .p50,"
            f" .p90, .p99, throughput with .{', .'.join(RATES)}, hit_rate, {', '.join(COUNTERS)}"
        )
    limit, falling, points = float(number) / 100, sign == "<", unit == "pp"
    if points != (metric == "hit_rate"):
        wanted = "percentage points, pp" if metric == "hit_rate" else "%"
        raise RuleError(f"{text!r}: the limit of {metric} is in {wanted}")
    if (falling and limit > 0) or (not falling and limit < 0):
        raise RuleError(
            f"{text!r}: a change for the worse is {'below' if falling else 'above'} 0; write"
            f" {metric}{sign}{-float(number):g}{unit}"
        )
    if not points and limit <= -1:
        raise RuleError(f"{text!r}: nothing falls by 100 % or more; write a smaller limit")
    return Rule(metric, limit, falling, points)
