"""One request's KV and states of a model whose layers keep different things: windows beside full
attention, recurrent states, K and V of unlike heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from cache_core.groups import KeptLayer, NumberedChunk, piece
from cache_core.layout import Group, Keeps
from cache_core.tiers.tensor import PartBuffers
from lmcache_cli.engines.transformers.kv_buffer import ArenaLayer, KvBuffer
from lmcache_cli.errors import UserError

States = Mapping[int, Sequence[Tensor]]
"""The states of each layer that has any, by the layer's number."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer of a loaded model keeps: K, V and an indexer's keys (where it has one) of each
    token, ``[heads, items]``, over a ``span`` of tokens where there is one, or states of any
    shape."""

    keeps: Keeps
    span: int | None
    kv: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    states: tuple[Tensor, ...] = ()
    """Tensors like the states, on the model's device: first those of convolutions."""
    convolutions: int = 0

    @property
    def token_bytes(self) -> int:
        """Returns the bytes of K and V of one token."""
        return sum(math.prod(heads) for heads in self.kv) * self.dtype.itemsize

    @property
    def state_bytes(self) -> int:
        """Returns the bytes of all states."""
        return sum(state.numel() * state.element_size() for state in self.states)

    def kept(self, number: int) -> KeptLayer:
        """Returns what the layer of that number keeps."""
        return KeptLayer(str(number), self.token_bytes, self.state_bytes, self.keeps, self.span)


@torch.inference_mode()
def layer_shapes(name: str, model: Any) -> tuple[LayerShape, ...]:
    """Returns what each layer keeps, as it is seen after a prompt of two tokens. Raises
    ``UserError`` for a layer that keeps something else than K, V and states."""
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    kinds = list(getattr(config, "layer_types", None) or [])
    shapes = []
    for number, layer in enumerate(cache.layers):
        local = number < len(kinds) and kinds[number] == "chunked_attention"
        shapes.append(_shape(name, number, layer, local))
    return tuple(shapes)


def _shape(name: str, number: int, layer: Any, local: bool) -> LayerShape:
    if type(layer) is LinearAttentionLayer:
        convolutions = [x for x in layer.conv_states.values() if x is not None]
        recurrent = [x for x in layer.recurrent_states.values() if x is not None]
        states = tuple(torch.zeros_like(x) for x in (*convolutions, *recurrent))
        dtype = states[0].dtype if states else torch.float32
        return LayerShape("state", None, (), dtype, states, len(convolutions))
    if type(layer) not in (DynamicLayer, DynamicIndexedLayer, DynamicSlidingWindowLayer):
        raise UserError(
            f"model {name}: layer {number} keeps a {type(layer).__name__}, which can't be reused"
        )
    kv = tuple((x.shape[1], x.shape[3]) for x in (layer.keys, layer.values))
    if type(layer) is DynamicIndexedLayer and layer.is_indexer_initialized:
        kv = (*kv, (1, layer.indexer_keys.shape[2]))
    if type(layer) is not DynamicSlidingWindowLayer:
        return LayerShape("all", None, kv, layer.keys.dtype)
    return LayerShape("local" if local else "window", layer.sliding_window, kv, layer.keys.dtype)


class WindowLayer(ArenaLayer):
    """One layer's K and V, of which attention sees the last ``span - 1`` tokens before the new
    ones."""

    is_sliding = True

    def __init__(self, keys: Tensor, values: Tensor, span: int) -> None:
        super().__init__(keys, values)
        self.span = span

    @property
    def _first(self) -> int:
        return max(0, self.length - (self.span - 1))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes new rows after the old; returns views of those that are in sight."""
        first = self._first
        keys, values = super().update(key_states, value_states)
        return keys[:, :, first:], values[:, :, first:]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length - self._first, self._first


class IndexedLayer(ArenaLayer):
    """One layer's K and V with the keys by which an indexer chooses among them."""

    def __init__(self, keys: Tensor, values: Tensor, indexer_keys: Tensor) -> None:
        super().__init__(keys, values)
        self.indexer_keys, self.indexed = indexer_keys[:, 0], 0

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        """Writes new keys after the old; returns a view of all so far."""
        end = self.indexed + indexer_key_states.shape[1]
        self.indexer_keys[:, self.indexed : end] = indexer_key_states
        self.indexed = end
        return self.indexer_keys[:, :end]


