"""Counters have no noise: they are equal, or something changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from reports.verdict.judge import LEAST_COUNTED, Outcome, Verdict
from reports.verdict.round import COUNTERS, Round

Strictness = Literal["exact", "worse", "ignore"]
ALWAYS = ("n", "failed", "prompt_tokens")
"""The counters that are judged even if the others are ignored: without them nothing else is
comparable."""
_MORE_IS_BETTER = ("n", "hit_tokens")
_HITS = "hit_tokens"


def judge_counters(
    cell: str,
    base: Sequence[Round],
    new: Sequence[Round],
    strictness: Strictness = "exact",
    ruled: Collection[str] = (),
    least_rounds: int = LEAST_COUNTED,
) -> list[Verdict]:
    """Returns one verdict per counter that both sides have.

    ``exact``: any change fails. ``worse``: one for the better passes. ``ignore``: only those of
    :data:`ALWAYS` are judged, exactly. Counters in ``ruled`` have a limit of their own. Where fewer
    tokens hit in all, nothing has changed for the better: fewer bytes are loaded and stored then.
    """
    found = []
    hits = _hits(new) - _hits(base)
    for name in COUNTERS:
        if name in ruled or (strictness == "ignore" and name not in ALWAYS):
            continue
        before = [r.counters.get(name) for r in base]
        after = [r.counters.get(name) for r in new]
        # Stored runs, and other tools, don't count everything.
        if name not in ALWAYS and {None} in (set(before), set(after)):
            continue
        if set(before) | set(after) == {None}:
            continue
        strict = "exact" if name in ALWAYS else strictness
        outcome, reason, hopeless = _judge(name, before, after, strict, least_rounds, hits)
        old, now = _steady(before), _steady(after)
        found.append(
            Verdict(
                cell,
                name,
                strict,
                outcome,
                reason,
                old,
                now,
                now / old - 1 if old and now is not None else None,
                rounds=min(len(base), len(new)),
                exact=True,
                hopeless=hopeless,
            )
        )
    return found


def _judge(
    name: str,
    before: Sequence[int | None],
    after: Sequence[int | None],
    strictness: str,
    least_rounds: int,
    hits: float,
) -> tuple[Outcome, str, bool]:
    """Returns the outcome, why, and whether more rounds can't change it. ``hits`` is by how many
    tokens all tiers together hit more."""
    if name == "n" and not any(after):
        measured = any(before)
        return "FAIL" if measured else "INCONCLUSIVE", "the candidate measured nothing", True
    if name == "n" and not any(before):
        return "INCONCLUSIVE", "the baseline measured nothing", True
    if min(len(before), len(after)) < least_rounds:
        return "INCONCLUSIVE", f"fewer than {least_rounds} rounds", False
    if None in (*before, *after):
        return "INCONCLUSIVE", "only one side, or not every round, has it", True
    for side, values in (("baseline", before), ("candidate", after)):
        if len(set(values)) > 1:
            low, high = min(v for v in values if v is not None), max(v or 0 for v in values)
            return "INCONCLUSIVE", f"varies by itself in the {side}: {low} to {high}", True
    old, now = before[0] or 0, after[0] or 0
    if now == old:
        return "PASS", "equal", False
    better = (now > old) == name.startswith(_MORE_IS_BETTER) and name != "prompt_tokens"
    if better and hits < 0:
        return "FAIL", "changed, as fewer tokens hit", False
    if name.startswith(_HITS) and hits == 0:
        better = False  # from another tier, which is not better by itself
    if better and strictness == "worse":
        return "PASS", "changed for the better", False
    return "FAIL", "changed, for the better" if better else "changed", False


def _hits(rounds: Sequence[Round]) -> float:
    """Returns the tokens that hit in a typical round, in all tiers; 0 where none are counted."""
    totals = [
        sum(value for name, value in r.counters.items() if name.startswith(_HITS)) for r in rounds
    ]
    return _steady(totals) or 0.0


def _steady(values: Sequence[int | None]) -> float | None:
    known = sorted(v for v in values if v is not None)
    return float(known[len(known) // 2]) if known else None
