"""Provides a tier and buffers in torch memory: what a CUDA engine uses. torch is imported with this
file only, so the core stays light without it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cache_core.layout import Addresses, KVLayout
from cache_core.tiers.memory import SlotTier
from cache_core.transfer.chunks import ChunkBuffers, addresses_from


class TensorBuffers:
    """Buffers of chunks that are views ``layout.chunk_shape`` of tensors on any device. One that is
    shorter than a chunk is what there is of it: of a chunk that is kept, the first tokens."""

    def __init__(self, blocks: Sequence[torch.Tensor]) -> None:
        self.blocks = list(blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def pick(self, rows: Sequence[int]) -> TensorBuffers:
        return TensorBuffers([self.blocks[row] for row in rows])

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        for block, address in zip(self.blocks, addresses, strict=True):
            _host(int(address), block).copy_(block)

    def copy_from(self, addresses: Addresses) -> None:
        for block, address in zip(self.blocks, addresses, strict=True):
            block.copy_(_host(int(address), block))


class PartBuffers:
    """Buffers of chunks in several pieces: the bytes of chunk i are those of ``parts[i]``, tensors
    on any device, each in C order, one after another. What a slot has behind them is left alone."""

    def __init__(self, parts: Sequence[Sequence[torch.Tensor]]) -> None:
        self.parts = list(parts)

    def __len__(self) -> int:
        return len(self.parts)

    def pick(self, rows: Sequence[int]) -> PartBuffers:
        return PartBuffers([self.parts[row] for row in rows])

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        for there, part in self._placed(addresses):
            there.copy_(part)

    def copy_from(self, addresses: Addresses) -> None:
        for there, part in self._placed(addresses):
            part.copy_(there)

    def _placed(self, addresses: Addresses) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for address, parts in zip(addresses.tolist(), self.parts, strict=True):
            for part in parts:
                yield _host(address, part), part
                address += part.numel() * part.element_size()


class TensorTier(SlotTier):
    """The device tier, with chunks in one tensor ``[capacity, *chunk_shape]`` of the engine's
    device.

    Takes all its memory here. Raises torch's out-of-memory error if there is not that much.
    """

    def __init__(self, name: str, capacity: int, layout: KVLayout, device: torch.device) -> None:
        super().__init__(name, capacity)
        dtype: torch.dtype = getattr(torch, layout.dtype)
        self._pool = torch.zeros((capacity, *layout.chunk_shape), dtype=dtype, device=device)

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        return self._blocks([self._slots[key] for key in keys])

    def close(self) -> None:
        super().close()
        self._pool = self._pool[:0].clone()

    def _copy_out(self, slots: list[int], place: ChunkBuffers) -> None:
        _move(self._blocks(slots), place)

    def _copy_in(self, slots: list[int], place: ChunkBuffers) -> None:
        _move(place, self._blocks(slots))

    def _blocks(self, slots: list[int]) -> TensorBuffers:
        return TensorBuffers([self._pool[slot] for slot in slots])


def _move(source: ChunkBuffers, target: ChunkBuffers) -> None:
    """Copies between tensors directly; between a tensor and host memory through the host side."""
    if isinstance(source, TensorBuffers) and isinstance(target, TensorBuffers):
        for here, there in zip(source.blocks, target.blocks, strict=True):
            tokens = min(here.shape[-2], there.shape[-2])
            there[..., :tokens, :].copy_(here[..., :tokens, :])
        return
    into, outof = target.flat(), source.flat()
    if into is not None:
        source.copy_to(into)
    elif outof is not None:
        target.copy_from(outof)
    else:
        # Neither side is flat (a coded chunk, say): through host memory that is.
        [tensors] = [p for p in (source, target) if isinstance(p, TensorBuffers)]
        size = max((b.numel() * b.element_size() for b in tensors.blocks), default=0)
        room = np.empty((len(source), size), dtype=np.uint8)
        rows = addresses_from(room.ctypes.data, len(source), size)
        source.copy_to(rows)
        target.copy_from(rows)


def _host(address: int, like: torch.Tensor) -> torch.Tensor:
    """Returns host memory as a tensor of the shape and type of ``like``; no copy."""
    size = like.numel() * like.element_size()
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return torch.from_numpy(raw).view(like.dtype).view(like.shape)


def current_stream(device: torch.device) -> int:
    """Returns the stream, by its handle, on which torch queues this thread's work on a GPU."""
    streams: Any = torch.cuda
    handle: int = streams.current_stream(device).cuda_stream
    return handle