class GroupedBuffer(KvBuffer):
    """The static buffer of one request where layers differ: K and V of ``capacity`` tokens for each
    layer that has any, and states."""

    def __init__(self, shapes: Sequence[LayerShape], capacity: int, device: torch.device) -> None:
        self.capacity, self.pending, self.lent = capacity, None, 0
        self._states: dict[int, LinearAttentionLayer] = {}
        self._kv: dict[int, tuple[Tensor, ...]] = {}
        layers: list[Any] = []
        for number, shape in enumerate(shapes):
            if shape.keeps == "state":
                layers.append(_state_layer(shape))
                if shape.states:
                    self._states[number] = layers[-1]
                continue
            self._kv[number] = tuple(
                torch.zeros((1, heads, capacity, items), dtype=shape.dtype, device=device)
                for heads, items in shape.kv
            )
            layers.append(_arena_layer(shape, self._kv[number]))
        self.cache = Cache(layers=layers)

    @property
    def recurrent(self) -> bool:
        """Returns whether any layer has states: they are those of the last forward alone."""
        return bool(self._states)

    def seek(self, tokens: int) -> None:
        """Declares the first ``tokens`` rows this request's; states must be those behind them, but
        for none: then they are begun anew."""
        for layer in self.cache.layers:
            if isinstance(layer, ArenaLayer):
                layer.length = tokens
                if isinstance(layer, IndexedLayer):
                    layer.indexed = tokens
            elif not tokens:
                layer.reset()

    def resume(self) -> None:
        """Declares that states were loaded: a forward goes on from them."""
        for layer in self._states.values():
            layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)

    def states(self) -> States:
        """Returns a copy of the states as they are now."""
        return {n: [x.clone() for x in _tensors(layer)] for n, layer in self._states.items()}

    def rows(
        self,
        rows: Sequence[NumberedChunk],
        groups: Sequence[Group],
        chunk_tokens: int,
        kept: Mapping[int, States] | None = None,
    ) -> PartBuffers:
        """Returns the buffers of chunks of groups. States are those in ``kept``, by how many chunks
        are before them; without it those of the next forward."""
        parts = []
        for number, chunk in rows:
            tokens = slice(chunk * chunk_tokens, (chunk + 1) * chunk_tokens)
            part: list[Tensor] = []
            for name in groups[number].layers:
                of, cut = piece(name)
                layer = int(of)
                if layer in self._kv:
                    part += [x[0, :, tokens] for x in self._kv[layer]]
                elif kept is None:
                    part += _bytes_of(_tensors(self._states[layer]), cut)
                else:
                    part += _bytes_of(kept[chunk + 1][layer], cut)
            parts.append(part)
        return PartBuffers(parts)


def _arena_layer(shape: LayerShape, tensors: Sequence[Tensor]) -> ArenaLayer:
    keys, values, *indexer_keys = tensors
    if indexer_keys:
        return IndexedLayer(keys, values, *indexer_keys)
    return ArenaLayer(keys, values) if shape.span is None else WindowLayer(keys, values, shape.span)


def _state_layer(shape: LayerShape) -> LinearAttentionLayer:
    recurrent = shape.states[shape.convolutions :]
    layer = LinearAttentionLayer(max(1, shape.convolutions, len(recurrent)))
    for index, like in enumerate(shape.states[: shape.convolutions]):
        layer.lazy_initialization(conv_states=like, state_idx=index)
    for index, like in enumerate(recurrent):
        layer.lazy_initialization(recurrent_states=like, state_idx=index)
    return layer


def _tensors(layer: LinearAttentionLayer) -> list[Tensor]:
    states = (*layer.conv_states.values(), *layer.recurrent_states.values())
    return [state for state in states if state is not None]


def _bytes_of(states: Sequence[Tensor], cut: slice) -> list[Tensor]:
    """Returns views of those bytes of the states, one after another, that the cut has."""
    if cut == slice(None):
        return list(states)
    parts, before = [], 0
    for state in states:
        flat = state.view(-1).view(torch.uint8)
        part = flat[max(0, cut.start - before) : max(0, cut.stop - before)]
        before += len(flat)
        if len(part):
            parts.append(part)
    return parts
