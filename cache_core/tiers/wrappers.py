"""Wraps tiers: coded in a byte an item, or slower on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers
from cache_core.transfer.codec import Codec
from cache_core.transfer.coded import CodedBuffers, DecodedBuffers


class Wrapper(Tier):
    """A tier like ``tier``, to be changed in some of what it does. All else is the tier's own: also
    what not every tier has, such as ``sync``."""

    def __init__(self, tier: Tier) -> None:
        self.name: str = tier.name
        self.capacity: int | None = tier.capacity
        self.shared, self.in_memory = tier.shared, tier.in_memory
        self._tier = tier

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        return self._tier.keeps_time

    @property
    def counters(self) -> Any:
        return self._tier.counters

    def recovered(self) -> list[bytes]:
        return self._tier.recovered()

    def __getattr__(self, name: str) -> Any:
        if name == "_tier":  # not made yet: a copy that is being unpickled, say
            raise AttributeError(name)
        return getattr(self._tier, name)

    def __len__(self) -> int:
        return len(self._tier)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return self._tier.contains(keys)

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return self._tier.read(keys, place)

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        return self._tier.write(keys, place)

    def discard(self, keys: Sequence[bytes]) -> None:
        self._tier.discard(keys)

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        return self._tier.place(keys)

    def close(self) -> None:
        self._tier.close()


class CodedTier(Wrapper):
    """A tier with ``tier``'s chunks of ``codec.coded_bytes``, for callers whose chunks are raw.

    Its keys must be of a namespace that names the codec: raw and coded chunks, or two codecs', must
    never be taken for one another. Chunks that go from one tier of the same codec to another stay
    as they are.
    """

    def __init__(self, tier: Tier, codec: Codec) -> None:
        super().__init__(tier)
        self.codec = codec

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return self._tier.read(keys, self._coded(place))

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        return self._tier.write(keys, self._coded(place))

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        place = self._tier.place(keys)
        return None if place is None else DecodedBuffers(place, self.codec)

    def _coded(self, place: ChunkBuffers | None) -> ChunkBuffers | None:
        if place is None:
            return None
        if isinstance(place, DecodedBuffers) and place.codec == self.codec:
            return place.inner
        return CodedBuffers(place, self.codec)


class Throttled(Wrapper):
    """A tier like ``tier``, with the bandwidth and latency of one device that all callers share.

    A call takes ``latency_s`` and the time of its chunks at the given bytes per second (None: as
    fast as the tier is), after whatever the device still has to do in that direction; what the tier
    needs itself counts towards it. Sleeps in the caller.
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
        if self.shared:  # it asks over the network
            self._until(began + self._latency_s)
        return found

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        began = self._clock()
        found = self._tier.read(keys, place)
        # Who asks a shared tier without buffers wants to know what it has.
        moved = 0 if self.shared and place is None else found.count(Read.HERE)
        self._until(self._reads.end(began, moved) + self._latency_s)
        return found

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        began = self._clock()
        stored = self._tier.write(keys, place)
        self._until(self._writes.end(began, sum(stored)) + self._latency_s)
        return stored

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        """Returns buffers of held chunks in the time of a read: they are asked for to be read."""
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
        """Returns when a transfer of ``chunks`` that was asked for at ``began`` is through."""
        with self._lock:
            if not self._seconds or not chunks:
                return began
            self._free_at = max(self._free_at, began) + chunks * self._seconds
            return self._free_at
