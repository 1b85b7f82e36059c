"""Where a series of runs changes its level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEAST_RUNS = 6
_LEAST_SEGMENT = 3
_NORMAL_MAD = 1.4826


def change_points(values: Sequence[float]) -> list[int]:
    """Indices at which a new level begins, ascending; none for fewer than six values.

    ``values`` are on a scale on which noise is alike everywhere, such as logarithms of times.
    PELT (Killick, Fearnhead, Eckley, "Optimal detection of changepoints with a linear
    computational cost", JASA 107, 2012) over the cost of a shifted mean, in the library ruptures.
    The penalty is 3 sigma^2 ln n (over BIC's 2, as short segments overfit), with sigma from the
    median absolute difference of neighbours, which a change of level hardly moves.
    """
    n = len(values)
    if n < LEAST_RUNS:
        return []
    array = np.asarray(values, dtype=np.float64)
    steps = np.diff(array)
    sigma = _NORMAL_MAD * float(np.median(np.abs(steps))) / math.sqrt(2)
    if sigma == 0:
        # Without noise each step is a change; a shift smaller than rounding is none.
        return [i + 1 for i, step in enumerate(steps) if abs(step) > 1e-9]
    import ruptures

    search = ruptures.Pelt(model="l2", min_size=_LEAST_SEGMENT, jump=1).fit(array.reshape(-1, 1))
    return [int(i) for i in search.predict(pen=3 * sigma**2 * math.log(n))[:-1]]
