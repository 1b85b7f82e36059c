"""Provides chunk buffers that code on their way to and from a tier."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.transfer.chunks import ChunkBuffers, SlotBuffers, addresses_from
from cache_core.transfer.codec import Codec

# Raw chunks that wait beside the tier, at a time: enough for the threads, little memory.
_STAGED_BYTES = 8 << 20


class _Recoded:
    """Buffers that give the chunks of ``inner`` in another form to whoever copies them. Chunks that
    are not flat in host memory pass through staging memory, ``staged_bytes`` each."""

    def __init__(self, inner: ChunkBuffers, codec: Codec, staged_bytes: int) -> None:
        self.inner, self.codec, self._staged_bytes = inner, codec, staged_bytes

    def __len__(self) -> int:
        return len(self.inner)

    def flat(self) -> Addresses | None:
        return None

    def _recode(
        self, code: Callable[[Addresses, Addresses], None], addresses: Addresses, out: bool
    ) -> None:
        """Calls ``code(addresses, theirs)`` for all chunks, or (not ``out``) the other way
        round."""
        flat = self.inner.flat()
        if flat is not None:
            code(*((addresses, flat) if out else (flat, addresses)))
            return
        with _staged(len(self), self._staged_bytes) as (there, batches):
            for rows in batches:
                staging, chunks = there[: len(rows)], addresses[rows.start : rows.stop]
                if out:
                    self.inner.pick(rows).copy_to(staging)
                    code(chunks, staging)
                else:
                    code(staging, chunks)
                    self.inner.pick(rows).copy_from(staging)


class CodedBuffers(_Recoded):
    """Buffers that give the raw chunks of ``inner`` as coded ones to whoever copies them."""

    def __init__(self, inner: ChunkBuffers, codec: Codec) -> None:
        super().__init__(inner, codec, codec.raw_bytes)

    def pick(self, rows: Sequence[int]) -> CodedBuffers:
        return CodedBuffers(self.inner.pick(rows), self.codec)

    def copy_to(self, addresses: Addresses) -> None:
        inner, codec = self.inner, self.codec
        if not (isinstance(inner, SlotBuffers) and inner.move_coded(addresses, codec, out=True)):
            self._recode(codec.encode, addresses, out=True)

    def copy_from(self, addresses: Addresses) -> None:
        inner, codec = self.inner, self.codec
        if not (isinstance(inner, SlotBuffers) and inner.move_coded(addresses, codec, out=False)):
            self._recode(codec.decode, addresses, out=False)


class DecodedBuffers(_Recoded):
    """Buffers that give the coded chunks of ``inner`` as raw ones to whoever copies them."""

    def __init__(self, inner: ChunkBuffers, codec: Codec) -> None:
        super().__init__(inner, codec, codec.coded_bytes)

    def pick(self, rows: Sequence[int]) -> DecodedBuffers:
        return DecodedBuffers(self.inner.pick(rows), self.codec)

    def copy_to(self, addresses: Addresses) -> None:
        self._recode(self.codec.decode, addresses, out=True)

    def copy_from(self, addresses: Addresses) -> None:
        self._recode(self.codec.encode, addresses, out=False)


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
    batches = [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]
    try:
        yield addresses_from(slab.address, at_once, stride), batches
    finally:
        _slabs.slab = slab
