"""Tries the CUDA kernels on a GPU by running them: a millisecond, once there is a context."""

from __future__ import annotations

import ctypes
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.transfer.cuda import PinnedMemory, cuda_module
from cache_core.transfer.gpu import CopyStreams

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
        k = np.uint64(base) + np.arange(_LAYERS, dtype=np.uint64) * np.uint64(2 * plane)
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


def _rows(room: NDArray[np.uint8]) -> NDArray[np.uint64]:
    steps = np.arange(len(room), dtype=np.uint64) * np.uint64(room.shape[1])
    return np.uint64(room.ctypes.data) + steps
