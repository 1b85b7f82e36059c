"""Compares one cell with the cell without reuse, request by request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.sample import done

RESAMPLES = 1000
MIN_REQUESTS = 5
"""Below this many requests a bootstrap interval is too narrow to be believed: none is given."""


@dataclass(frozen=True, slots=True)
class Speedup:
    """The speed-up of a cell. ``ratio`` is TTFT p50 without reuse over TTFT p50 with it; ``low``
    and ``high`` bound its 95 % interval, None with fewer than five requests."""

    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class OutputChanges:
    """The number of pairs of outputs that could be compared, and of those that differ."""

    compared: int = 0
    different: int = 0

    @property
    def identical(self) -> bool | None:
        """Returns whether no compared outputs differ; None if nothing could be compared."""
        return self.different == 0 if self.compared else None


def pair_rows(off: Any, cell: Any) -> Any:
    """Returns a DataFrame of the requests that both completed, joined by repeat and request, in
    that order; columns as of :func:`reports.sample.frame`, with ``_off`` and ``_cell`` after their
    names."""
    keys = ["repeat", "request_id"]
    pairs = done(off).merge(done(cell), on=keys, suffixes=("_off", "_cell"))
    return pairs.sort_values(keys, ignore_index=True)


def ttft_speedup(pairs: Any, seed: int = 0) -> Speedup:
    """Returns the ratio of the TTFT medians and its interval. The same pairs and seed give the same
    answer.

    The interval is a percentile bootstrap that draws whole requests, off and cell and all repeats
    together. It draws hits and misses apart: which requests hit is settled by the workload and the
    tiers, and is no noise.
    """
    pairs = pairs[(pairs.output_tokens_off > 0) & (pairs.output_tokens_cell > 0)]
    if pairs.empty or (pairs.ttft_cell <= 0).any():  # a clock too coarse to divide by
        return Speedup()
    ratio = float(pairs.ttft_off.median() / pairs.ttft_cell.median())
    if pairs.request_id.nunique() < MIN_REQUESTS:
        return Speedup(ratio)
    low, high = np.percentile(list(_resampled_ratios(pairs, seed)), [2.5, 97.5])
    return Speedup(ratio, float(low), float(high))


def compare_outputs(pairs: Any) -> OutputChanges:
    """Compares output ids, where both sides report theirs and at least one made any."""
    off, cell = pairs.output_ids_off, pairs.output_ids_cell
    told = (off.map(len) > 0) | (pairs.output_tokens_off == 0)
    told &= (cell.map(len) > 0) | (pairs.output_tokens_cell == 0)
    told &= (off.map(len) > 0) | (cell.map(len) > 0)
    return OutputChanges(int(told.sum()), int((off[told] != cell[told]).sum()))


def _resampled_ratios(pairs: Any, seed: int) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    grouped = pairs.groupby("request_id", sort=False)
    # [requests, off of each repeat, then cell of each], with NaN where a repeat is missing
    wide = pairs.assign(nth=grouped.cumcount()).pivot(
        index="request_id", columns="nth", values=["ttft_off", "ttft_cell"]
    )
    hit = (pairs.hits_cell > 0).groupby(pairs.request_id, sort=False).sum()
    wide = wide.loc[hit.index]
    off, cell = wide["ttft_off"].to_numpy(), wide["ttft_cell"].to_numpy()
    strata = [np.flatnonzero(hit == count) for count in sorted(hit.unique())]
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(stratum, stratum.size) for stratum in strata])
        yield np.nanmedian(off[drawn]) / np.nanmedian(cell[drawn])
