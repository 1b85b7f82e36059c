"""Says where chunks lie outside a tier: in an engine's paged KV, or flat memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import Addresses, KVLayout

if TYPE_CHECKING:
    from cache_core.transfer.codec import Codec


def addresses_from(start: int, count: int, stride: int) -> Addresses:
    """Returns ``count`` addresses, ``stride`` bytes apart, from ``start`` on."""
    return np.uint64(start) + np.arange(count, dtype=np.uint64) * np.uint64(stride)


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


class SlotBuffers(ABC):
    """Buffers of chunks inside an engine's KV, of which a subclass knows how to move them.

    ``slots`` is int64 ``[chunks, chunk_tokens]``: the engine's slot of each token, -1 to leave a
    token out.
    """

    def __init__(self, slots: NDArray[np.int64]) -> None:
        self._slots = np.ascontiguousarray(slots, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._slots)

    def pick(self, rows: Sequence[int]) -> Self:
        chosen = copy(self)
        chosen._slots = self._slots[np.asarray(rows, dtype=np.intp)]
        return chosen

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        self.move(addresses, out=True)

    def copy_from(self, addresses: Addresses) -> None:
        self.move(addresses, out=False)

    @abstractmethod
    def move(self, addresses: Addresses, out: bool) -> None:
        """Copies chunk i to (``out``) or from the memory at ``addresses[i]``."""

    def move_coded(self, addresses: Addresses, codec: Codec, out: bool) -> bool:
        """Moves as :meth:`move` does, coding on the way, with no raw chunk in between. Returns
        False where that can't be with this codec: then nothing was moved."""
        return False


class AddressBuffers:
    """Buffers of chunks of ``chunk_bytes`` that are contiguous at ``addresses``."""

    def __init__(self, addresses: Addresses, chunk_bytes: int) -> None:
        self._addresses, self._chunk_bytes = addresses, chunk_bytes

    def __len__(self) -> int:
        return len(self._addresses)

    def pick(self, rows: Sequence[int]) -> Self:
        chosen = copy(self)
        chosen._addresses = self._addresses[np.asarray(rows, dtype=np.intp)]
        return chosen

    def flat(self) -> Addresses | None:
        return None

    def _sizes(self) -> Addresses:
        return np.full(len(self), self._chunk_bytes, dtype=np.uint64)


class FlatBuffers(AddressBuffers):
    """Buffers of chunks that are contiguous in host memory."""

    def __init__(self, addresses: Addresses, chunk_bytes: int, threads: int = 1) -> None:
        super().__init__(addresses, chunk_bytes)
        self._threads = threads

    def flat(self) -> Addresses | None:
        return self._addresses

    def copy_to(self, addresses: Addresses) -> None:
        _native.copy(addresses, self._addresses, self._sizes(), self._threads)

    def copy_from(self, addresses: Addresses) -> None:
        _native.copy(self._addresses, addresses, self._sizes(), self._threads)


class LaidOut(SlotBuffers):
    """Buffers in an engine's KV that ``_native.Paged`` describes, in the order of a layout. Raises
    ``ValueError`` for slots that are no whole chunks of the layout."""

    def __init__(self, paged: _native.Paged, slots: NDArray[np.int64], layout: KVLayout) -> None:
        if slots.ndim != 2 or slots.shape[1] != layout.chunk_tokens:
            raise ValueError(f"slots have shape {slots.shape}, not [n, {layout.chunk_tokens}]")
        super().__init__(slots)
        self._paged, self._layout = paged, layout

    def _codes(self, codec: Codec) -> bool:
        """Returns whether the codec's rows are heads of this KV."""
        return codec.items == self._layout.head_dim and codec.dtype == self._layout.dtype


class PagedBuffers(LaidOut):
    """Buffers of chunks inside an engine's KV in host memory. Raises ``IndexError`` on a move if a
    slot lies outside the engine's KV."""

    def __init__(
        self,
        paged: _native.Paged,
        slots: NDArray[np.int64],
        layout: KVLayout,
        threads: int = 1,
    ) -> None:
        super().__init__(paged, slots, layout)
        self._threads = threads

    def move(self, addresses: Addresses, out: bool) -> None:
        verb = _native.gather if out else _native.scatter
        verb(self._paged, self._slots, addresses, self._layout.order, self._threads)

    def move_coded(self, addresses: Addresses, codec: Codec, out: bool) -> bool:
        if not self._codes(codec):
            return False
        verb = _native.gather_coded if out else _native.scatter_coded
        order, kind = self._layout.order, (codec.dtype, codec.name)
        verb(self._paged, self._slots, addresses, order, *kind, self._threads)
        return True
