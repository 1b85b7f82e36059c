"""Provides buffers of KV and chunks in a GPU's memory, and a tier of them: what moves them are this
project's kernels and the GPU's copy engines. The kernels can be tried by running them: a
millisecond, once there is a context."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import Addresses, KVLayout, Order
from cache_core.tiers.memory import MemoryTier, Slab, SlabMemory
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import AddressBuffers, ChunkBuffers, LaidOut, addresses_from
from cache_core.transfer.cuda import PinnedMemory, cuda_module
from cache_core.transfer.planner import Direction, Planner, Way

if TYPE_CHECKING:
    from cache_core import _cuda
    from cache_core.transfer.codec import Codec

# Thread blocks of a kernel, as few as fill PCIe 5, so that the model goes on beside it. Each has 16
# KiB under way. A load has to wait for what it reads from the host, a store for nothing.
_CTAS = {"in": 12, "out": 8}

# Makes a stream, given by its handle, wait for what the engine had queued when buffers were made.
Ready = Callable[[int], None]


class CopyStreams:
    """The transfers of one GPU: one into its memory and one out of it, so that a load need not wait
    for a store. Requests wait for loads: these come first on the GPU, stores last. ``planner``
    chooses between kernels and copy engines. Raises :class:`~cache_core.transfer.cuda.CudaMissing`
    and ``CudaError``."""

    def __init__(self, device: int, planner: Planner | None = None) -> None:
        self.device = device
        self._planner = planner or Planner()
        self._cuda = cuda_module()
        self._ways: dict[str, tuple[_cuda.Transfer, threading.Lock]] = {
            name: (self._cuda.Transfer(device, ctas, urgent=name == "in"), threading.Lock())
            for name, ctas in _CTAS.items()
        }

    def stream(self, name: str) -> int:
        """Returns the handle of a transfer's stream."""
        return self._ways[name][0].stream

    def mark(self, stream: int) -> _cuda.Mark:
        """Marks what a stream of the GPU, by its handle, has queued so far."""
        mark: _cuda.Mark = self._cuda.Mark(self.device, stream)
        return mark

    def choose(
        self, name: str, paged: _native.Paged, slots: NDArray[np.int64], order: Order
    ) -> Way:
        """Returns how to move these slots from (``out``) or to (``in``) host memory."""
        count, nbytes = _native.pieces(paged, slots, order)
        direction: Direction = "d2h" if name == "out" else "h2d"
        return self._planner.choose(direction, count, nbytes // max(count, 1))

    @contextmanager
    def way(self, name: str) -> Iterator[_cuda.Transfer]:
        """Yields the transfer ``in`` or ``out`` to one thread at a time; ends when its work is
        done."""
        transfer, lock = self._ways[name]
        with lock:
            try:
                yield transfer
            finally:
                transfer.synchronize()


class GpuBuffers(LaidOut):
    """Buffers of chunks inside an engine's KV in a GPU's memory; addresses may be the GPU's own
    too. ``ready`` is called with the stream before a move is queued."""

    def __init__(
        self,
        ways: CopyStreams,
        paged: _native.Paged,
        slots: NDArray[np.int64],
        layout: KVLayout,
        ready: Ready,
        within: bool = False,
    ) -> None:
        super().__init__(paged, slots, layout)
        self._ways, self._ready, self._within = ways, ready, within

    def within(self) -> GpuBuffers:
        """Returns the same for addresses that are all in the GPU's own memory: kernels move
        them."""
        return GpuBuffers(
            self._ways, self._paged, self._slots, self._layout, self._ready, within=True
        )

    def move(self, addresses: Addresses, out: bool) -> None:
        way, order = "out" if out else "in", self._layout.order
        with self._way(way) as transfer:
            verb = transfer.gather if out else transfer.scatter
            if not self._within and self._by_dma(way):
                verb = transfer.gather_dma if out else transfer.scatter_dma
            verb(self._paged, self._slots, addresses, order)

    def move_coded(self, addresses: Addresses, codec: Codec, out: bool) -> bool:
        if not self._codes(codec):
            return False
        with self._way("out" if out else "in") as transfer:
            verb = transfer.gather_coded if out else transfer.scatter_coded
            order = self._layout.order
            verb(self._paged, self._slots, addresses, order, codec.dtype, codec.name)
        return True

    def _by_dma(self, way: str) -> bool:
        order = self._layout.order
        return self._ways.choose(way, self._paged, self._slots, order) == "dma"

    @contextmanager
    def _way(self, name: str) -> Iterator[_cuda.Transfer]:
        with self._ways.way(name) as transfer:
            self._ready(transfer.stream)
            yield transfer


class GpuChunks(AddressBuffers):
    """Buffers of chunks that are contiguous in a GPU's memory; addresses may be the GPU's own
    too."""

    def __init__(self, ways: CopyStreams, addresses: Addresses, chunk_bytes: int) -> None:
        super().__init__(addresses, chunk_bytes)
        self._ways = ways

    def copy_to(self, addresses: Addresses) -> None:
        with self._ways.way("out") as transfer:
            transfer.copy(addresses, self._addresses, self._sizes())

    def copy_from(self, addresses: Addresses) -> None:
        with self._ways.way("in") as transfer:
            transfer.copy(self._addresses, addresses, self._sizes())


class GpuMemory(SlabMemory):
    """Memory for chunks on a GPU, taken beside what torch has. Raises ``CudaError``."""

    def __init__(self, device: int) -> None:
        super().__init__()
        self._device = device

    def _slab(self, nbytes: int) -> Slab:
        memory: _cuda.DeviceMemory = cuda_module().DeviceMemory(self._device, nbytes)
        return memory


class GpuTier(MemoryTier):
    """The device tier of a CUDA engine: chunks in a GPU's memory, next to the KV that they are
    copied to. Takes all its memory here. Raises ``CudaError`` if the GPU has not that much."""

    def __init__(self, name: str, capacity: int, chunk_bytes: int, ways: CopyStreams) -> None:
        super().__init__(name, capacity, chunk_bytes, GpuMemory(ways.device))
        self._ways = ways

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return super().read(keys, self._within_reach(place))

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        return super().write(keys, self._within_reach(place))

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        chunks = self._addresses[[self._slots[key] for key in keys]]
        return GpuChunks(self._ways, chunks, self._chunk_bytes)

    def _within_reach(self, place: ChunkBuffers | None) -> ChunkBuffers | None:
        if isinstance(place, GpuBuffers):
            return place.within()
        if place is None or isinstance(place, GpuChunks):
            return place
        return _HostSide(place, self._ways, self._chunk_bytes)


class _HostSide:
    """Buffers that only the CPU reaches, whose chunks are copied to and from a GPU's memory."""

    def __init__(self, place: ChunkBuffers, ways: CopyStreams, chunk_bytes: int) -> None:
        self._place, self._ways, self._chunk_bytes = place, ways, chunk_bytes

    def __len__(self) -> int:
        return len(self._place)

    def pick(self, rows: Sequence[int]) -> _HostSide:
        return _HostSide(self._place.pick(rows), self._ways, self._chunk_bytes)

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        chunks, flat = GpuChunks(self._ways, addresses, self._chunk_bytes), self._place.flat()
        if flat is not None:
            chunks.copy_from(flat)
            return
        room = self._room()
        self._place.copy_to(_rows(room))
        chunks.copy_from(_rows(room))

    def copy_from(self, addresses: Addresses) -> None:
        chunks, flat = GpuChunks(self._ways, addresses, self._chunk_bytes), self._place.flat()
        if flat is not None:
            chunks.copy_to(flat)
            return
        room = self._room()
        chunks.copy_to(_rows(room))
        self._place.copy_from(_rows(room))

    def _room(self) -> NDArray[np.uint8]:
        """Returns host memory for all chunks, for buffers that are not contiguous (coded ones)."""
        return np.empty((len(self), self._chunk_bytes), dtype=np.uint8)


def _rows(room: NDArray[np.uint8]) -> Addresses:
    return addresses_from(room.ctypes.data, len(room), room.shape[1])


# Two layers of K and V in pages of 16 tokens, every second one used: 512 KiB.
_LAYERS, _HEADS, _PAGE, _WIDTH, _TOKENS, _CHUNKS = 2, 4, 16, 256, 64, 2


def try_kernels(device: int) -> list[str]:
    """Gathers and scatters random bytes on a GPU, by kernels and by copy engines, pinned and
    staged. Returns the ways whose bytes are not the CPU's: none where all is well. Raises
    ``CudaError``, and ``MemoryError`` without 512 KiB to pin."""
    token = _HEADS * _WIDTH
    blocks = 2 * _TOKENS * _CHUNKS // _PAGE
    plane, chunk_bytes = blocks * _PAGE * token, _LAYERS * 2 * _TOKENS * token
    nbytes = _LAYERS * 2 * plane
    order = np.random.default_rng(0).permutation(blocks)[: blocks // 2]
    slots = (order[:, None] * _PAGE + np.arange(_PAGE)).reshape(_CHUNKS, _TOKENS)
    slots = np.ascontiguousarray(slots, dtype=np.int64)

    def paged(base: int) -> _native.Paged:
        k = addresses_from(base, _LAYERS, 2 * plane)
        return _native.Paged(
            k, k + np.uint64(plane), _PAGE, _PAGE * token, token, _WIDTH, _HEADS, _WIDTH,
            blocks * _PAGE,
        )  # fmt: skip

    kv = np.random.default_rng(1).integers(0, 256, nbytes, dtype=np.uint8)
    expected = np.zeros((_CHUNKS, chunk_bytes), dtype=np.uint8)
    _native.gather(paged(kv.ctypes.data), slots, _rows(expected), "NHD")
    back = np.zeros_like(kv)
    _native.scatter(paged(back.ctypes.data), slots, _rows(expected), "NHD")

    memory, ways = PinnedMemory(device), CopyStreams(device)
    engine = cuda_module().DeviceMemory(device, nbytes)
    place, size = _at(engine.address), _at(nbytes)
    wrong = []
    try:
        [address] = memory.addresses(1, expected.nbytes)
        pinned = np.ctypeslib.as_array(
            (ctypes.c_uint8 * expected.nbytes).from_address(int(address))
        )
        rooms = {"pinned": pinned.reshape(expected.shape), "staged": np.zeros_like(expected)}
        for (where, chunks), suffix in product(rooms.items(), ("", "_dma")):
            chunks[:] = 0
            found = np.zeros_like(kv)
            with ways.way("out") as transfer:
                transfer.copy(place, _at(kv.ctypes.data), size)
                gather = getattr(transfer, f"gather{suffix}")
                gather(paged(engine.address), slots, _rows(chunks), "NHD")
            with ways.way("in") as transfer:
                transfer.copy(place, _at(found.ctypes.data), size)
                scatter = getattr(transfer, f"scatter{suffix}")
                scatter(paged(engine.address), slots, _rows(chunks), "NHD")
                transfer.copy(_at(found.ctypes.data), place, size)
            if not np.array_equal(chunks, expected) or not np.array_equal(found, back):
                wrong.append(f"{where} chunks by {'copy engines' if suffix else 'kernels'}")
        del pinned, rooms, chunks  # views of what goes now
    finally:
        memory.release()
    return wrong


def _at(value: int) -> NDArray[np.uint64]:
    return np.array([value], dtype=np.uint64)
