"""One measured figure with its spread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from lmcache_cli.errors import EXIT_FAILED, UserError


class ProbeError(UserError):
    """A call that was to be measured failed: there is no figure, and no probe file."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True, slots=True)
class Figure:
    """Median, smallest and largest of ``n`` repeats, in ``unit``."""

    median: float
    low: float
    high: float
    n: int
    unit: str


def rates(run: Callable[[], int], repeats: int) -> Figure:
    """Bytes per second of ``run``, which returns how many bytes it moved; the first call, which
    warms up, does not count."""
    run()
    values = []
    for _ in range(repeats):
        began = time.perf_counter()
        moved = run()
        values.append(moved / (time.perf_counter() - began))
    return Figure(median(values), min(values), max(values), repeats, "B/s")


def seconds(run: Callable[[], None], repeats: int) -> Figure:
    """Seconds per call of ``run``, after one call that does not count."""
    run()
    values = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        values.append(time.perf_counter() - began)
    return Figure(median(values), min(values), max(values), repeats, "s")
