"""How far reused KV moves a model's answers from those of a full prefill."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.sample import Sample

RESAMPLES = 1000
MIN_REQUESTS = 5


@dataclass(frozen=True, slots=True)
class Quality:
    """One answer: ``kl`` in nats from the full prefill's next-token distribution to this one, and
    the share of positions whose likeliest token is the same, over ``positions`` of the answer."""

    kl: float
    agreement: float
    positions: int


@dataclass(frozen=True, slots=True)
class QualitySummary:
    """Means over all positions of a cell's answers. ``kl_low`` and ``kl_high`` bound the mean's
    95 % interval, None with fewer than five requests; all None if nothing was compared."""

    positions: int = 0
    kl: float | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class AnswerSummary:
    """Mean F1 and exact match of ``n`` answers with their 95 % intervals, None with fewer than
    five requests; all None if no right answers are known."""

    n: int = 0
    f1: float | None = None
    f1_low: float | None = None
    f1_high: float | None = None
    exact: float | None = None
    exact_low: float | None = None
    exact_high: float | None = None


def answers_of(samples: Sequence[Sample], seed: int = 0) -> AnswerSummary:
    """Intervals are percentile bootstraps over requests, repeats averaged. The same samples and
    seed give the same answer."""
    by_request: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for s in samples:
        if s.f1 is not None and s.exact is not None:
            by_request[s.request_id].append((s.f1, s.exact))
    if not by_request:
        return AnswerSummary()
    scores = np.array([np.mean(found, axis=0) for found in by_request.values()])
    f1, exact = (float(x) for x in scores.mean(0))
    n = sum(map(len, by_request.values()))
    if len(scores) < MIN_REQUESTS:
        return AnswerSummary(n, f1, exact=exact)
    drawn = np.random.default_rng(seed).integers(0, len(scores), (RESAMPLES, len(scores)))
    low, high = np.percentile(scores[drawn].mean(1), [2.5, 97.5], axis=0)
    return AnswerSummary(n, f1, float(low[0]), float(high[0]), exact, float(low[1]), float(high[1]))


def quality_of(samples: Sequence[Sample], seed: int = 0) -> QualitySummary:
    """The interval is a percentile bootstrap over whole requests, all repeats together: positions
    of one answer are not independent. The same samples and seed give the same answer."""
    by_request: defaultdict[str, list[Quality]] = defaultdict(list)
    for s in samples:
        if s.kl is not None and s.agreement is not None and s.kl_positions:
            by_request[s.request_id].append(Quality(s.kl, s.agreement, s.kl_positions))
    return pooled(list(by_request.values()), seed)


def pooled(answers: Sequence[Sequence[Quality]], seed: int = 0) -> QualitySummary:
    """As :func:`quality_of`, of every request's answers."""
    if not answers:
        return QualitySummary()
    # [requests, (positions, sum of KL, sum of agreements)]
    sums = np.array(
        [
            np.sum([(q.positions, q.positions * q.kl, q.positions * q.agreement) for q in r], 0)
            for r in answers
        ]
    )
    positions, kl, same = sums.sum(0)
    low = high = None
    if len(sums) >= MIN_REQUESTS:
        drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
        totals = sums[drawn].sum(1)
        low, high = (float(x) for x in np.percentile(totals[:, 1] / totals[:, 0], [2.5, 97.5]))
    return QualitySummary(int(positions), float(kl / positions), low, high, float(same / positions))
