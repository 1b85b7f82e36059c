"""KV in a byte an item: what a tier keeps of a chunk when it has a codec."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np

from cache_core import _native
from cache_core.layout import ITEM_BYTES, KVLayout
from cache_core.place import Addresses, Place

CodecName = Literal["none", "fp8", "int8"]
CODECS: tuple[str, ...] = get_args(CodecName)
ITEM_TYPES = ("float32", "bfloat16", "float16")
# Raw chunks that wait beside the tier, at a time: enough for the threads, little memory.
_STAGED_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Codec:
    """``rows`` rows of ``items`` items of ``dtype`` in a chunk, each item coded in one byte and
    each row with a float32 scale (see ``_native.gather_coded``).

    A row is ``items`` consecutive items of the chunk, so that each head of each token has its own
    scale where a chunk has heads of ``items``. Raises ``ValueError`` for a dtype that has no codec
    and for a chunk that is no whole number of rows; :meth:`of` for a name that is not known.
    """

    name: Literal["fp8", "int8"]
    dtype: Literal["float32", "bfloat16", "float16"]
    rows: int
    items: int
    threads: int = 1

    @classmethod
    def of(
        cls, name: str, dtype: str, chunk_bytes: int, items: int, threads: int = 1
    ) -> Codec | None:
        """None for ``none``."""
        if name not in CODECS:
            raise ValueError(f"codec {name!r} is not known; use one of {', '.join(CODECS)}")
        if name == "none":
            return None
        if dtype not in ITEM_TYPES:
            raise ValueError(
                f"codec {name} codes {', '.join(ITEM_TYPES)}; this KV is {dtype}, in a byte an item"
                " already"
            )
        row_bytes = items * ITEM_BYTES[dtype]
        if chunk_bytes < row_bytes or chunk_bytes % row_bytes:
            raise ValueError(f"a chunk of {chunk_bytes} bytes is no whole number of {items} items")
        known = cast(Literal["fp8", "int8"], name)
        item = cast(Literal["float32", "bfloat16", "float16"], dtype)
        return cls(known, item, chunk_bytes // row_bytes, items, threads)

    @classmethod
    def of_layout(cls, name: str, layout: KVLayout, threads: int = 1) -> Codec | None:
        """With a scale for each head of each token."""
        return cls.of(name, layout.dtype, layout.chunk_bytes, layout.head_dim, threads)

    @property
    def raw_bytes(self) -> int:
        """Of a chunk as the engine has it."""
        return self.rows * self.items * ITEM_BYTES[self.dtype]

    @property
    def coded_bytes(self) -> int:
        """Of a chunk as a tier keeps it."""
        return _native.coded_bytes(self.rows, self.items)

    def encode(self, coded: Addresses, raw: Addresses) -> None:
        """Raw chunks -> coded ones, in host memory."""
        _native.encode(coded, raw, self.rows, self.items, self.dtype, self.name, self.threads)

    def decode(self, raw: Addresses, coded: Addresses) -> None:
        """Coded chunks -> raw ones, in host memory."""
        _native.decode(raw, coded, self.rows, self.items, self.dtype, self.name, self.threads)


@runtime_checkable
class Coding(Protocol):
    """A place that codes on its way, with no raw chunk in between."""

    def copy_to_coded(self, addresses: Addresses, codec: Codec) -> bool:
        """False where it can't with this codec: then nothing was copied."""

    def copy_from_coded(self, addresses: Addresses, codec: Codec) -> bool:
        """Likewise."""


class CodedPlace:
    """The raw chunks of ``place``, as coded ones to whoever copies them."""

    def __init__(self, place: Place, codec: Codec) -> None:
        self._place, self._codec = place, codec

    def __len__(self) -> int:
        return len(self._place)

    def pick(self, rows: Sequence[int]) -> CodedPlace:
        return CodedPlace(self._place.pick(rows), self._codec)

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


class DecodedPlace:
    """Coded chunks that lie in ``coded``, as raw ones to whoever copies them."""

    def __init__(self, coded: Place, codec: Codec) -> None:
        self.coded, self.codec = coded, codec

    def __len__(self) -> int:
        return len(self.coded)

    def pick(self, rows: Sequence[int]) -> DecodedPlace:
        return DecodedPlace(self.coded.pick(rows), self.codec)

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
    """Addresses of as many chunks as are staged at a time, and the rows that take turns there."""
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
