"""One cell of ``--reuse shared`` over the transformers engine.

The base's hidden states at the layers where a group of recomputed ones begins are in tiers. They
are DroidSpeak's E cache (section 4): chunks of their own, in a cache of their own, because a chunk
has one length, and only fine-tunes need these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.plan import LoadOutcome
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.transformers.blend.quality import judged
from lmcache_cli.engines.transformers.cross_model.forward import (
    Computed,
    CrossModelBase,
    prefill,
    prefill_over,
)
from lmcache_cli.engines.transformers.cross_model.layers import entries, layer_groups
from lmcache_cli.engines.transformers.kv_buffer import KvBuffer
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from lmcache_cli.engines.transformers.open_cache import open_cache
from lmcache_cli.engines.transformers.session import WAIT_S, Prefilled, TransformersSession
from lmcache_cli.errors import CellError
from reports.quality import Quality
from workloads.request import Request, TokenIds


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


class CrossModelSession(TransformersSession):
    """A session that serves requests over the model's own chunks, and over the base's after them,
    of which it computes some layers again. What it computes itself is stored under its own keys
    only where nothing of the base's went into it."""

    def __init__(
        self, engine: ModelRunner, base: CrossModelBase, spec: CacheSpec, max_tokens: int
    ) -> None:
        loaded = engine.loaded
        self.base, self.runner = base, engine.layers()
        assert spec.shared is not None
        try:
            self.groups = layer_groups(spec.shared.recompute_layers, len(self.runner.layers))
        except ValueError as error:
            raise CellError(f"--recompute-layers: {error}") from error
        namespace = base.namespace(spec)
        self._theirs = ChunkHasher(namespace)
        wanted, width = entries(self.groups), int(loaded.config.hidden_size)
        small = None
        if wanted:
            beside = hidden_layout(namespace, wanted, width)
            spec, small = split_tiers(spec, namespace.layout, beside)
        self.tiers = open_cache(spec, namespace, loaded.device)
        self.hidden: HiddenStates | None = None
        try:
            super().__init__(engine, spec, self.tiers)
            if small is not None:
                self.hidden = HiddenStates(
                    small, namespace, wanted, width, max_tokens, loaded.device
                )
        except BaseException:
            self.tiers.close()
            raise
        self._last: tuple[KvBuffer, torch.Tensor] | None = None

    def share(self, requests: Sequence[Request]) -> None:
        """Lets the base serve the requests' prompts, so that the tiers have what it computes."""
        for request in requests:
            ids = request.token_ids
            keys = self._theirs.keys(ids).prefix
            buffer = self.engine.kv_buffer()
            self._last = None
            states: dict[int, torch.Tensor] = {}
            if self.hidden is not None:
                shape = (len(ids), int(self.engine.loaded.config.hidden_size))
                like = buffer.tensor
                for layer in self.hidden.layers:
                    states[layer] = torch.empty(shape, dtype=like.dtype, device=like.device)
            prefill(self.base.runner, _tensor(ids, buffer), buffer.tensor, states)
            if keys:
                place = buffer.chunks(self.tiers.layout, 0, len(keys), 1)
                buffer.pending = self.tiers.store(keys, place)
            if self.hidden is not None:
                self.hidden.store(ids, states)
            self.settle()

    def judge(self, request: Request) -> Quality:
        return judged(self.engine, self._last, request)

    def settle(self) -> None:
        super().settle()
        if self.hidden is not None:
            self.hidden.cache.flush()

    def clear(self) -> None:
        super().clear()
        if self.hidden is not None:
            self.hidden.cache.clear()

    def close(self) -> None:
        super().close()
        if self.hidden is not None:
            self.hidden.cache.close()

    def _prefill(self, request: Request, buffer: KvBuffer) -> Prefilled:
        engine, now, size = self.engine, self.engine.now, self.spec.chunk_tokens
        ids = request.token_ids
        most = (len(ids) - 1) // size  # the last token's logits must be computed
        began = now()
        own_keys, keys = self._hasher.keys(ids).prefix, self._theirs.keys(ids).prefix
        hit = self.tiers.acquire(own_keys[:most], WAIT_S)
        own = self.tiers.load(hit, buffer.chunks(self.tiers.layout, 0, len(hit), engine.threads))
        first = own.chunks
        hit = self.tiers.acquire(keys[first:most], WAIT_S)
        looked = now() - began - own.seconds
        place = buffer.chunks(self.tiers.layout, first, len(hit), engine.threads)
        theirs = self.tiers.load(hit, place)
        states: dict[int, torch.Tensor] = {}
        used, extra = theirs.chunks, None
        if self.hidden is not None and used:
            states, extra = self.hidden.load(ids, first, used, engine.threads)
            used = extra.chunks
        ready = now()
        done = self._compute(buffer, ids, range(first * size, (first + used) * size), states)
        self._last = (buffer, done.logits)
        self.tiers.touch([*own_keys[:first], *keys[first : first + used]])
        lacking = () if used else tuple(own_keys)
        parts = [own, theirs, *([extra] if extra is not None else [])]
        return Prefilled(
            done.logits,
            loaded=replace(
                theirs,
                chunks=first + used,
                bytes=sum(part.bytes for part in parts),
                seconds=sum(part.seconds for part in parts),
            ),
            hit_tokens=_tokens_by_tier(own, theirs, used, size),
            lookup_s=looked,
            ready_s=ready,
            stored=max(0, len(lacking) - first) * self.tiers.layout.chunk_bytes,
            keys=lacking,
            blended_tokens=used * size,
            selected_tokens=used * size if self._all() else 0,
            token_layer_share=done.token_layers / (len(ids) * len(self.runner.layers)),
        )

    def _compute(
        self, buffer: KvBuffer, ids: TokenIds, shared: range, states: dict[int, torch.Tensor]
    ) -> Computed:
        """Computes the prompt after or over what is in the static KV buffer."""
        if not shared or not self.groups:
            rest = ids[shared.stop :]
            logits = self.engine.forward(buffer, rest, shared.stop)
            return Computed(logits, len(rest) * len(self.runner.layers))
        tokens = _tensor(ids, buffer)
        return prefill_over(self.runner, tokens, buffer.tensor, shared, self.groups, states)

    def _all(self) -> bool:
        return self.groups == (range(len(self.runner.layers)),)


def _tokens_by_tier(own: LoadOutcome, theirs: LoadOutcome, used: int, size: int) -> dict[str, int]:
    """Returns the tokens by tier of the own chunks and of the first ``used`` of the base's, fastest
    tier counted first."""
    tokens = {name: count * size for name, count in own.by_tier.items()}
    for name, count in theirs.by_tier.items():
        taken = min(count, used)
        tokens[name] = tokens.get(name, 0) + taken * size
        used -= taken
    return tokens


def _tensor(ids: TokenIds, buffer: KvBuffer) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(buffer.tensor.device)
