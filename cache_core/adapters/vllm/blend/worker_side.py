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
from cache_core.blend.selection import deviation
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
        """Computes segments alone, in blocks that are lent for it, and returns what they lack."""
        for encode in encodes:
            positions = np.arange(len(encode.tokens), dtype=np.int32)
            self.forward.run([ForwardRows(encode.tokens, positions, encode.save.blocks)])
        if any(encode.rows for encode in encodes):
            blocks.fence()()
        return [self._see(encode, blocks) for encode in encodes]

    def _see(self, encode: EncodeSpec, blocks: EngineBlocks) -> SeenDone:
        """Returns how far the chunks that were just encoded are from the request's own KV."""
        if not encode.rows:
            return SeenDone(encode.save.id, ())
        bos = len(encode.tokens) - encode.length
        parts = []
        for at, table in ((encode.start, encode.context), (bos, encode.save.blocks)):
            parts.append(self._planes(blocks, table, range(at, at + encode.length)))
        (k, v), (alone_k, alone_v) = parts
        self.rotate(alone_k, encode.start - bos)
        lack = deviation(k, v, alone_k, alone_v)
        lacks = (lack[row * self._size : (row + 1) * self._size] for row in encode.rows)
        return SeenDone(encode.save.id, tuple(lacks))

    def _planes(
        self, blocks: EngineBlocks, table: BlockIds, tokens: range
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns copies of K and V ``[layers, heads, tokens, head_dim]`` of a sequence's
        tokens."""
        whole = range(tokens.start, tokens.start + -(-len(tokens) // self._size) * self._size)
        slots = slots_within(table, self._block_tokens, whole, tokens).reshape(-1, self._size)
        scratch = np.zeros((len(slots), blocks.chunk_bytes), dtype=np.uint8)
        there = np.array([row.ctypes.data for row in scratch], dtype=np.uint64)
        blocks.place(slots).copy_to(there)
        k, v = (
            plane.movedim(0, 2).flatten(2, 3)[:, :, : len(tokens)]
            for plane in blocks.planes(torch.from_numpy(scratch))
        )
        return k, v


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
