"""One request's KV in the engine's own memory, the transformers Cache that reads it, and what moves
chunks in and out of it on its device.

transformers' DynamicCache concatenates: every forward copies all KV of every layer. Here a
request's KV has a static buffer; a forward writes its new rows after the old ones and attention
reads a view.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from cache_core import _native
from cache_core.layout import KVLayout
from cache_core.plan import StoreOutcome
from cache_core.tiers.tensor import TensorBuffers, current_stream
from cache_core.transfer.chunks import ChunkBuffers, PagedBuffers, addresses_from
from cache_core.transfer.cuda import cuda_module
from cache_core.transfer.gpu import CopyStreams, GpuBuffers, Ready

if TYPE_CHECKING:
    from cache_core import _cuda


def wait_for(device: torch.device) -> None:
    """Waits until the device has done what this thread queued there, so that a clock that is read
    then tells the truth. On a CPU it returns at once."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class ArenaLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """One layer's K and V, views ``[1, kv_heads, capacity, head_dim]`` of the static KV buffer."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Does nothing: the memory is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new rows after the old; returns views of all rows so far."""
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


class KvBuffer:
    """The static KV buffer of one request: ``[layers, 2, kv_heads, capacity, head_dim]``, faulted
    in once.

    ``pending`` is the store that still reads this memory; wait for it before writing here. ``lent``
    counts how often the buffer was given to a request: what one left is there until the next.
    """

    def __init__(self, layout: KVLayout, capacity: int, device: torch.device) -> None:
        shape = (layout.layers, 2, layout.kv_heads, capacity, layout.head_dim)
        dtype: torch.dtype = getattr(torch, layout.dtype)
        self.layout, self.capacity = layout, capacity
        if device.type == "cpu":
            self._slab = _native.Slab(layout.token_bytes * capacity)
            flat = torch.from_numpy(self._slab.view())
            self.tensor = flat.view(dtype).view(shape)
        else:
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.pending: Future[StoreOutcome] | None = None
        self.lent = 0
        layers = [ArenaLayer(kv[0][None], kv[1][None]) for kv in self.tensor]
        self.cache = Cache(layers=layers)
        self._ways = ways_of(device)
        known = device.type == "cpu" or self._ways is not None
        self._paged = self._describe() if known else None

    def wait(self) -> None:
        """Waits until no store reads the static KV buffer any more."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def seek(self, tokens: int) -> None:
        """Declares the first ``tokens`` rows this request's; the next forward writes after them."""
        for layer in self.cache.layers:
            layer.length = tokens

    def chunks(self, layout: KVLayout, first: int, count: int, threads: int) -> ChunkBuffers:
        """Returns the buffers of ``count`` chunks from chunk ``first`` on."""
        size = layout.chunk_tokens
        if self._paged is None:
            places = [(i * size, (i + 1) * size) for i in range(first, first + count)]
            return self.spans(layout, places, threads)
        tokens: NDArray[np.int64] = np.arange(first * size, (first + count) * size, dtype=np.int64)
        return self._place(self._paged, tokens.reshape(count, size), layout, threads)

    def spans(
        self, layout: KVLayout, spans: Sequence[tuple[int, int]], threads: int
    ) -> ChunkBuffers:
        """Returns the buffers of chunks at any tokens (start, stop). What a span is shorter than a
        chunk is left out of it, and is undefined where the chunk is kept."""
        if self._paged is None:
            return TensorBuffers([self.tensor[..., start:stop, :] for start, stop in spans])
        slots = np.full((len(spans), layout.chunk_tokens), -1, dtype=np.int64)
        for row, (start, stop) in zip(slots, spans, strict=True):
            row[: stop - start] = np.arange(start, stop)
        return self._place(self._paged, slots, layout, threads)

    def _place(
        self, paged: _native.Paged, slots: NDArray[np.int64], layout: KVLayout, threads: int
    ) -> ChunkBuffers:
        if self._ways is None:
            return PagedBuffers(paged, slots, layout, threads)
        return GpuBuffers(self._ways, paged, slots, layout, after_now(self.tensor.device))

    def _describe(self) -> _native.Paged:
        item = self.tensor.element_size()
        layer, plane, head, token, _ = (step * item for step in self.tensor.stride())
        k = addresses_from(self.tensor.data_ptr(), self.layout.layers, layer)
        return _native.Paged(
            k_bases=k,
            v_bases=k + np.uint64(plane),
            block_tokens=self.capacity,
            block_stride=self.capacity * token,
            token_stride=token,
            head_stride=head,
            kv_heads=self.layout.kv_heads,
            head_bytes=self.layout.head_bytes,
            num_slots=self.capacity,
        )


logger = logging.getLogger("lmcache")


def ways_of(device: torch.device) -> CopyStreams | None:
    """Returns the streams that move KV on this device. None where torch has to move it, said once:
    no CUDA device, or kernels that are not built or don't start."""
    return _ways(index_of(device)) if device.type == "cuda" else None


def index_of(device: torch.device) -> int:
    """Returns the number of a CUDA device, which torch leaves out where it is the current one."""
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _ways(index: int) -> CopyStreams | None:
    try:
        return CopyStreams(index)
    except RuntimeError as error:  # CudaMissing and CudaError
        logger.warning("KV is moved by torch, which is slow: %s", error)
        return None


def after_now(device: torch.device) -> Ready:
    """Orders streams after what this thread has queued on the device so far."""
    mark: _cuda.Mark = cuda_module().Mark(index_of(device), current_stream(device))
    return mark.hold
