"""Two sides under judgement: their rounds, cell by cell, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reports.verdict.counters import Strictness, judge_counters
from reports.verdict.judge import LEAST_COUNTED, Outcome, Verdict, judge, overall
from reports.verdict.round import Round, measured_by_clock
from reports.verdict.rule import Rule


@dataclass(slots=True)
class Comparison:
    """One cell of both sides; rounds are appended as they are measured."""

    cell: str
    base: list[Round] = field(default_factory=list)
    new: list[Round] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trial:
    """The judgement of ``comparisons`` under ``rules`` and the strictness of counters. ``paired``
    and ``noise`` are those of :func:`.judge`; stored runs (not paired) need one round for counters.
    """

    comparisons: Sequence[Comparison]
    rules: Sequence[Rule]
    counters: Strictness = "exact"
    paired: bool = True
    noise: float | None = None

    def of(self, comparison: Comparison) -> list[Verdict]:
        """Returns the verdicts on one cell, those on rules first."""
        timed = sum(measured_by_clock(rule.metric) for rule in self.rules)
        metrics = max(1, timed * len(self.comparisons))
        base, new = comparison.base, comparison.new
        found = [
            judge(
                comparison.cell,
                base,
                new,
                rule,
                paired=self.paired,
                metrics=metrics,
                noise=self.noise,
            )
            for rule in self.rules
        ]
        ruled = {rule.metric for rule in self.rules}
        least = LEAST_COUNTED if self.paired else 1
        return found + judge_counters(comparison.cell, base, new, self.counters, ruled, least)

    def settled(self, comparison: Comparison) -> bool:
        """Returns whether another round of a cell would be wasted: one has failed, or none can
        change."""
        found = self.of(comparison)
        return overall(found) == "FAIL" or all(verdict.settled for verdict in found)

    def verdicts(self) -> list[Verdict]:
        """Returns the verdicts on all cells."""
        return [verdict for comparison in self.comparisons for verdict in self.of(comparison)]

    def outcome(self) -> Outcome:
        """Returns the outcome over all verdicts, by which the exit code is chosen."""
        return overall(self.verdicts())
