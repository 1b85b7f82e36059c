"""Says where chunks lie outside a tier: in an engine's paged KV, or flat memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import Addresses, KVLayout

if TYPE_CHECKING:
    from cache_core.transfer.codec import Codec


class ChunkBuffers(Protocol):
    """Buffers of ``len()`` chunks, which can be copied to and from flat host memory.

    Addresses are of ``chunk_bytes`` each, in the layout's order. The memory must outlive the call.
    """

    def __len__(self) -> int: ...

    def pick(self, rows: Sequence[int]) -> ChunkBuffers:
        """Returns the buffers of some of the chunks, in the order of ``rows``."""

    def flat(self) -> Addresses | None:
        """Returns the chunks' addresses if each is contiguous in host memory already, else None."""

    def copy_to(self, addresses: Addresses) -> None:
        """Copies chunk i to the memory at ``addresses[i]``."""

    def copy_from(self, addresses: Addresses) -> None:
        """Copies the memory at ``addresses[i]`` to chunk i."""


class FlatBuffers:
    """Buffers of chunks that are contiguous in host memory."""

    def __init__(self, addresses: Addresses, chunk_bytes: int, threads: int = 1) -> None:
        self._addresses = addresses
        self._sizes = np.full(len(addresses), chunk_bytes, dtype=np.uint64)
        self._threads = threads

    def __len__(self) -> int:
        return len(self._addresses)

    def pick(self, rows: Sequence[int]) -> FlatBuffers:
        chosen = self._addresses[np.asarray(rows, dtype=np.intp)]
        size = int(self._sizes[0]) if len(self._sizes) else 0
        return FlatBuffers(chosen, size, self._threads)

    def flat(self) -> Addresses | None:
        return self._addresses

    def copy_to(self, addresses: Addresses) -> None:
        _native.copy(addresses, self._addresses, self._sizes, self._threads)

    def copy_from(self, addresses: Addresses) -> None:
        _native.copy(self._addresses, addresses, self._sizes, self._threads)


class PagedBuffers:
    """Buffers of chunks inside an engine's KV, in host memory, described by ``_native.Paged``.

    ``slots`` is int64 ``[chunks, chunk_tokens]``: the engine's slot of each token, -1 to leave a
    token out. Raises ``IndexError`` on a move if a slot lies outside the engine's KV.
    """

    def __init__(
        self,
        paged: _native.Paged,
        slots: NDArray[np.int64],
        layout: KVLayout,
        threads: int = 1,
    ) -> None:
        if slots.ndim != 2 or slots.shape[1] != layout.chunk_tokens:
            raise ValueError(f"slots have shape {slots.shape}, not [n, {layout.chunk_tokens}]")
        self._paged = paged
        self._slots = np.ascontiguousarray(slots, dtype=np.int64)
        self._layout = layout
        self._threads = threads

    def __len__(self) -> int:
        return len(self._slots)

    def pick(self, rows: Sequence[int]) -> PagedBuffers:
        chosen = self._slots[np.asarray(rows, dtype=np.intp)]
        return PagedBuffers(self._paged, chosen, self._layout, self._threads)

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        _native.gather(self._paged, self._slots, addresses, self._layout.order, self._threads)

    def copy_from(self, addresses: Addresses) -> None:
        _native.scatter(self._paged, self._slots, addresses, self._layout.order, self._threads)

    def copy_to_coded(self, addresses: Addresses, codec: Codec) -> bool:
        """Copies the chunks to ``addresses``, coded. Returns False, and copies nothing, unless the
        codec's rows are heads of this KV."""
        if codec.items != self._layout.head_dim or codec.dtype != self._layout.dtype:
            return False
        order = self._layout.order
        _native.gather_coded(
            self._paged, self._slots, addresses, order, codec.dtype, codec.name, self._threads
        )
        return True

    def copy_from_coded(self, addresses: Addresses, codec: Codec) -> bool:
        """Decodes the chunks at ``addresses`` into these. Returns False, and copies nothing, unless
        the codec's rows are heads of this KV."""
        if codec.items != self._layout.head_dim or codec.dtype != self._layout.dtype:
            return False
        order = self._layout.order
        _native.scatter_coded(
            self._paged, self._slots, addresses, order, codec.dtype, codec.name, self._threads
        )
        return True
