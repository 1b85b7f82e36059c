"""Provides chunk buffers that code on their way to and from a tier."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.transfer.chunks import ChunkBuffers
from cache_core.transfer.codec import Codec

# Raw chunks that wait beside the tier, at a time: enough for the threads, little memory.
_STAGED_BYTES = 8 << 20


@runtime_checkable
class Coding(Protocol):
    """Buffers that code on their way, with no raw chunk in between."""

    def copy_to_coded(self, addresses: Addresses, codec: Codec) -> bool:
        """Copies the chunks to ``addresses``, coded. Returns False where it can't with this codec:
        then nothing was copied."""

    def copy_from_coded(self, addresses: Addresses, codec: Codec) -> bool:
        """Decodes the chunks at ``addresses`` into these. Returns False where it can't with this
        codec: then nothing was copied."""


class CodedBuffers:
    """Buffers that give the raw chunks of ``place`` as coded ones to whoever copies them."""

    def __init__(self, place: ChunkBuffers, codec: Codec) -> None:
        self._place, self._codec = place, codec

    def __len__(self) -> int:
        return len(self._place)

    def pick(self, rows: Sequence[int]) -> CodedBuffers:
        return CodedBuffers(self._place.pick(rows), self._codec)

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        place, codec = self._place, self._codec
        if isinstance(place, Coding) and place.copy_to_coded(addresses, codec):
            return
        raw = place.flat()
        if raw is not None:
            codec.encode(addresses, raw)
            return
        with _staged(len(self), codec.raw_bytes) as (there, batches):
            for rows in batches:
                room = there[: len(rows)]
                place.pick(rows).copy_to(room)
                codec.encode(addresses[rows.start : rows.stop], room)

    def copy_from(self, addresses: Addresses) -> None:
        place, codec = self._place, self._codec
        if isinstance(place, Coding) and place.copy_from_coded(addresses, codec):
            return
        raw = place.flat()
        if raw is not None:
            codec.decode(raw, addresses)
            return
        with _staged(len(self), codec.raw_bytes) as (there, batches):
            for rows in batches:
                room = there[: len(rows)]
                codec.decode(room, addresses[rows.start : rows.stop])
                place.pick(rows).copy_from(room)


class DecodedBuffers:
    """Buffers that give the coded chunks in ``coded`` as raw ones to whoever copies them."""

    def __init__(self, coded: ChunkBuffers, codec: Codec) -> None:
        self.coded, self.codec = coded, codec

    def __len__(self) -> int:
        return len(self.coded)

    def pick(self, rows: Sequence[int]) -> DecodedBuffers:
        return DecodedBuffers(self.coded.pick(rows), self.codec)

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        flat = self.coded.flat()
        if flat is not None:
            self.codec.decode(addresses, flat)
            return
        with _staged(len(self), self.codec.coded_bytes) as (there, batches):
            for rows in batches:
                room = there[: len(rows)]
                self.coded.pick(rows).copy_to(room)
                self.codec.decode(addresses[rows.start : rows.stop], room)

    def copy_from(self, addresses: Addresses) -> None:
        flat = self.coded.flat()
        if flat is not None:
            self.codec.encode(flat, addresses)
            return
        with _staged(len(self), self.codec.coded_bytes) as (there, batches):
            for rows in batches:
                room = there[: len(rows)]
                self.codec.encode(room, addresses[rows.start : rows.stop])
                self.coded.pick(rows).copy_from(room)


class _Slabs(threading.local):
    """A slab for each thread: a fresh one costs more than what passes through it."""

    slab: _native.Slab | None = None


_slabs = _Slabs()


@contextmanager
def _staged(count: int, chunk_bytes: int) -> Iterator[tuple[Addresses, list[range]]]:
    """Yields the addresses of as many chunks as are staged at a time, and the rows that take turns
    there."""
    stride = -(-chunk_bytes // 64) * 64
    at_once = max(1, min(count, _STAGED_BYTES // stride))
    slab, _slabs.slab = _slabs.slab, None  # whoever comes in between gets another
    if slab is None or slab.nbytes < at_once * stride:
        slab = _native.Slab(at_once * stride)
    steps = np.arange(at_once, dtype=np.uint64) * np.uint64(stride)
    batches = [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]
    try:
        yield np.uint64(slab.address) + steps, batches
    finally:
        _slabs.slab = slab
