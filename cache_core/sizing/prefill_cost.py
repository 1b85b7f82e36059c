"""Estimates what prefill costs: a formula, fitted to what was seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """The seconds to prefill ``n`` new tokens after ``m`` that are there: ``a + b n + c n (m +
    n/2)``. ``a`` is a step's fixed cost, ``b`` the work per token, ``c`` attention's per pair of
    tokens."""

    a: float
    b: float
    c: float

    def seconds(self, new: int, cached: int = 0) -> float:
        """Returns the seconds of one request's prefill alone."""
        return self.a + self.saved(new, cached)

    def saved(self, new: int, cached: int = 0) -> float:
        """Returns the seconds saved by not computing these tokens: a step's fixed cost stays."""
        return self.b * new + self.c * new * (cached + new / 2)

    def each(self, new: Tokens, cached: Tokens) -> NDArray[np.float64]:
        """Returns the seconds of many requests' prefill, each alone, ``[n]``."""
        return self.a + self.b * new + self.c * new * (cached + new / 2)


def fit(features: NDArray[np.float64], seconds: NDArray[np.float64]) -> PrefillCost | None:
    """Fits the cost of prefill to what was seen. ``features`` is ``[n, 3]``: 1, tokens, pairs.
    Returns None if there is nothing to fit."""
    found = nonnegative_fit(features, seconds)
    return None if found is None else PrefillCost(*map(float, found))


def nonnegative_fit(
    features: NDArray[np.float64], seconds: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Fits least squares of relative errors with no coefficient below zero: ``features`` ``[n, k]``
    to coefficients ``[k]``, k small. Returns None if there is nothing to fit. Exact: tries every
    set of coefficients."""
    usable = seconds > 0
    if not usable.any():
        return None
    weight = 1 / seconds[usable]
    x, y = features[usable] * weight[:, None], np.ones(int(usable.sum()))
    width = features.shape[1]
    best: tuple[float, NDArray[np.float64]] | None = None
    for size in range(1, width + 1):
        for chosen in combinations(range(width), size):
            columns = list(chosen)
            found = np.linalg.lstsq(x[:, columns], y, rcond=None)[0]
            if (found < 0).any():
                continue
            error = float(np.square(x[:, columns] @ found - y).sum())
            if best is None or error < best[0]:
                whole = np.zeros(width)
                whole[columns] = found
                best = (error, whole)
    return None if best is None else best[1]


LEAST_PRICED_TOKENS = 16
"""Steps of fewer tokens decode: they say nothing about the cost of prefill."""


class PrefillWatch:
    """Fits the cost of prefill to the latest steps of an engine that prefills in batches."""

    def __init__(self, keep: int = 512) -> None:
        self._rows: deque[tuple[float, float, float, float]] = deque(maxlen=keep)
        self._fitted: PrefillCost | None = None
        self._stale = False

    def saw(self, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """Records that one step computed ``(new, cached)`` tokens of each of its requests."""
        tokens = sum(new for new, _ in parts)
        if tokens >= LEAST_PRICED_TOKENS and seconds > 0:
            pairs = sum(new * (cached + new / 2) for new, cached in parts)
            self._rows.append((1.0, float(tokens), pairs, seconds))
            self._stale = True

    def cost(self) -> PrefillCost | None:
        """Returns the fitted cost of prefill; None until two steps were seen."""
        if self._stale and len(self._rows) > 1:
            rows = np.array(self._rows)
            self._fitted = fit(rows[:, :3], rows[:, 3])
            self._stale = False
        return self._fitted


class Savings:
    """The seconds of prefill that loading spared, priced by what the same engine's steps cost."""

    def __init__(self) -> None:
        self._watch = PrefillWatch()
        self._unpriced: list[tuple[int, int, float]] = []

    def saw(self, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """Records that one step computed ``(new, cached)`` tokens of each of its requests."""
        self._watch.saw(parts, seconds)

    def loaded(self, new: int, cached: int, seconds: float) -> None:
        """Records that ``new`` tokens after ``cached`` were loaded in ``seconds``, not computed."""
        self._unpriced.append((new, cached, seconds))

    def take(self) -> float:
        """Returns the seconds saved since the last call; kept back until a price is known."""
        cost = self._watch.cost() if self._unpriced else None
        if cost is None:
            return 0.0
        saved = sum(max(0.0, cost.saved(n, m) - load) for n, m, load in self._unpriced)
        self._unpriced.clear()
        return saved
