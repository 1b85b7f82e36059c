"""The knobs of all workloads, and when requests arrive."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import accumulate

from workloads.draw import Draw


def arrival_times(count: int, rate: float | None, draw: Draw) -> list[float]:
    """Returns the arrivals in seconds since the start of the run, never falling.

    Without a rate (closed loop) all are 0: the order of the list is the order of sending. With a
    rate in requests per second (open loop) they are a Poisson process.
    """
    if rate is None:
        return [0.0] * count
    return list(accumulate(draw.exponential() / rate for _ in range(count)))


ORDERS = ("retrieved", "stable")
"""The orders of a prompt's passages: as they were drawn, or the most popular first."""
_LEAST = {"context_tokens": 2}  # a BOS token and one of text; of other numbers 1


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of all workloads: what to generate. Each workload reads the knobs that it knows;
    lengths are exact, in tokens.

    ``requests`` overrides a workload's own number. ``rate`` (requests per second) makes arrivals an
    open loop. ``seed`` decides all that is drawn: questions, popularity, arrivals; the texts are
    the corpus's. Raises ``ValueError``, one line that names the field.
    """

    context_tokens: int = 2000
    documents: int = 4
    requests: int | None = None
    questions: int = 3
    question_tokens: int = 64
    output_tokens: int = 16
    passages: int = 4
    passage_tokens: int = 480
    corpus_passages: int = 64
    zipf: float = 1.0
    order: str = "retrieved"
    system_tokens: int = 128
    sessions: int = 4
    rounds: int = 4
    reply_tokens: int = 96
    result_tokens: int = 256
    seed: int = 0
    rate: float | None = None

    def __post_init__(self) -> None:
        for knob in fields(self):
            if type(knob.default) is int and knob.name != "seed":
                _check_count(knob.name, getattr(self, knob.name), _LEAST.get(knob.name, 1))
        if self.order not in ORDERS:
            raise ValueError(f"order: {self.order!r} is not known; use one of {', '.join(ORDERS)}")
        if self.requests is not None:
            _check_count("requests", self.requests, 1)
        if type(self.seed) is not int:
            raise ValueError(f"seed: {self.seed!r} is not a whole number")
        if not (math.isfinite(self.zipf) and self.zipf >= 0):
            raise ValueError(f"zipf: {self.zipf} must be a finite number of at least 0")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate: {self.rate} must be a finite number above 0 (requests/s)")
        if self.passages > self.corpus_passages:
            raise ValueError(
                f"passages: {self.passages} different ones can't be drawn from corpus_passages"
                f" = {self.corpus_passages}; lower one or raise the other"
            )


def _check_count(name: str, value: int, least: int) -> None:
    if type(value) is not int:
        raise ValueError(f"{name}: {value!r} is not a whole number")
    if value < least:
        raise ValueError(f"{name}: {value} is too small; it must be at least {least}")
