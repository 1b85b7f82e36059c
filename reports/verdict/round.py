"""One round of one cell: what a verdict is about, in values that can be compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reports.sample import TIERS, Sample, columns_of, succeeded, times

TIMES = ("ttft", "ttft_from_send", "itl", "tpot", "e2e", "lookup", "load", "prefill")
RATES = ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s")
COUNTERS = (
    "n",
    "failed",
    "prompt_tokens",
    *(f"hit_tokens.{tier}" for tier in TIERS),
    "recomputed_tokens",
    "bytes_loaded",
    "bytes_stored",
    "evicted_chunks",
)
"""The counters of a round. The first three say whether the same was asked and answered."""
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Round:
    """The requests of one cell, served once.

    ``times`` has the values of single requests (of gaps between tokens for ``itl``), in seconds;
    ``known`` what comes as one number, by metric (``throughput.requests_per_s``, or ``ttft.p50`` of
    a tool that keeps no more than that). ``counters`` are those of :data:`COUNTERS` that are known.
    Rounds of one ``sample`` share what the machine did then: a day's date, or a file's name where
    it does not tell the day; ``""`` for rounds that ran in turns.
    """

    n: int
    failed: int
    times: Mapping[str, Sequence[float] | NDArray[np.float64]] = field(default_factory=dict)
    known: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    hit_rate: float | None = None
    sample: str = ""

    def value(self, metric: str) -> float | None:
        """Returns the value of a metric as in :func:`is_metric`, or None where the round does not
        have it."""
        if metric == "hit_rate":
            return self.hit_rate
        if metric in self.counters:
            return float(self.counters[metric])
        if metric in self.known:
            return self.known[metric]
        name, _, statistic = metric.partition(".")
        values = self.times.get(name, ())
        if not len(values):
            return None
        if statistic == "mean":
            return float(np.mean(values))
        return float(np.percentile(values, share_below(statistic) * 100))

    def count(self, metric: str) -> int:
        """Returns how many values the metric summarises in this round."""
        values = self.times.get(metric.partition(".")[0])
        return self.n if values is None else len(values)


def round_of(samples: Sequence[Sample], busy_s: float | None, evicted: int | None = None) -> Round:
    """Makes a round from the samples of one cell and repeat, the seconds it was busy, and the
    chunks that its tiers evicted (None: unknown)."""
    rows = columns_of(samples)
    good = succeeded(rows)
    n, failed = int(good.sum()), int((~good).sum())

    def total(name: str) -> int:
        return int(np.nansum(np.asarray(rows[name])[good]))

    prompt, output, hits = total("prompt_tokens"), total("output_tokens"), total("hits")
    counters = {
        "n": n,
        "failed": failed,
        "prompt_tokens": prompt,
        "recomputed_tokens": prompt - hits + total("selected_tokens"),
        "bytes_loaded": total("bytes_loaded"),
        "bytes_stored": total("bytes_stored"),
    }
    counters |= {f"hit_tokens.{tier}": total(f"hit_{tier}") for tier in TIERS}
    if evicted is not None:
        counters["evicted_chunks"] = evicted
    known = {}
    if busy_s is not None and busy_s > 0:
        totals = zip(RATES, (n, prompt, output), strict=True)
        known = {f"throughput.{name}": amount / busy_s for name, amount in totals}
    values = times(rows)
    return Round(
        n=n,
        failed=failed,
        times={name: values[name] for name in TIMES},
        known=known,
        counters=counters,
        hit_rate=hits / prompt if prompt else None,
    )


def is_metric(name: str) -> bool:
    """Returns whether a round can have the metric: ``ttft.p50``, ``e2e.mean``,
    ``throughput.requests_per_s``, ``hit_rate``, or a counter."""
    first, _, rest = name.partition(".")
    if name == "hit_rate" or name in COUNTERS:
        return True
    if first == "throughput":
        return rest in RATES
    return first in TIMES and (rest == "mean" or 0 < share_below(rest) < 1)


def share_below(statistic: str) -> float:
    """Returns the share below a percentile: ``p99`` -> 0.99; 0 for what is no percentile."""
    match = _PERCENTILE.fullmatch(statistic)
    return float(match[1]) / 100 if match else 0.0


def measured_by_clock(metric: str) -> bool:
    """Returns whether noise is to be expected in the metric."""
    return metric != "hit_rate" and metric not in COUNTERS
