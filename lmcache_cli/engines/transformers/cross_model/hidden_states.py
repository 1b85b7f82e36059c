"""The base's hidden states at the layers where a group of recomputed ones begins, in tiers.

They are DroidSpeak's E cache (section 4): chunks of their own, in a cache of their own, because a
chunk has one length, and only fine-tunes need these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.plan import LoadOutcome
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.transformers.kv_buffer import KvBuffer
from lmcache_cli.engines.transformers.open_cache import open_cache
from workloads.request import TokenIds


def hidden_layout(namespace: Namespace, layers: Sequence[int], width: int) -> KVLayout:
    """Returns the layout of a token's hidden states, each cut in half: two planes of one head, as
    KV has them."""
    like = namespace.layout
    return KVLayout(len(layers), 1, width // 2, like.dtype, like.chunk_tokens)


def split_tiers(spec: CacheSpec, kv: KVLayout, hidden: KVLayout) -> tuple[CacheSpec, CacheSpec]:
    """Cuts the cell's tiers in two, so that as many chunks fit the KV's part as the hidden
    states'."""
    share = hidden.chunk_bytes / (hidden.chunk_bytes + kv.chunk_bytes)
    small = {name: int(size * share) for name, size in spec.tiers.items()}
    large = {name: size - small[name] for name, size in spec.tiers.items()}
    beside = spec.folder and spec.folder.with_name(f"{spec.folder.name}_hidden")
    return replace(spec, tiers=large), replace(spec, tiers=small, folder=beside)


class HiddenStates:
    """The cache of a base's hidden states. ``layers`` are those whose input is kept, ``width`` the
    model's hidden size, ``tokens`` the longest prompt's length. Opens tiers; see :func:`open_cache`
    for what it raises."""

    def __init__(
        self,
        spec: CacheSpec,
        namespace: Namespace,
        layers: Sequence[int],
        width: int,
        tokens: int,
        device: torch.device,
    ) -> None:
        self.layers, self.tokens = tuple(layers), tokens
        layout = hidden_layout(namespace, layers, width)
        kept = ",".join(map(str, layers))
        own = replace(namespace, layout=layout, extra={"hidden_states": kept})
        self._hasher = ChunkHasher(own)
        self.cache = open_cache(spec, own, device)
        self._kv_buffer = KvBuffer(replace(layout, chunk_tokens=1), tokens, device)
        self._size = layout.chunk_tokens

    def store(self, ids: TokenIds, states: dict[int, Tensor]) -> None:
        """Keeps the hidden states ``[tokens, width]`` of a prompt's full chunks, by layer."""
        keys = self._hasher.keys(ids).prefix
        if not keys:
            return
        self._kv_buffer.wait()
        rows = len(keys) * self._size
        for number, layer in enumerate(self.layers):
            halves = states[layer][:rows].chunk(2, dim=-1)
            self._kv_buffer.tensor[number, :, 0, :rows] = torch.stack(halves)
        place = self._kv_buffer.chunks(self.cache.layout, 0, len(keys), 1)
        self._kv_buffer.pending = self.cache.store(keys, place)

    def load(
        self, ids: TokenIds, first: int, count: int, threads: int
    ) -> tuple[dict[int, Tensor], LoadOutcome]:
        """Loads ``count`` chunks from chunk ``first`` on, or fewer. Returns the hidden states by
        layer, ``[tokens, width]``, and how many chunks."""
        self._kv_buffer.wait()
        hit = self.cache.acquire(self._hasher.keys(ids).prefix[first : first + count])
        place = self._kv_buffer.chunks(self.cache.layout, 0, len(hit), threads)
        loaded = self.cache.load(hit, place)
        rows = loaded.chunks * self._size
        planes = self._kv_buffer.tensor[:, :, 0, :rows]
        return {
            layer: torch.cat([planes[number, 0], planes[number, 1]], dim=-1)
            for number, layer in enumerate(self.layers)
        }, loaded
