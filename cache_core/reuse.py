"""When chunks come back, and how many are in use at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.references import Numbers, References


@dataclass(frozen=True)
class ReuseTimes:
    """``counts[i]`` uses came more than ``edges[i]`` and at most ``edges[i + 1]`` after the
    chunk's use before, in requests or seconds; ``edges`` double, the first bin starts below all.
    ``first`` uses had none before; ``repeats`` stood in the same request already."""

    unit: str
    edges: NDArray[np.float64]
    counts: Numbers
    first: int
    repeats: int


class Reuse:
    """One trace's reuse in time. Keeps 16 bytes per reference."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._last = _native.last_uses(references.ids, references.offsets)
        lengths = np.diff(references.offsets)
        self._now = np.repeat(np.arange(len(references), dtype=np.int64), lengths)

    def in_requests(self) -> ReuseTimes:
        """1 is the next request."""
        return self._times("requests", np.arange(len(self._references), dtype=np.float64), 1.0)

    def in_seconds(self) -> ReuseTimes:
        """Raises ``ValueError`` if the trace has no arrivals."""
        return self._times("seconds", self._arrivals(), 0.001)

    def working_set(self, window_s: float) -> Numbers:
        """Distinct chunks in each window of so many seconds, one after another from the first
        arrival on, ``[windows]``. Raises ``ValueError`` without arrivals or for no window."""
        if window_s <= 0:
            raise ValueError(f"a window of {window_s} s is not possible; it must be above 0")
        arrivals = self._arrivals()
        if not len(arrivals):
            return np.zeros(0, np.int64)
        return self._distinct(((arrivals - arrivals[0]) // window_s).astype(np.int64))

    def working_set_of(self, requests: int) -> Numbers:
        """The same with windows of so many requests. Raises ``ValueError`` if below 1."""
        if requests < 1:
            raise ValueError(f"a window of {requests} requests is not possible")
        return self._distinct(np.arange(len(self._references), dtype=np.int64) // requests)

    def _distinct(self, window: Numbers) -> Numbers:
        """A use is its chunk's first in a window if the one before lies in an earlier window."""
        if not len(window):
            return np.zeros(0, np.int64)
        here = window[self._now]
        before = np.where(self._last < 0, -1, window[self._last])
        return np.bincount(here[before < here], minlength=int(window[-1]) + 1)

    def _times(self, unit: str, clock: NDArray[np.float64], least: float) -> ReuseTimes:
        again = (self._last >= 0) & (self._last < self._now)
        apart = clock[self._now[again]] - clock[self._last[again]]
        longest = float(apart.max()) if len(apart) else least
        edges: Sequence[float] = [-np.inf, least]
        while edges[-1] < longest:
            edges = [*edges, edges[-1] * 2]
        bounds = np.array(edges)
        bins = np.searchsorted(bounds, apart, side="left") - 1
        counts = np.bincount(bins, minlength=len(bounds) - 1).astype(np.int64)
        first = int((self._last < 0).sum())
        return ReuseTimes(unit, bounds, counts, first, int((self._last == self._now).sum()))

    def _arrivals(self) -> NDArray[np.float64]:
        arrivals = self._references.arrivals
        if arrivals is None:
            raise ValueError("the trace has no arrival times")
        return arrivals
