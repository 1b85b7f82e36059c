"""Does blend on the worker side: turns K to where it is needed, computes what does not fit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cache_core.adapters.vllm.blend.extra_forward import ExtraForward, ForwardRows
from cache_core.adapters.vllm.metadata import BlockIds, EncodeSpec, LoadSpec, SeenDone
from cache_core.adapters.vllm.worker.kv_blocks import EngineBlocks, Slots, slots_within
from cache_core.blend.selection import Contexts, deviation
from cache_core.layout import Addresses
from cache_core.transfer.chunks import SlotBuffers


class BlendWorkerSide:
    """Runs vLLM's model for blend beside vLLM's own steps, by an :class:`ExtraForward`.

    Raises ``ValueError`` if the workers were not started with ``--worker-cls`` for blend.
    """

    def __init__(self, config: Any, block_tokens: int, chunk_tokens: int) -> None:
        # Only workers of --worker-cls can import it before the model is loaded.
        from cache_core.adapters.vllm.blend_worker import RUNNERS

        if not RUNNERS:
            raise ValueError(
                "blend needs the model: start vLLM with"
                " --worker-cls cache_core.adapters.vllm.blend_worker.BlendWorker"
            )
        self.forward = ExtraForward(RUNNERS[0], config, block_tokens)
        self._block_tokens, self._size = block_tokens, chunk_tokens
        self._contexts = Contexts()

    def rotate(self, k: torch.Tensor, delta: int) -> None:
        """Turns K ``[.., head_dim]`` by ``delta`` positions, in place."""
        self.forward.rope.rotate(k, delta, in_place=True)

    def compute(self, loads: Sequence[LoadSpec]) -> None:
        """Computes the tokens that come on top of loads, for all requests of the step together."""
        rows = [
            ForwardRows(load.blend.tokens, load.blend.positions, load.blocks)
            for load in loads
            if load.blend is not None and len(load.blend.tokens)
        ]
        if rows:
            self.forward.run(rows)

    def encode(self, encodes: Sequence[EncodeSpec], blocks: EngineBlocks) -> list[SeenDone]:
        """Computes segments alone, in blocks that are lent for it, and returns what they lack. Of
        what was seen often enough, the average is left there."""
        for encode in encodes:
            positions = np.arange(len(encode.tokens), dtype=np.int32)
            self.forward.run([ForwardRows(encode.tokens, positions, encode.save.blocks)])
        if any(encode.rows for encode in encodes):
            blocks.fence()()
        return [self._see(encode, blocks) for encode in encodes]

    def _see(self, encode: EncodeSpec, blocks: EngineBlocks) -> SeenDone:
        """Returns how far the chunks that were just encoded are from the request's own KV."""
        self._contexts.forget(encode.forget)
        if not encode.rows:
            return SeenDone(encode.save.id, ())
        bos, length = len(encode.tokens) - encode.length, encode.length
        context = _Copy(blocks, self._slots(encode.context, encode.start, length))
        alone = _Copy(blocks, self._slots(encode.save.blocks, bos, length))
        for plane in context.planes[:1]:
            self.rotate(plane, bos - encode.start)
        lack = deviation(*context.tokens(length), *alone.tokens(length))
        for row, key in zip(encode.rows, encode.keys, strict=True):
            self._contexts.add(key, torch.stack([p[row] for p in context.planes]), encode.counts)
            if encode.full:
                both = torch.stack([plane[row] for plane in alone.planes])
                for plane, new in zip(alone.planes, self._contexts.average(key, both), strict=True):
                    plane[row] = new
        if encode.full:
            alone.write_back()
        lacks = (lack[row * self._size : (row + 1) * self._size] for row in encode.rows)
        return SeenDone(encode.save.id, tuple(lacks))

    def _slots(self, table: BlockIds, start: int, length: int) -> Slots:
        """Returns a row of slots for each chunk of a sequence's tokens from ``start`` on."""
        whole = range(start, start + -(-length // self._size) * self._size)
        within = range(start, start + length)
        return slots_within(table, self._block_tokens, whole, within).reshape(-1, self._size)


class _Copy:
    """A copy of chunks of the engine's: ``planes`` are views of its K and V, ``[chunks, layers,
    heads, chunk_tokens, head_dim]``."""

    def __init__(self, blocks: EngineBlocks, slots: Slots) -> None:
        self._place = blocks.place(slots)
        self._bytes = np.zeros((len(slots), blocks.chunk_bytes), dtype=np.uint8)
        self._at = np.array([row.ctypes.data for row in self._bytes], dtype=np.uint64)
        self._place.copy_to(self._at)
        self.planes = blocks.planes(torch.from_numpy(self._bytes))

    def tokens(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns copies of K and V of the first ``count`` tokens, ``[layers, heads, count,
        head_dim]``."""
        k, v = (plane.movedim(0, 2).flatten(2, 3)[:, :, :count] for plane in self.planes)
        return k, v

    def write_back(self) -> None:
        """Brings the chunks to the engine, as they are here now."""
        self._place.copy_from(self._at)


class RotatedBuffers(SlotBuffers):
    """Buffers of chunks that go to the engine with their K turned; nothing can be read here."""

    def __init__(
        self, blocks: EngineBlocks, slots: Slots, rotate: Callable[[torch.Tensor], None]
    ) -> None:
        super().__init__(slots)
        self._blocks, self._rotation = blocks, rotate

    def move(self, addresses: Addresses, out: bool) -> None:
        if out:
            raise NotImplementedError("turned chunks are only ever loaded")
        # What a tier holds must not change: it may be wanted at another position again.
        size = self._blocks.chunk_bytes
        scratch = np.empty((len(addresses), size), dtype=np.uint8)
        for row, address in zip(scratch, addresses, strict=True):
            row[:] = np.ctypeslib.as_array(_bytes_at(int(address), size))
        self._rotation(self._blocks.planes(torch.from_numpy(scratch))[0])
        copies = np.array([row.ctypes.data for row in scratch], dtype=np.uint64)
        self._blocks.place(self._slots).copy_from(copies)


def _bytes_at(address: int, size: int) -> Any:
    return (ctypes.c_uint8 * size).from_address(address)
