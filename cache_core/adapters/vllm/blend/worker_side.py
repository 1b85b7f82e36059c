"""Does blend on the worker side: turns K to where it is needed, computes what does not fit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cache_core.adapters.vllm.blend.extra_forward import ExtraForward, ForwardRows
from cache_core.adapters.vllm.metadata import EncodeSpec, LoadSpec
from cache_core.adapters.vllm.worker.kv_blocks import EngineBlocks, Slots
from cache_core.layout import Addresses
from cache_core.transfer.chunks import SlotBuffers


class BlendWorkerSide:
    """Runs vLLM's model for blend beside vLLM's own steps, by an :class:`ExtraForward`.

    Raises ``ValueError`` if the workers were not started with ``--worker-cls`` for blend.
    """

    def __init__(self, config: Any, block_tokens: int) -> None:
        # Only workers of --worker-cls can import it before the model is loaded.
        from cache_core.adapters.vllm.blend_worker import RUNNERS

        if not RUNNERS:
            raise ValueError(
                "blend needs the model: start vLLM with"
                " --worker-cls cache_core.adapters.vllm.blend_worker.BlendWorker"
            )
        self.forward = ExtraForward(RUNNERS[0], config, block_tokens)

    def rotate(self, k: torch.Tensor, delta: int, axis: int) -> None:
        """Turns K by ``delta`` positions, in place; ``axis`` is that of its heads' dimensions."""
        self.forward.rope.rotate(k.movedim(axis, -1), delta, in_place=True)

    def compute(self, loads: Sequence[LoadSpec]) -> None:
        """Computes the tokens that come on top of loads, for all requests of the step together."""
        rows = [
            ForwardRows(load.blend.tokens, load.blend.positions, load.blocks)
            for load in loads
            if load.blend is not None and len(load.blend.tokens)
        ]
        if rows:
            self.forward.run(rows)

    def encode(self, encodes: Sequence[EncodeSpec]) -> None:
        """Computes segments alone, in blocks that are lent for it."""
        for encode in encodes:
            positions = np.arange(len(encode.tokens), dtype=np.int32)
            self.forward.run([ForwardRows(encode.tokens, positions, encode.save.blocks)])


class RotatedBuffers(SlotBuffers):
    """Buffers of chunks that go to the engine with their K turned; nothing can be read here."""

    def __init__(
        self, blocks: EngineBlocks, slots: Slots, rotate: Callable[[torch.Tensor, int], None]
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
        self._rotation(*self._blocks.k_of(torch.from_numpy(scratch)))
        copies = np.array([row.ctypes.data for row in scratch], dtype=np.uint64)
        self._blocks.place(self._slots).copy_from(copies)


def _bytes_at(address: int, size: int) -> Any:
    return (ctypes.c_uint8 * size).from_address(address)
