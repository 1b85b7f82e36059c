"""One cell against the cell without reuse, request by request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.sample import Sample

RESAMPLES = 1000
MIN_REQUESTS = 5
"""Below this many requests a bootstrap interval is too narrow to be believed: none is given."""

Pair = tuple[Sample, Sample]


@dataclass(frozen=True, slots=True)
class Speedup:
    """``ratio`` is TTFT p50 without reuse over TTFT p50 with it; ``low`` and ``high`` bound its
    95 % interval, None with fewer than five requests."""

    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class OutputChanges:
    """How many pairs of outputs could be compared, and how many of them differ."""

    compared: int = 0
    different: int = 0

    @property
    def identical(self) -> bool | None:
        """None if nothing could be compared."""
        return self.different == 0 if self.compared else None


def pair_samples(off: Sequence[Sample], cell: Sequence[Sample]) -> list[Pair]:
    """``(off, cell)`` samples of the same repeat and request, both completed, in a fixed order."""
    without = {(s.repeat, s.request_id): s for s in off if s.completed}
    having = {(s.repeat, s.request_id): s for s in cell if s.completed}
    return [(without[key], having[key]) for key in sorted(without.keys() & having.keys())]


def ttft_speedup(pairs: Sequence[Pair], seed: int = 0) -> Speedup:
    """The ratio of the medians and its interval. The same pairs and seed give the same answer.

    The interval is a percentile bootstrap that draws whole requests, off and cell and all repeats
    together. It draws hits and misses apart: which requests hit is settled by the workload and
    the tiers, and is no noise.
    """
    pairs = [pair for pair in pairs if all(s.output_tokens for s in pair)]
    if not pairs:
        return Speedup()
    if any(cell.ttft_s <= 0 for _, cell in pairs):  # a clock too coarse to divide by
        return Speedup()
    without, having = np.median([(off.ttft_s, cell.ttft_s) for off, cell in pairs], axis=0)
    ratio = float(without / having)
    by_request: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_request[pair[0].request_id].append(pair)
    if len(by_request) < MIN_REQUESTS:
        return Speedup(ratio)
    low, high = np.percentile(list(_resampled_ratios(list(by_request.values()), seed)), [2.5, 97.5])
    return Speedup(ratio, float(low), float(high))


def compare_outputs(pairs: Sequence[Pair]) -> OutputChanges:
    """Compares output ids, where both sides report theirs and at least one made any."""
    compared = [
        off.output_ids == cell.output_ids
        for off, cell in pairs
        if _reports_ids(off) and _reports_ids(cell) and (off.output_ids or cell.output_ids)
    ]
    return OutputChanges(len(compared), compared.count(False))


def _resampled_ratios(requests: Sequence[Sequence[Pair]], seed: int) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    # [requests, repeats, (off, cell)], with NaN where a repeat is missing
    repeats = max(len(pairs) for pairs in requests)
    ttft = np.full((len(requests), repeats, 2), np.nan)
    strata: defaultdict[int, list[int]] = defaultdict(list)
    for i, pairs in enumerate(requests):
        ttft[i, : len(pairs)] = [(off.ttft_s, cell.ttft_s) for off, cell in pairs]
        strata[sum(cell.hits > 0 for _, cell in pairs)].append(i)
    members: list[NDArray[np.int64]] = [np.array(strata[hits]) for hits in sorted(strata)]
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(member, member.size) for member in members])
        values = ttft[drawn].reshape(-1, 2)
        values = values[~np.isnan(values[:, 0])]
        off, cell = np.median(values, axis=0)
        yield off / cell


def _reports_ids(sample: Sample) -> bool:
    return bool(sample.output_ids) or sample.output_tokens == 0
