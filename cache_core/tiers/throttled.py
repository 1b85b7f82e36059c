"""A tier made slow: what would this workload do on a slower disk or network?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from cache_core.place import Place
from cache_core.tiers.tier import Read, Tier
from cache_core.tiers.wrapper import Wrapper


class Throttled(Wrapper):
    """``tier`` with the bandwidth and latency of one device that all callers share.

    A call takes ``latency_s`` and the time of its chunks at the given bytes per second (None: as
    fast as the tier is), after whatever the device still has to do in that direction; what the
    tier needs itself counts towards it. Sleeps in the caller.
    """

    def __init__(
        self,
        tier: Tier,
        chunk_bytes: int,
        *,
        read_bytes_per_s: float | None = None,
        write_bytes_per_s: float | None = None,
        latency_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for rate in (read_bytes_per_s, write_bytes_per_s):
            if rate is not None and rate <= 0:
                raise ValueError(f"{rate} bytes per second would take for ever")
        super().__init__(tier)
        self._clock = clock
        self._sleep = sleep
        self._latency_s = latency_s
        self._reads = _Wire(chunk_bytes, read_bytes_per_s)
        self._writes = _Wire(chunk_bytes, write_bytes_per_s)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        began = self._clock()
        found = self._tier.contains(keys)
        if getattr(self._tier, "shared", False):  # it asks over the network
            self._until(began + self._latency_s)
        return found

    def read(self, keys: Sequence[bytes], place: Place | None) -> list[Read]:
        began = self._clock()
        found = self._tier.read(keys, place)
        # Who asks a shared tier without a place wants to know what it has.
        moved = 0 if getattr(self, "shared", False) and place is None else found.count(Read.HERE)
        self._until(self._reads.end(began, moved) + self._latency_s)
        return found

    def write(self, keys: Sequence[bytes], place: Place | None) -> list[bool]:
        began = self._clock()
        stored = self._tier.write(keys, place)
        self._until(self._writes.end(began, sum(stored)) + self._latency_s)
        return stored

    def place(self, keys: Sequence[bytes]) -> Place | None:
        """Chunks are asked for where they lie in order to be read from there."""
        began = self._clock()
        place = self._tier.place(keys)
        if place is not None:
            self._until(self._reads.end(began, len(keys)) + self._latency_s)
        return place

    def _until(self, end: float) -> None:
        left = end - self._clock()
        if left > 0:
            self._sleep(left)


class _Wire:
    """One direction of a device: transfers follow one another."""

    def __init__(self, chunk_bytes: int, bytes_per_s: float | None) -> None:
        self._seconds = 0.0 if bytes_per_s is None else chunk_bytes / bytes_per_s
        self._free_at = float("-inf")
        self._lock = threading.Lock()

    def end(self, began: float, chunks: int) -> float:
        """When a transfer of ``chunks`` that was asked for at ``began`` is through."""
        with self._lock:
            if not self._seconds or not chunks:
                return began
            self._free_at = max(self._free_at, began) + chunks * self._seconds
            return self._free_at
