"""What loads and stores came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TierCounters:
    """What one tier has done since the cache was made or its ``reset_counters()``.
    Times are of the calls, in seconds. ``promised_chunks`` were the tier's part of loaded hits, of
    which it gave ``read_chunks``. ``dropped_chunks`` were not written because too much was queued
    for the tier or it did not come back; ``suspensions`` count how often it was left out of
    look-ups for a while because it could not be read."""

    promised_chunks: int = 0
    read_chunks: int = 0
    read_s: float = 0.0
    written_chunks: int = 0
    write_s: float = 0.0
    evicted_chunks: int = 0
    failures: int = 0
    dropped_chunks: int = 0
    suspensions: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """Outcome of a load. ``chunks`` leading chunks are in place; ``by_tier`` splits them."""

    chunks: int
    by_tier: dict[str, int]
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stored:
    """Outcome of a store: chunks and bytes that the engine gave to any tier, and seconds spent."""

    chunks: int
    bytes: int
    seconds: float
