"""A session of one cell over the transformers engine: requests one by one, over what the cache has
of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cache_core.cache import TieredCache
from cache_core.keys import ChunkHasher
from cache_core.plan import LoadOutcome
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.capacity import CachedSession
from lmcache_cli.engines.engine import Load, first_come_first_served, sample_of
from lmcache_cli.engines.transformers.kv_buffer import KvBuffer
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from lmcache_cli.engines.transformers.open_cache import tier_troubles
from reports.sample import Sample
from workloads.request import Request

_NOTHING = LoadOutcome(0, {}, 0, 0.0)
WAIT_S = 10.0
"""Seconds to wait for chunks that are being stored: far beyond what a copy takes."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt's prefill: its last ``logits`` ``[vocabulary]`` and what it took; the last four are
    blend's, see :class:`reports.sample.Sample`."""

    logits: torch.Tensor
    loaded: LoadOutcome
    hit_tokens: Mapping[str, int]
    lookup_s: float
    ready_s: float
    """The time on the engine's clock when computing could begin."""
    stored: int
    """Bytes that go to the tiers for the prompt."""
    keys: tuple[bytes, ...] = ()
    blended_tokens: int | None = None
    selected_tokens: int | None = None
    token_layer_share: float | None = None
    blend_s: float | None = None


class TransformersSession(CachedSession):
    """A session of one cell over the transformers engine."""

    def __init__(self, engine: ModelRunner, spec: CacheSpec, cache: TieredCache | None) -> None:
        self.engine = engine
        self.spec = spec
        super().__init__(cache)
        self.keep_logits = False
        """Whether to keep each request's first logits in :attr:`logits`: ``verify`` compares
        them."""
        self.logits = torch.empty(0)
        self._hasher = ChunkHasher(engine.namespace(spec))

    def serve(self, requests: Sequence[Request], load: Load) -> Iterator[Sample]:
        return first_come_first_served(requests, load, self._serve, self.engine.now, time.sleep)

    def chunk_bytes(self) -> int:
        return self.engine.layout(self.spec.chunk_tokens).chunk_bytes

    def troubles(self) -> Mapping[str, Mapping[str, int]]:
        return tier_troubles(self.cache.tiers) if self.cache is not None else {}

    def _serve(self, request: Request, scheduled_s: float, sent_s: float) -> Sample:
        engine, now = self.engine, self.engine.now
        ids = request.token_ids
        self._before()
        buffer = engine.kv_buffer()
        served = self._prefill(request, buffer)
        token = int(served.logits.argmax())
        times = [now()]
        if self.keep_logits:
            self.logits = served.logits.float()
        output = [token]
        while len(output) < request.max_tokens:
            step = np.array([token], dtype=np.int32)
            token = int(engine.forward(buffer, step, len(ids) + len(output) - 1).argmax())
            times.append(now())
            output.append(token)
        self._after(request, buffer, served)
        return sample_of(
            request,
            scheduled_s,
            sent_s,
            times,
            hit_tokens=served.hit_tokens,
            bytes_loaded=served.loaded.bytes,
            bytes_stored=served.stored,
            load_s=served.loaded.seconds,
            lookup_s=served.lookup_s,
            prefill_s=times[0] - served.ready_s,
            output_ids=tuple(output),
            blended_tokens=served.blended_tokens,
            selected_tokens=served.selected_tokens,
            token_layer_share=served.token_layer_share,
            blend_s=served.blend_s,
        )

    def _before(self) -> None:
        """Runs before a request's KV buffer is taken; does nothing here."""

    def _prefill(self, request: Request, buffer: KvBuffer) -> Prefilled:
        """Prefills the prompt, over what the cache has of it."""
        engine, now = self.engine, self.engine.now
        ids, size = request.token_ids, self.spec.chunk_tokens
        began = now()
        keys: tuple[bytes, ...] = ()
        loaded = _NOTHING
        stored = 0
        if self.cache is not None:
            keys = tuple(self._hasher.keys(ids).prefix)
            # The last token's logits must be computed, so a hit leaves at least one token.
            hit = self.cache.acquire(keys[: (len(ids) - 1) // size], WAIT_S)
            found = now()
            if hit.keys:
                place = buffer.chunks(self.cache.layout, 0, len(hit), engine.threads)
                loaded = self.cache.load(hit, place)
            stored = (len(keys) - loaded.chunks) * self.cache.layout.chunk_bytes
        else:
            found = now()
        ready = now()
        past = loaded.chunks * size
        logits = engine.forward(buffer, ids[past:], past)
        hits = {name: count * size for name, count in loaded.by_tier.items()}
        return Prefilled(logits, loaded, hits, found - began, ready, stored, keys)

    def _after(self, request: Request, buffer: KvBuffer, served: Prefilled) -> None:
        """Stores the prompt's KV, after the answer."""
        if self.cache is not None and served.keys:
            # One thread: a store overlaps the next prefill, and more of them cost that 4 %.
            place = buffer.chunks(self.cache.layout, 0, len(served.keys), 1)
            buffer.pending = self.cache.store(served.keys, place)
