"""Codes KV in a byte an item: what a tier keeps of a chunk when it has a codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from cache_core import _native
from cache_core.layout import ITEM_BYTES, Addresses, KVLayout

CodecName = Literal["none", "fp8", "int8"]
CODECS: tuple[str, ...] = get_args(CodecName)
ITEM_TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec for chunks of ``rows`` rows of ``items`` items of ``dtype``: each item is coded in
    one byte and each row with a float32 scale (see ``_native.gather_coded``).

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
        """Makes the codec ``name`` for chunks of ``chunk_bytes``; returns None for ``none``."""
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
        """Makes the codec ``name`` with a scale for each head of each token; None for ``none``."""
        return cls.of(name, layout.dtype, layout.chunk_bytes, layout.head_dim, threads)

    @property
    def raw_bytes(self) -> int:
        """Returns the bytes of a chunk as the engine has it."""
        return self.rows * self.items * ITEM_BYTES[self.dtype]

    @property
    def coded_bytes(self) -> int:
        """Returns the bytes of a chunk as a tier keeps it."""
        return _native.coded_bytes(self.rows, self.items)

    def encode(self, coded: Addresses, raw: Addresses) -> None:
        """Codes raw chunks, in host memory."""
        _native.encode(coded, raw, self.rows, self.items, self.dtype, self.name, self.threads)

    def decode(self, raw: Addresses, coded: Addresses) -> None:
        """Decodes coded chunks to raw ones, in host memory."""
        _native.decode(raw, coded, self.rows, self.items, self.dtype, self.name, self.threads)
