"""When requests arrive."""

from __future__ import annotations

from itertools import accumulate

from workloads.draw import Draw


def arrival_times(count: int, rate: float | None, draw: Draw) -> list[float]:
    """Seconds since the start of the run, never falling.

    Without a rate (closed loop) all are 0: the order of the list is the order of sending. With a
    rate in requests per second (open loop) they are a Poisson process.
    """
    if rate is None:
        return [0.0] * count
    return list(accumulate(draw.exponential() / rate for _ in range(count)))
