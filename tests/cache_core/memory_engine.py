"""An engine's KV in numpy, for tests: what a chunk must contain follows from its key."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import KVLayout
from cache_core.tiers.tensor import TensorBuffers
from cache_core.transfer.chunks import PagedBuffers

LAYOUT = KVLayout(layers=2, kv_heads=2, head_dim=8, dtype="float32", chunk_tokens=4)


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def content(layout: KVLayout, number: int) -> NDArray[np.uint8]:
    """The bytes that chunk ``number`` has: different for every number and position."""
    rng = np.random.Generator(np.random.PCG64(number))
    return rng.integers(0, 256, layout.chunk_bytes, dtype=np.uint8)


class MemoryEngine:
    """KV ``[layers, 2, kv_heads, capacity, head_dim]`` of one request at a time."""

    def __init__(self, layout: KVLayout, chunks: int) -> None:
        self.layout = layout
        self.capacity = chunks * layout.chunk_tokens
        shape = (layout.layers, 2, layout.kv_heads, self.capacity, layout.head_bytes)
        self.kv = np.zeros(shape, dtype=np.uint8)
        layer, plane, head, token, _ = self.kv.strides
        base = np.uint64(self.kv.ctypes.data)
        k = np.arange(layout.layers, dtype=np.uint64) * np.uint64(layer) + base
        self.paged = _native.Paged(
            k_bases=k,
            v_bases=k + np.uint64(plane),
            block_tokens=self.capacity,
            block_stride=self.capacity * token,
            token_stride=token,
            head_stride=head,
            kv_heads=layout.kv_heads,
            head_bytes=layout.head_bytes,
            num_slots=self.capacity,
        )

    def tensors(self, count: int) -> TensorBuffers:
        """The first chunks, as an engine whose KV torch moves has them."""
        whole = torch.from_numpy(self.kv).view(getattr(torch, self.layout.dtype))
        size = self.layout.chunk_tokens
        return TensorBuffers([whole[..., i * size : (i + 1) * size, :] for i in range(count)])

    def place(self, first: int, count: int, threads: int = 1) -> PagedBuffers:
        size = self.layout.chunk_tokens
        slots = np.arange(first * size, (first + count) * size, dtype=np.int64)
        return PagedBuffers(self.paged, slots.reshape(count, size), self.layout, threads)

    def fill(self, numbers: list[int]) -> None:
        """Computes ("prefills") the chunks at the front of the memory."""
        for i, number in enumerate(numbers):
            self.chunk(i)[...] = content(self.layout, number).reshape(self.chunk(i).shape)

    def wipe(self) -> None:
        self.kv[...] = 0

    def chunk(self, i: int) -> NDArray[np.uint8]:
        size = self.layout.chunk_tokens
        return self.kv[:, :, :, i * size : (i + 1) * size]

    def holds(self, i: int, number: int) -> bool:
        return bool(np.array_equal(self.chunk(i).ravel(), content(self.layout, number)))
