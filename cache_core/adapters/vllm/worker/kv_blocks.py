"""Knows where vLLM keeps its KV, and moves chunks there and back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.tiers.memory import Memory, SlabMemory
from cache_core.transfer.chunks import ChunkBuffers, SlotBuffers
from cache_core.transfer.codec import Codec

if TYPE_CHECKING:  # it needs vLLM
    from cache_core.adapters.vllm.metadata import SaveSpec

Slots = NDArray[np.int64]
# Is given the number of layers that are on their way, and what the engine's thread is to call: what
# it queues afterwards finds them there.
OnLoaded = Callable[[int, Callable[[], None]], None]


class EngineBlocks(Protocol):
    """The engine's KV of one worker, between which and host memory chunks are moved."""

    chunk_bytes: int
    layers: int

    def memory(self) -> Memory:
        """Returns what the cpu tier keeps its chunks in: pinned where a GPU is to reach it."""

    def place(self, slots: Slots, layers: range | None = None) -> ChunkBuffers:
        """Returns buffers of the chunks at ``slots`` ``[n, chunk_tokens]``, -1 to leave a token
        out; of some layers only, if given: a move then touches their part of a chunk's bytes
        alone."""

    def planes(self, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns K and V of chunks in memory, bytes ``[n, chunk_bytes]``, as views ``[n, layers,
        heads, chunk_tokens, head_dim]``. Raises ``ValueError`` where they can't be told apart."""

    def fence(self, loading: bool = False) -> Callable[[], None]:
        """Returns what another thread is to call: saves that it starts then come after what the
        engine has queued until now; with ``loading``, loads, whose blocks that may still use."""

    def load_layers(self, slots: Slots, addresses: Addresses, loaded: OnLoaded) -> None:
        """Brings the chunks at ``addresses`` to ``slots``, layer by layer. Returns when all is
        there; ``loaded`` is called for each layer before."""


def load_in_turn(
    blocks: EngineBlocks, slots: Slots, addresses: Addresses, loaded: OnLoaded
) -> None:
    """Does the work of :meth:`EngineBlocks.load_layers` where a move has ended when its call
    returns."""
    for layer in range(blocks.layers):
        blocks.place(slots, range(layer, layer + 1)).copy_from(addresses)
        loaded(layer + 1, no_wait)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a chunk: ``bytes_per_row`` of each row of ``paged``, from ``offset`` on."""

    paged: _native.Paged
    offset: int


class RegionBuffers(SlotBuffers):
    """Buffers of chunks in host memory whose regions lie apart in the engine."""

    def __init__(self, regions: Sequence[Region], slots: Slots, threads: int) -> None:
        super().__init__(slots)
        self._regions, self._threads = regions, threads

    def move(self, addresses: Addresses, out: bool) -> None:
        verb = _native.gather if out else _native.scatter
        for region in self._regions:
            there = addresses + np.uint64(region.offset)
            verb(region.paged, self._slots, there, "HND", self._threads)


class HostBlocks:
    """KV of vLLM's CPU backend: a contiguous tensor ``[blocks, heads, tokens, 2 * head_dim]`` a
    layer.

    Inside a block and head the backend keeps K transposed, ``[head_dim][tokens]``, and V after it,
    ``[tokens][head_dim]``. A chunk keeps both as they are, K as ``[layers][heads][head_dim]
    [tokens]``, then V as ``[layers][heads][tokens][head_dim]``: runs stay long, and any token can
    stand at any position of any block.
    """

    def __init__(self, caches: Sequence[torch.Tensor], chunk_tokens: int, threads: int) -> None:
        blocks, heads, tokens, content = caches[0].shape
        self._caches = list(caches)  # keeps the memory alive
        self._threads = threads
        self.layers = len(caches)
        item = caches[0].element_size()
        dim = content // 2
        self._heads, self._plane = heads, heads * dim * chunk_tokens * item
        self.chunk_bytes = 2 * self.layers * self._plane
        self._head_bytes, self._v_offset = tokens * content * item, dim * tokens * item
        self._block = (tokens, heads * tokens * content * item, blocks * tokens)
        self._item, self._dim = item, dim
        self._all = self._regions(range(self.layers))

    def memory(self) -> Memory:
        return SlabMemory()

    def place(self, slots: Slots, layers: range | None = None) -> ChunkBuffers:
        regions = self._all if layers is None else self._regions(layers)
        return RegionBuffers(regions, slots, self._threads)

    def fence(self, loading: bool = False) -> Callable[[], None]:
        return no_wait

    def load_layers(self, slots: Slots, addresses: Addresses, loaded: OnLoaded) -> None:
        load_in_turn(self, slots, addresses, loaded)

    def planes(self, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = chunks.view(self._caches[0].dtype).chunk(2, dim=1)
        shape = (len(chunks), self.layers, self._heads)
        return k.view(*shape, self._dim, -1).transpose(3, 4), v.view(*shape, -1, self._dim)

    def _regions(self, layers: range) -> list[Region]:
        # A head is to a Paged what a layer is: its own base.
        bases = np.array(
            [
                self._caches[layer].data_ptr() + head * self._head_bytes
                for layer in layers
                for head in range(self._heads)
            ],
            dtype=np.uint64,
        )
        tokens, block_stride, slots = self._block
        none = np.empty(0, dtype=np.uint64)
        row = tokens * self._item
        k = _native.Paged(
            bases, none, tokens, block_stride, self._item, row, self._dim, self._item, slots
        )
        v_bases = bases + np.uint64(self._v_offset)
        width = self._dim * self._item
        v = _native.Paged(v_bases, none, tokens, block_stride, width, 0, 1, width, slots)
        first = layers.start * self._plane
        return [Region(k, first), Region(v, self.layers * self._plane + first)]


class WholeBlocks:
    """KV whose order inside a block is the backend's own affair: only whole blocks are moved.

    A chunk is its blocks one after another, layer by layer; ``chunk_tokens`` must be a multiple of
    the block's tokens. Raises ``ValueError`` if it is not.
    """

    def __init__(
        self, caches: Sequence[torch.Tensor], block_tokens: int, chunk_tokens: int, threads: int
    ) -> None:
        if chunk_tokens % block_tokens:
            raise ValueError(
                f"chunk_tokens {chunk_tokens} is no multiple of vLLM's block of {block_tokens}"
                " tokens, and this attention backend's blocks can only be moved whole"
            )
        self._caches = list(caches)
        self._threads = threads
        self._tokens = block_tokens
        self.layers = len(caches)
        # Kernel blocks may be smaller than the blocks that vLLM counts: they lie side by side.
        kernel_tokens = caches[0].shape[2]
        self._block_bytes = caches[0].stride(0) * caches[0].element_size()
        self._block_bytes *= block_tokens // kernel_tokens
        self._blocks = caches[0].shape[0] * kernel_tokens // block_tokens
        self._layer_bytes = self._block_bytes * chunk_tokens // block_tokens
        self.chunk_bytes = self.layers * self._layer_bytes
        self._all = self._regions(range(self.layers))

    def memory(self) -> Memory:
        return SlabMemory()

    def place(self, slots: Slots, layers: range | None = None) -> ChunkBuffers:
        first = slots[:, :: self._tokens]
        blocks = np.where(first < 0, -1, first // self._tokens)
        regions = self._all if layers is None else self._regions(layers)
        return RegionBuffers(regions, blocks, self._threads)

    def fence(self, loading: bool = False) -> Callable[[], None]:
        return no_wait

    def load_layers(self, slots: Slots, addresses: Addresses, loaded: OnLoaded) -> None:
        load_in_turn(self, slots, addresses, loaded)

    def planes(self, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise ValueError("blend can't tell K apart in this attention backend's blocks")

    def _regions(self, layers: range) -> list[Region]:
        bases = np.array([self._caches[i].data_ptr() for i in layers], dtype=np.uint64)
        size = self._block_bytes
        none = np.empty(0, dtype=np.uint64)
        paged = _native.Paged(bases, none, 1, size, 0, 0, 1, size, self._blocks)
        return [Region(paged, layers.start * self._layer_bytes)]


class TensorBlocks:
    """KV in strided tensors ``[blocks, heads, tokens, content]`` on any device, by torch's
    indexing.

    A chunk is ``[layers][tokens][heads][content]``. On a GPU, copies run on a stream of their own.
    """

    def __init__(self, caches: Sequence[torch.Tensor], chunk_tokens: int) -> None:
        _, heads, self._block_tokens, content = caches[0].shape
        self._caches = list(caches)
        self.layers = len(caches)
        self._shape = (chunk_tokens, heads, content)
        self.layer_bytes = chunk_tokens * heads * content * caches[0].element_size()
        self.chunk_bytes = self.layers * self.layer_bytes
        cuda = caches[0].is_cuda
        streams: Any = torch.cuda
        self._stream: Any = streams.Stream(caches[0].device) if cuda else None

    def memory(self) -> Memory:
        return SlabMemory()

    def place(self, slots: Slots, layers: range | None = None) -> ChunkBuffers:
        return BlockBuffers(self, slots, layers)

    def fence(self, loading: bool = False) -> Callable[[], None]:
        if self._stream is None:
            return no_wait
        streams: Any = torch.cuda
        event = streams.Event()
        event.record(streams.current_stream(self._caches[0].device))
        stream = self._stream  # of both directions
        return lambda: stream.wait_event(event)

    def load_layers(self, slots: Slots, addresses: Addresses, loaded: OnLoaded) -> None:
        load_in_turn(self, slots, addresses, loaded)

    def planes(self, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return planes_of_heads(chunks, self._caches[0].dtype, self.layers, self._shape)

    def move(self, slots: Slots, layers: range, addresses: Addresses, out: bool) -> None:
        """Moves these layers of chunks: ``out``: engine -> host, else host -> engine."""
        with torch.cuda.stream(self._stream):
            for row, address in zip(slots, addresses, strict=True):
                tokens = np.flatnonzero(row >= 0)
                block, offset = np.divmod(row[tokens], self._block_tokens)
                for layer in layers:
                    cache = self._caches[layer]
                    b = torch.as_tensor(block, device=cache.device)
                    o = torch.as_tensor(offset, device=cache.device)
                    there = int(address) + layer * self.layer_bytes
                    host = _host_tensor(there, self._shape, cache.dtype)
                    t = torch.as_tensor(tokens)
                    if out:
                        host[t] = cache[b, :, o, :].to("cpu")
                    else:
                        cache[b, :, o, :] = host[t].to(cache.device)
        if self._stream is not None:
            self._stream.synchronize()

    def move_coded(self, slots: Slots, addresses: Addresses, codec: Codec, out: bool) -> bool:
        """Returns False: torch's indexing codes nothing on its way."""
        return False


class MovesSlots(Protocol):
    """Blocks that move slots of some layers to (``out``) or from host memory."""

    layers: int

    def move(self, slots: Slots, layers: range, addresses: Addresses, out: bool) -> None:
        """Moves the layers' part of each chunk."""

    def move_coded(self, slots: Slots, addresses: Addresses, codec: Codec, out: bool) -> bool:
        """Moves whole chunks, coding on the way; returns False where that can't be."""


class BlockBuffers(SlotBuffers):
    """Buffers of chunks in blocks that move themselves; of some layers only, if not of all."""

    def __init__(self, blocks: MovesSlots, slots: Slots, layers: range | None) -> None:
        super().__init__(slots)
        self._blocks, self._layers = blocks, layers or range(blocks.layers)

    def move(self, addresses: Addresses, out: bool) -> None:
        self._blocks.move(self._slots, self._layers, addresses, out)

    def move_coded(self, addresses: Addresses, codec: Codec, out: bool) -> bool:
        whole = len(self._layers) == self._blocks.layers
        return whole and self._blocks.move_coded(self._slots, addresses, codec, out)


def planes_of_heads(
    chunks: torch.Tensor, dtype: torch.dtype, layers: int, shape: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns K and V, as :meth:`EngineBlocks.planes` does, of chunks ``[layers, *shape]`` of
    ``shape`` (tokens, heads, content): content is K and then V."""
    whole = chunks.view(dtype).view(len(chunks), layers, *shape).transpose(2, 3)
    return whole[..., : shape[2] // 2], whole[..., shape[2] // 2 :]


def _host_tensor(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = (ctypes.c_uint8 * size).from_address(address)
    return torch.frombuffer(buffer, dtype=dtype).view(shape)


def no_wait() -> None:
    """Returns at once: the CPU has done what it was given."""


def slots_of(blocks: NDArray[np.int32], block_tokens: int, tokens: range) -> Slots:
    """Returns the slots of a request's tokens, by its blocks from token 0 on."""
    at = np.arange(tokens.start, tokens.stop, dtype=np.int64)
    return blocks[at // block_tokens].astype(np.int64) * block_tokens + at % block_tokens


def save_slots(save: SaveSpec, block_tokens: int, size: int, first: int, last: int) -> Slots:
    """Returns a row for each of the chunks ``first`` .. ``last`` of a save, of ``size`` tokens:
    slots of vLLM's, whose blocks have ``block_tokens``, or blocks of groups."""
    if save.blocks.ndim > 1:
        return save.blocks[first:last].astype(np.int64)
    tokens = range(save.offset + first * size, save.offset + last * size)
    return slots_of(save.blocks, block_tokens, tokens).reshape(-1, size)


def slots_within(
    blocks: NDArray[np.int32], block_tokens: int, tokens: range, wanted: range
) -> Slots:
    """Returns the slots of a request's tokens as :func:`slots_of`, but -1 outside ``wanted``."""
    slots = np.full(len(tokens), -1, dtype=np.int64)
    inside = range(max(tokens.start, wanted.start), min(tokens.stop, wanted.stop))
    if inside:
        first = inside.start - tokens.start
        slots[first : first + len(inside)] = slots_of(blocks, block_tokens, inside)
    return slots
