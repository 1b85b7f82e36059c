"""Measures how far reused KV moves a model's answers from a full prefill's, and from the right
ones.

Answers are scored as SQuAD's evaluation does (Rajpurkar et al. 2016, section 6.1), which MuSiQue
took over: lower case, without punctuation, articles and superfluous blanks; F1 over the bag of
words; the best of all right answers counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.sample import Sample

QUALITY_RESAMPLES = 1000
LEAST_ANSWERS = 5


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality of one answer: ``kl`` in nats from the full prefill's next-token distribution to
    this one, and the share of positions whose likeliest token is the same, over ``positions`` of
    the answer."""

    kl: float
    agreement: float
    positions: int


@dataclass(frozen=True, slots=True)
class QualitySummary:
    """The quality of a cell's answers: means over all positions. ``kl_low`` and ``kl_high`` bound
    the mean's 95 % interval, None with fewer than five requests; all None if nothing was compared.
    """

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


def answers_of(rows: Any, seed: int = 0) -> AnswerSummary:
    """Summarises how right the answers are. Intervals are percentile bootstraps over requests,
    repeats averaged. The same samples and seed give the same answer."""
    known = rows.dropna(subset=["f1", "exact"])
    if known.empty:
        return AnswerSummary()
    scores = known.groupby("request_id", sort=False)[["f1", "exact"]].mean().to_numpy()
    f1, exact = (float(x) for x in scores.mean(0))
    if len(scores) < LEAST_ANSWERS:
        return AnswerSummary(len(known), f1, exact=exact)
    low, high = _bounds(scores, lambda drawn: drawn.mean(1), seed)
    return AnswerSummary(
        len(known), f1, float(low[0]), float(high[0]), exact, float(low[1]), float(high[1])
    )


def quality_of(rows: Any, seed: int = 0) -> QualitySummary:
    """Summarises the quality of the answers. The interval is a percentile bootstrap over whole
    requests, all repeats together: positions of one answer are not independent. The same samples
    and seed give the same answer."""
    rows = rows.dropna(subset=["kl", "agreement", "kl_positions"])
    answers = [
        [Quality(s.kl, s.agreement, int(s.kl_positions)) for s in group.itertuples()]
        for _, group in rows[rows.kl_positions > 0].groupby("request_id", sort=False)
    ]
    return pooled(answers, seed)


def pooled(answers: Sequence[Sequence[Quality]], seed: int = 0) -> QualitySummary:
    """Summarises the quality of every request's answers. The interval is a percentile bootstrap
    over whole requests; the same answers and seed give the same result."""
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
    if len(sums) >= LEAST_ANSWERS:
        bounds = _bounds(sums, lambda drawn: drawn[..., 1].sum(1) / drawn[..., 0].sum(1), seed)
        low, high = float(bounds[0]), float(bounds[1])
    return QualitySummary(int(positions), float(kl / positions), low, high, float(same / positions))


def _bounds(
    values: NDArray[np.float64], statistic: Callable[[Any], Any], seed: int
) -> NDArray[np.float64]:
    """Returns the 95 % interval of a statistic of rows that are drawn with replacement."""
    count = len(values)
    drawn = np.random.default_rng(seed).integers(0, count, (QUALITY_RESAMPLES, count))
    bounds: NDArray[np.float64] = np.percentile(statistic(values[drawn]), [2.5, 97.5], axis=0)
    return bounds


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Returns the text as it is compared: in lower case, without punctuation and articles."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_of(output: str) -> str:
    """Returns the answer in what a model wrote: its first line that is not empty."""
    return next((line.strip() for line in output.splitlines() if line.strip()), "")


def f1(answer: str, right: Sequence[str]) -> float:
    """Returns the F1 of the best right answer, from 0 to 1; 0 if there is no right answer."""
    return max((_f1(normalised(answer).split(), normalised(r).split()) for r in right), default=0.0)


def exact(answer: str, right: Sequence[str]) -> float:
    """Returns 1 if the answer equals a right answer, else 0."""
    return float(any(normalised(answer) == normalised(r) for r in right))


def scored(sample: Sample, answer: str, right: Sequence[str]) -> Sample:
    """Returns the sample with F1 and exact match of its answer."""
    return replace(sample, f1=f1(answer, right), exact=exact(answer, right))


def _f1(answer: list[str], right: list[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    same = (Counter(answer) & Counter(right)).total()
    return 2 * same / (len(answer) + len(right))
