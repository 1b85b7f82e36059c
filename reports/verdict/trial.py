"""Two sides under judgement: their rounds, cell by cell, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from reports.verdict.counters import Strictness, judge_counters
from reports.verdict.judge import (
    LEAST_COUNTED,
    Outcome,
    Terms,
    Verdict,
    judge,
    overall,
    too_few_each,
)
from reports.verdict.round import Round, measured_by_clock
from reports.verdict.rule import Rule

_MORE_ROUNDS = "; a longer --max-time or higher --max-rounds gives it more rounds"
_COUNTERS_ALONE = "; counters alone can be judged at once: --fail-on 'hit_rate<0pp'"


@dataclass(slots=True)
class Comparison:
    """One cell of both sides; rounds are appended as they are measured."""

    cell: str
    base: list[Round] = field(default_factory=list)
    new: list[Round] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trial:
    """The judgement of ``comparisons`` under ``rules`` and the strictness of counters. ``paired``,
    ``noise`` (by metric, or one for all) and ``over`` are those of :class:`.Terms`; stored runs
    (not paired) need one round for counters. With ``optional``, rules after the first are left
    out where neither side has what they judge, or too little of it in a round.
    """

    comparisons: Sequence[Comparison]
    rules: Sequence[Rule]
    counters: Strictness = "exact"
    paired: bool = True
    noise: float | Mapping[str, float] | None = None
    over: bool = True
    optional: bool = False

    def of(self, comparison: Comparison) -> list[Verdict]:
        """Returns the verdicts on one cell, those on rules first."""
        base, new = comparison.base, comparison.new
        rules = [r for r in self.rules if not self._left_out(r, (*base, *new))]
        timed = sum(measured_by_clock(rule.metric) for rule in rules)
        metrics = max(1, timed * len(self.comparisons))
        found = []
        for rule in rules:
            noise = self.noise.get(rule.metric) if isinstance(self.noise, Mapping) else self.noise
            terms = Terms(self.paired, metrics, noise, self.over)
            verdict = judge(comparison.cell, base, new, rule, terms)
            if rule is rules[0] and self._counters_would_do(verdict, (*base, *new)):
                verdict = replace(verdict, reason=verdict.reason + _COUNTERS_ALONE)
            found.append(verdict)
        ruled = {rule.metric for rule in self.rules}
        return found + judge_counters(
            comparison.cell, base, new, self.counters, ruled, self._least_counted
        )

    def _counters_would_do(self, verdict: Verdict, rounds: Sequence[Round]) -> bool:
        undecided = verdict.outcome == "INCONCLUSIVE" and measured_by_clock(verdict.metric)
        counted = all(each.value("hit_rate") is not None for each in rounds)
        return not self.paired and undecided and counted

    def _left_out(self, rule: Rule, rounds: Sequence[Round]) -> bool:
        if not self.optional or rule is self.rules[0]:
            return False
        unmeasured = all(r.value(rule.metric) is None for r in rounds)
        return unmeasured or bool(too_few_each(rounds, rule.metric))

    def settled(self, comparison: Comparison) -> bool:
        """Returns whether another round of a cell would be wasted: one has failed, or none can
        change."""
        found = self.of(comparison)
        return overall(found) == "FAIL" or all(verdict.settled for verdict in found)

    def verdicts(self) -> list[Verdict]:
        """Returns the verdicts on all cells."""
        return [verdict for comparison in self.comparisons for verdict in self.of(comparison)]

    def unjudged(self) -> str:
        """Says which side of a cell served nothing, or ran too few rounds to judge even its
        counters; "" if there is none. That is no noise: nothing was measured."""
        if not self.comparisons:
            return "no round of the two sides was whole, so nothing was measured" + _MORE_ROUNDS
        for comparison in self.comparisons:
            sides = {"baseline": comparison.base, "candidate": comparison.new}
            for name, rounds in sides.items():
                if len(rounds) < self._least_counted:
                    need = f"ran {len(rounds)} of the {self._least_counted} rounds"
                    need += f" that even counters need{_MORE_ROUNDS}"
                    return f"{comparison.cell}: the {name} {need}"
                if not any(each.n for each in rounds):
                    return f"{comparison.cell}: the {name} served no request"
        return ""

    @property
    def _least_counted(self) -> int:
        return LEAST_COUNTED if self.paired else 1

    def outcome(self) -> Outcome:
        """Returns the outcome over all verdicts, by which the exit code is chosen."""
        return overall(self.verdicts())
