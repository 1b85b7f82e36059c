"""A distribution in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, percentiles by linear interpolation, and extremes of ``n`` values, in the unit of the
    values. Everything but ``n`` is None if there were none."""

    n: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    min: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of any number of values, also of none."""
        if len(values) == 0:
            return cls()
        array = np.asarray(values, dtype=np.float64)
        p50, p90, p99 = (float(p) for p in np.percentile(array, [50, 90, 99]))
        return cls(
            n=array.size,
            mean=float(array.mean()),
            p50=p50,
            p90=p90,
            p99=p99,
            min=float(array.min()),
            max=float(array.max()),
        )
