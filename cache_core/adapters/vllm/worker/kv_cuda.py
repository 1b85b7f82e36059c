"""Moves vLLM's KV on a GPU by this project's kernels and the GPU's copy engines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cache_core import _native
from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.worker.kv_blocks import (
    BlockBuffers,
    OnLoaded,
    Slots,
    planes_of_heads,
)
from cache_core.layout import Addresses
from cache_core.tiers.memory import Memory
from cache_core.tiers.tensor import current_stream
from cache_core.transfer.chunks import ChunkBuffers
from cache_core.transfer.codec import Codec
from cache_core.transfer.cuda import CudaMissing, PinnedMemory, cuda_devices
from cache_core.transfer.gpu import CopyStreams
from cache_core.transfer.planner import Planner, load_costs

if TYPE_CHECKING:
    from cache_core import _cuda

logger = logging.getLogger("lmcache")


def cuda_blocks(caches: Sequence[torch.Tensor], options: ConnectorOptions) -> CudaBlocks | None:
    """Returns the KV as :class:`CudaBlocks`; None, with a word in the log, where the kernels are
    not built or don't fit these tensors: then torch's indexing does it. Raises ``ValueError`` for a
    ``transfer_file`` that is none."""
    try:
        gpus = cuda_devices()
    except CudaMissing as error:
        logger.warning("KV is moved by torch, which is slow: %s", error)
        return None
    if any(cache.stride(3) != 1 or cache.dtype != caches[0].dtype for cache in caches):
        logger.warning("KV is moved by torch, which is slow: heads are not contiguous")
        return None
    planner = Planner()
    if options.transfer_file:
        path = Path(options.transfer_file).expanduser()
        try:
            planner = load_costs(path, gpus[caches[0].device.index or 0]["name"])
        except OSError as error:
            raise ValueError(
                f"kv_connector_extra_config: transfer_file {path} can't be read: {error.strerror};"
                " make it with lmcache probe --transfer"
            ) from error
    return CudaBlocks(caches, options.chunk_tokens, planner)


class CudaBlocks:
    """KV in tensors ``[blocks, heads, tokens, content]`` of any strides but the last, which is 1.

    A chunk is ``[layers][tokens][heads][content]``, as in ``TensorBlocks``. Each direction has a
    stream of its own; moves return when the bytes are there.
    """

    def __init__(self, caches: Sequence[torch.Tensor], chunk_tokens: int, planner: Planner) -> None:
        blocks, heads, tokens, content = caches[0].shape
        self._caches = list(caches)  # keeps the memory alive
        self._device = caches[0].device.index or 0
        self.layers = len(caches)
        item = caches[0].element_size()
        self._item, self._dtype = item, str(caches[0].dtype).removeprefix("torch.")
        self._shape = (chunk_tokens, heads, content)
        self._tokens, self._slots = tokens, blocks * tokens
        self._strides = [s * item for s in caches[0].stride()]
        self.layer_bytes = chunk_tokens * heads * content * item
        self.chunk_bytes = self.layers * self.layer_bytes
        self._all = self._paged(range(self.layers), heads, content)
        self._ways = CopyStreams(self._device, planner)

    def memory(self) -> Memory:
        return PinnedMemory(self._device)

    def place(self, slots: Slots, layers: range | None = None) -> ChunkBuffers:
        return BlockBuffers(self, slots, layers)

    def fence(self, loading: bool = False) -> Callable[[], None]:
        mark = self._ways.mark(current_stream(self._caches[0].device))
        return partial(mark.hold, self._ways.stream("in" if loading else "out"))

    def load_layers(self, slots: Slots, addresses: Addresses, loaded: OnLoaded) -> None:
        with self._ways.way("in") as transfer:
            for layer in range(self.layers):
                self._queue(transfer, slots, range(layer, layer + 1), addresses, "in")
                loaded(layer + 1, partial(self._hold, self._ways.mark(transfer.stream)))

    def _hold(self, mark: _cuda.Mark) -> None:
        """Makes the engine, in whose thread this is called, go on after the mark."""
        mark.hold(current_stream(self._caches[0].device))

    def planes(self, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return planes_of_heads(chunks, self._caches[0].dtype, self.layers, self._shape)

    def move(self, slots: Slots, layers: range, addresses: Addresses, out: bool) -> None:
        """Moves these layers of chunks: ``out``: engine -> host, else host -> engine."""
        way = "out" if out else "in"
        with self._ways.way(way) as transfer:
            self._queue(transfer, slots, layers, addresses, way)

    def _queue(
        self, transfer: _cuda.Transfer, slots: Slots, layers: range, addresses: Addresses, way: str
    ) -> None:
        every = len(layers) == self.layers
        paged = self._all if every else self._paged(layers, *self._shape[1:])
        there = addresses + np.uint64(layers.start * self.layer_bytes)
        dma = self._ways.choose(way, paged, slots, "NHD") == "dma"
        name = ("gather" if way == "out" else "scatter") + ("_dma" if dma else "")
        getattr(transfer, name)(paged, slots, there, "NHD")

    def move_coded(self, slots: Slots, addresses: Addresses, codec: Codec, out: bool) -> bool:
        """Moves all layers of coded chunks: ``out``: engine -> host. Returns False where the
        codec's rows are no parts of a head: then nothing was moved."""
        _, heads, content = self._shape
        parts = content // codec.items
        fits = codec.dtype == self._dtype and content % codec.items == 0
        if not fits or (parts > 1 and self._strides[1] != content * self._item):
            return False
        paged = self._paged(range(self.layers), heads * parts, codec.items)
        with self._ways.way("out" if out else "in") as transfer:
            verb = transfer.gather_coded if out else transfer.scatter_coded
            verb(paged, slots, addresses, "NHD", codec.dtype, codec.name)
        return True

    def _paged(self, layers: range, heads: int, content: int) -> _native.Paged:
        bases = np.array([self._caches[i].data_ptr() for i in layers], dtype=np.uint64)
        block, head, token, _ = self._strides
        if heads != self._shape[1]:
            head = content * self._item  # parts of heads that lie side by side
        none = np.empty(0, dtype=np.uint64)
        width = content * self._item
        return _native.Paged(
            bases, none, self._tokens, block, token, head, heads, width, self._slots
        )
