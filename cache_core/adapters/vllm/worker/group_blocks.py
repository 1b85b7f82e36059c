"""Moves vLLM's KV in whole blocks, where each group of layers has blocks of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache_core import _native
from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.identity import Unsupported
from cache_core.adapters.vllm.kv_shape import GroupedShape, KvShape, sized
from cache_core.adapters.vllm.worker.kv_blocks import (
    BlockBuffers,
    EngineBlocks,
    HostBlocks,
    OnLoaded,
    Region,
    Slots,
    TensorBlocks,
    WholeBlocks,
    no_wait,
)
from cache_core.adapters.vllm.worker.kv_cuda import cuda_blocks
from cache_core.layout import Addresses
from cache_core.plan import Move
from cache_core.tiers.memory import Memory, SlabMemory
from cache_core.tiers.tensor import current_stream
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from cache_core.transfer.codec import Codec
from cache_core.transfer.cuda import CudaMissing, PinnedMemory
from cache_core.transfer.gpu import CopyStreams

if TYPE_CHECKING:  # it needs vLLM, and these moves are tested without
    from cache_core.adapters.vllm.metadata import SaveSpec


class GroupBlocks:
    """KV of several groups of layers, of whose blocks nothing is known but where they are.

    A chunk of a group is its blocks one after another, layer by layer. A row of slots is the
    group's number and the chunk's blocks, int64 ``[n, 1 + m]``, -1 to leave a block out; a group
    with fewer than m blocks in a chunk has its own first. Layers that have KV in several tensors
    (a recurrent layer's states) keep them one after another. ``caches`` are vLLM's tensors, whose
    first axis counts blocks, or parts of ``shape.num_blocks`` of them. Raises ``Unsupported`` for
    tensors whose blocks lie in shreds, and where a GPU's kernels are not built.
    """

    layers = 1

    def __init__(
        self, caches: Mapping[str, Any], shape: GroupedShape, threads: int, pieces: bool
    ) -> None:
        self._keep, self._threads = caches, threads
        runs = {name: _runs(name, caches[name], shape.num_blocks) for name in shape.layer_names}
        in_chunk = {
            name: 1 if group.keeps == "state" else shape.chunk_tokens // group.block_tokens
            for group in shape.groups
            for name in group.layers
        }
        layer_bytes = {
            name: in_chunk[name] * sum(size for _, _, size in found) for name, found in runs.items()
        }
        self.groups, self.tables = sized(shape, layer_bytes, pieces)
        self.chunk_bytes = max(group.chunk_bytes for group in self.groups)
        self._sizes = np.array([group.chunk_bytes for group in self.groups], dtype=np.int64)
        self._in_chunk = [in_chunk[group.layers[0]] if group.layers else 0 for group in self.groups]
        self._regions = [
            _regions([run for name in group.layers for run in runs[name]], blocks, shape.num_blocks)
            for group, blocks in zip(self.groups, self._in_chunk, strict=True)
        ]
        self._device = next((t.device for t in _tensors(caches) if t.is_cuda), None)
        self._ways: CopyStreams | None = None
        if self._device is not None:
            try:
                self._ways = CopyStreams(self._device.index or 0)
            except CudaMissing as error:
                raise Unsupported(
                    f"groups of layers on a GPU need this project's: {error}"
                ) from error

    def memory(self) -> Memory:
        return SlabMemory() if self._ways is None else PinnedMemory(self._ways.device)

    def place(self, slots: Slots, layers: range | None = None) -> ChunkBuffers:
        return BlockBuffers(self, slots, layers)

    def fence(self, loading: bool = False) -> Callable[[], None]:
        if self._ways is None or self._device is None:
            return no_wait
        mark = self._ways.mark(current_stream(self._device))
        return partial(mark.hold, self._ways.stream("in" if loading else "out"))

    def load_layers(self, slots: Slots, addresses: Addresses, loaded: OnLoaded) -> None:
        self.place(slots).copy_from(addresses)
        loaded(self.layers, no_wait)

    def planes(self, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise ValueError("blend can't tell K apart in blocks that are moved whole")

    def row_bytes(self, slots: Slots) -> NDArray[np.int64]:
        """Returns the bytes of each row's chunk, ``[n]``."""
        return self._sizes[slots[:, 0]]

    def move(self, slots: Slots, layers: range, addresses: Addresses, out: bool) -> None:
        """Moves chunks: ``out``: engine -> host, else host -> engine."""
        for number in np.unique(slots[:, 0]):
            rows = np.flatnonzero(slots[:, 0] == number)
            blocks = np.ascontiguousarray(slots[rows, 1 : 1 + self._in_chunk[number]])
            for region in self._regions[number]:
                there = addresses[rows] + np.uint64(region.offset)
                if self._ways is None:
                    verb = _native.gather if out else _native.scatter
                    verb(region.paged, blocks, there, "HND", self._threads)
                else:
                    _queue(self._ways, region.paged, blocks, there, out)

    def move_coded(self, slots: Slots, addresses: Addresses, codec: Codec, out: bool) -> bool:
        """Returns False: what is not known is not coded."""
        return False


def engine_blocks(
    kv_caches: Mapping[str, Any],
    shape: KvShape | GroupedShape,
    options: ConnectorOptions,
    pieces: bool,
) -> EngineBlocks:
    """Returns the KV that vLLM keeps in ``kv_caches``, by what it is and where. ``pieces``: long
    groups of layers may be cut (see :func:`~cache_core.adapters.vllm.kv_shape.sized`)."""
    if isinstance(shape, GroupedShape):
        return GroupBlocks(kv_caches, shape, options.threads, pieces)
    caches = [kv_caches[name] for name in shape.layer_names]
    if shape.whole_blocks:
        return WholeBlocks(caches, shape.block_tokens, options.chunk_tokens, options.threads)
    if shape.on_cpu and all(cache.is_contiguous() for cache in caches):
        return HostBlocks(caches, options.chunk_tokens, options.threads)
    if caches[0].is_cuda and (found := cuda_blocks(caches, options)) is not None:
        return found
    return TensorBlocks(caches, options.chunk_tokens)


def read_bytes(blocks: EngineBlocks, slots: Slots, answers: Sequence[Read]) -> int:
    """Returns the bytes of the chunks that were read, by a tier's answers for the first of
    ``slots``."""
    here = [row for row, answer in enumerate(answers) if answer is Read.HERE]
    if isinstance(blocks, GroupBlocks):
        return int(blocks.row_bytes(slots[here]).sum())
    return len(here) * blocks.chunk_bytes


def move_bytes(blocks: EngineBlocks, save: SaveSpec, moves: Sequence[Move]) -> list[int]:
    """Returns the bytes of each of a save's moves; of what comes from a tier, of its slab."""
    if not isinstance(blocks, GroupBlocks) or save.staged >= 0:
        return [blocks.chunk_bytes] * len(moves)
    rows = blocks.row_bytes(save.blocks.astype(np.int64)).tolist()
    return [rows[move.index] if move.index >= 0 else blocks.chunk_bytes for move in moves]


def _queue(
    ways: CopyStreams, paged: _native.Paged, blocks: Slots, there: Addresses, out: bool
) -> None:
    way = "out" if out else "in"
    dma = ways.choose(way, paged, blocks, "NHD") == "dma"
    name = ("gather" if out else "scatter") + ("_dma" if dma else "")
    with ways.way(way) as transfer:
        getattr(transfer, name)(paged, blocks, there, "NHD")


Run = tuple[int, int, int]
"""Where a layer has a piece of each block: the first one's address, the bytes from one block to the
next, and the piece's bytes."""


def _runs(name: str, cache: Any, num_blocks: int) -> list[Run]:
    """Returns the pieces of a layer's blocks."""
    return [run for tensor in _tensors({name: cache}) for run in _pieces(name, tensor, num_blocks)]


def _tensors(caches: Mapping[str, Any]) -> list[torch.Tensor]:
    found = (cache if isinstance(cache, list | tuple) else [cache] for cache in caches.values())
    return [tensor for tensors in found for tensor in tensors]


def _pieces(name: str, tensor: torch.Tensor, num_blocks: int) -> list[Run]:
    if tensor.shape[0] % num_blocks:
        raise Unsupported(f"{name} has {tensor.shape[0]} blocks, not {num_blocks}")
    # Kernel blocks may be smaller than those that vLLM counts: these are several in a row.
    ratio, step = tensor.shape[0] // num_blocks, tensor.stride(0) * tensor.element_size()
    size = _dense_bytes(tensor[0])
    if size is None and tensor.ndim > 2:
        heads = [_pieces(name, tensor[:, head], num_blocks) for head in range(tensor.shape[1])]
        return [run for pieces in heads for run in pieces]
    if size is None:
        raise Unsupported(f"{name} keeps a block in shreds of {tensor.element_size()} bytes")
    base = tensor.data_ptr()
    if ratio == 1 or step == size:
        return [(base, step * ratio, size * ratio)]
    return [(base + part * step, step * ratio, size) for part in range(ratio)]


def _dense_bytes(block: torch.Tensor) -> int | None:
    """Returns the bytes of a block if they lie side by side, in any order, else None."""
    dense = 1
    for stride, size in sorted(zip(block.stride(), block.shape, strict=True)):
        if size > 1 and stride != dense:
            return None
        dense *= size
    return dense * block.element_size()


def _regions(runs: Sequence[Run], blocks: int, num_blocks: int) -> list[Region]:
    """Returns the regions of a chunk of ``blocks`` blocks, as few as there are: pieces of one size
    in a row make one."""
    regions: list[Region] = []
    none = np.empty(0, dtype=np.uint64)
    at = first = 0
    while first < len(runs):
        _, step, size = runs[first]
        last = first
        while last < len(runs) and runs[last][1:] == (step, size):
            last += 1
        bases = np.array([base for base, _, _ in runs[first:last]], dtype=np.uint64)
        paged = _native.Paged(bases, none, 1, step, 0, 0, 1, size, num_blocks)
        regions.append(Region(paged, at))
        at += (last - first) * blocks * size
        first = last
    return regions
