"""Copies of chunks in memory of our own, for tiers that may take their time."""

from __future__ import annotations

import numpy as np

from cache_core import _native
from cache_core.place import Addresses, FlatPlace, Place
from cache_core.transfer.codec import DecodedPlace

_BYTES = 64 << 20
_PAGE = 4096


def staged_chunks(chunk_bytes: int) -> int:
    """How many chunks are staged at a time, between a tier and what they come from or go to."""
    return max(1, _BYTES // _stride(chunk_bytes))


class Staged:
    """Room for ``chunks`` chunks of ``chunk_bytes``, for as long as the object lives. Raises
    ``MemoryError``."""

    def __init__(self, chunks: int, chunk_bytes: int) -> None:
        stride = _stride(chunk_bytes)
        self._slab = _native.Slab(chunks * stride)
        self._chunk_bytes, self._stride = chunk_bytes, stride
        self.chunks = chunks
        steps = np.arange(chunks, dtype=np.uint64) * np.uint64(stride)
        self.addresses: Addresses = np.uint64(self._slab.address) + steps

    def copy(self, place: Place) -> Place:
        """Where a copy of the chunks is now. Coded chunks stay coded."""
        addresses = self.addresses[: len(place)]
        if isinstance(place, DecodedPlace) and place.codec.coded_bytes <= self._stride:
            place.coded.copy_to(addresses)
            coded = FlatPlace(addresses, place.codec.coded_bytes)
            return DecodedPlace(coded, place.codec)
        place.copy_to(addresses)
        return FlatPlace(addresses, self._chunk_bytes)

    def place(self, chunks: int) -> Place:
        """The first chunks of the room."""
        return FlatPlace(self.addresses[:chunks], self._chunk_bytes)


def _stride(chunk_bytes: int) -> int:
    """Bytes from one staged chunk to the next, page by page."""
    return -(-chunk_bytes // _PAGE) * _PAGE
