"""Kinds of models by what their layers keep, as vLLM's configuration and as memory of a fake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

HEAD_DIM = 64
Hashes = list[int]

LayersKind = Literal["all", "latent", "quantised", "window", "local", "state"]


@dataclass(frozen=True, slots=True)
class Layers:
    """A group of layers. ``span`` is that of a window, or of local attention; blocks are ``times``
    as long as the shortest."""

    kind: LayersKind = "all"
    span: int = 0
    times: int = 1


KINDS: dict[str, tuple[Layers, ...]] = {
    "full": (Layers(),),
    "latent": (Layers("latent"),),
    "quantised": (Layers("quantised"),),
    "window": (Layers("window", 100),),
    "full+window": (Layers(), Layers("window", 100)),
    "full+windows": (Layers(), Layers("window", 64), Layers("window", 300)),
    "full+local": (Layers(), Layers("local", 128)),
    "full+state": (Layers(), Layers("state")),
    "lengths": (Layers(), Layers("window", 200, 2)),
    "lengths+state": (Layers(), Layers("state", 0, 2)),
}
"""The groups of layers of each kind of model."""


def spec_of(layers: Layers, block_tokens: int) -> Any:
    """vLLM's description of the layers, where the shortest blocks are of ``block_tokens``."""
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        KVQuantMode,
        MambaSpec,
        MLAAttentionSpec,
        SlidingWindowSpec,
    )

    tokens = block_tokens * layers.times
    head = HEAD_DIM // layers.times
    shared: dict[str, Any] = {
        "block_size": tokens,
        "num_kv_heads": 1,
        "head_size": head,
        "dtype": torch.float32,
    }
    if layers.kind == "window":
        return SlidingWindowSpec(**shared, sliding_window=layers.span)
    if layers.kind == "local":
        return ChunkedLocalAttentionSpec(**shared, attention_chunk_size=layers.span)
    if layers.kind == "latent":
        return MLAAttentionSpec(**shared | {"head_size": 2 * head})
    if layers.kind == "quantised":
        quantised = {"dtype": torch.uint8, "head_size": 4 * head}
        return FullAttentionSpec(**shared | quantised, kv_quant_mode=KVQuantMode.FP8_PER_TOKEN_HEAD)
    if layers.kind == "state":
        page = 2 * HEAD_DIM * block_tokens * 4
        return MambaSpec(
            block_size=tokens,
            shapes=((3, 8), (40, 16)),
            dtypes=(torch.float32, torch.float32),
            page_size_padded=page,
            mamba_cache_mode="align",
        )
    return FullAttentionSpec(**shared)


class FakeLayers:
    """The KV of one group of layers, in ``memory`` ``[blocks, words]`` that all groups share.

    Attention is laid out as vLLM's CPU backend does: inside a block K is ``[dim][token]`` and V
    ``[token][dim]``. A block of a recurrent layer holds one state, in two tensors; what is left of
    it is padding.
    """

    def __init__(
        self, number: int, layers: Layers, memory: NDArray[np.float32], block_tokens: int
    ) -> None:
        self._flat, self._layers = memory, layers
        self._tokens = block_tokens * layers.times
        self._mark = np.uint64(number * 0x9E3779B1)

    @property
    def tensors(self) -> Any:
        """What vLLM registers for a layer."""
        whole = torch.from_numpy(self._flat)
        blocks = len(whole)
        if self._layers.kind == "state":
            return [whole[:, :24].view(blocks, 3, 8), whole[:, 24:664].view(blocks, 40, 16)]
        if self._layers.kind == "quantised":
            return whole.view(torch.uint8).view(blocks, 1, self._tokens, -1)
        if self._layers.kind == "latent":
            return whole.view(blocks, self._tokens, -1)
        return whole.view(blocks, 1, self._tokens, -1)

    def write(self, table: Sequence[int], first: int, states: Hashes) -> None:
        """Fingerprints of the tokens from position ``first`` on; of a recurrent layer the last."""
        if not len(states):
            return
        at = np.arange(first, first + len(states))
        if self._layers.kind == "state":
            at, states = at[-1:], states[-1:]
        for cell, value in zip(self._cells(table, at), self._values(states), strict=True):
            self._flat[cell] = value

    def wrong(self, table: Sequence[int], states: Hashes) -> bool:
        """Whether any fingerprint is not that of ``states``, of those that the next token reads."""
        first, end = 0, len(states)
        if self._layers.kind == "window":
            first = max(0, end - self._layers.span + 1)
        elif self._layers.kind == "local":
            first = end // self._layers.span * self._layers.span
        elif self._layers.kind == "state":
            first = max(0, end - 1)
        if first >= end:
            return False
        cells = self._cells(table, np.arange(first, end))
        values = self._values(states[first:])
        return any(
            bool((self._flat[cell] != value).any())
            for cell, value in zip(cells, values, strict=True)
        )

    def _cells(self, table: Sequence[int], at: NDArray[np.int64]) -> list[Any]:
        blocks, offset = np.asarray(table, dtype=np.int64)[at // self._tokens], at % self._tokens
        if self._layers.kind == "state":
            return [(blocks, np.full(len(at), column)) for column in (0, 23, 24, 663)]
        dim = self._flat.shape[1] // (2 * self._tokens)
        values = dim * self._tokens + offset * dim
        columns = (offset, 5 * self._tokens + offset, values + 7, values)
        return [(blocks, column) for column in columns]

    def _values(self, states: Hashes) -> tuple[NDArray[np.float32], ...]:
        """Float32 holds 24 bits exactly."""
        whole = np.array(states, dtype=np.uint64) ^ self._mark
        low = (whole & np.uint64(0xFFFFFF)).astype(np.float32)
        high = ((whole >> np.uint64(24)) & np.uint64(0xFFFFFF)).astype(np.float32)
        return low, high, low, high


class FakeKV:
    """The KV of all groups of layers of a kind of model. Its blocks are of one size: any group may
    be given any of them."""

    def __init__(self, kind: str, blocks: int, block_tokens: int) -> None:
        self._memory = np.zeros((blocks, 2 * HEAD_DIM * block_tokens), dtype=np.float32)
        self.groups = [
            FakeLayers(number, layers, self._memory, block_tokens)
            for number, layers in enumerate(KINDS[kind])
        ]

    def registered(self) -> dict[str, Any]:
        """vLLM's tensors by layer."""
        return {f"layer {number}": group.tensors for number, group in enumerate(self.groups)}

    def zero(self, blocks: Sequence[int]) -> None:
        """Does what vLLM does to blocks that hold nothing yet."""
        self._memory[list(blocks)] = 0

    def copy(self, source: int, target: int) -> None:
        """Copies a block."""
        self._memory[target] = self._memory[source]

    def write(self, tables: Sequence[Sequence[int]], first: int, states: Hashes) -> None:
        """Fingerprints of the tokens from position ``first`` on, to the blocks of each group."""
        for group, table in zip(self.groups, tables, strict=True):
            group.write(table, first, states)

    def wrong(self, tables: Sequence[Sequence[int]], states: Hashes) -> bool:
        """Whether some group's KV is not that of ``states`` where the next token reads it."""
        return any(
            group.wrong(table, states) for group, table in zip(self.groups, tables, strict=True)
        )
