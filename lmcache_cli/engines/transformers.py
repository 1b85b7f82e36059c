"""The embedded engine: a Hugging Face causal LM in this process, with our cache under it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray

from cache_core.cache import Loaded, TierCounters, TieredCache
from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from lmcache_cli.engines.arena import Arena
from lmcache_cli.engines.caches import open_cache, tier_troubles
from lmcache_cli.engines.capacity import chunks_per_tier
from lmcache_cli.engines.engine import CacheSpec, Load
from lmcache_cli.engines.models import LoadedModel, load_model
from lmcache_cli.engines.schedule import first_come_first_served
from lmcache_cli.errors import UserError
from reports.sample import Sample
from workloads.request import Request

_NOTHING = Loaded(0, {}, 0, 0.0)
_ARENAS = 2  # one serves while the other's KV is still being stored
_WAIT_S = 10.0  # for chunks that are being stored: far beyond what a copy takes


class TransformersEngine:
    """Serves one request at a time; see :class:`lmcache_cli.engines.engine.Engine`."""

    name = "transformers"
    interleaves = True

    def __init__(
        self, model: str | None, device: str = "cpu", dtype: str = "auto", threads: int = 0
    ) -> None:
        self.loaded: LoadedModel = load_model(model, device, dtype)
        self.model = self.loaded.id
        self.max_context = int(self.loaded.config.max_position_embeddings)
        self.bos = self.loaded.bos
        self.encode = self.loaded.encode
        self.threads = threads or min(4, torch.get_num_threads())
        self._arenas: list[Arena] = []

    def layout(self, chunk_tokens: int) -> KVLayout:
        """The KV layout of this model for a chunk length."""
        loaded = self.loaded
        return KVLayout(
            loaded.config.num_hidden_layers,
            loaded.kv_heads,
            loaded.head_dim,
            loaded.dtype,
            chunk_tokens,
        )

    def token_bytes(self) -> int:
        return self.layout(1).token_bytes

    def namespace(self, spec: CacheSpec) -> Namespace:
        """All that must be equal for KV of this engine to be reused."""
        loaded = self.loaded
        return Namespace(
            self.layout(spec.chunk_tokens),
            model=loaded.id,
            revision=loaded.revision,
            rope=loaded.rope,
            tokenizer=loaded.tokenizer_digest,
            attention="transformers",
            salt=spec.salt,
        )

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        return chunks_per_tier(spec, self.layout(spec.chunk_tokens))

    def open(self, spec: CacheSpec, max_tokens: int) -> TransformersSession:
        if max_tokens > self.max_context:
            raise UserError(
                f"a request of {max_tokens} tokens (prompt and output) exceeds {self.model}'s"
                f" context of {self.max_context}; lower --context-tokens or use another --model"
            )
        self._reserve(max_tokens)
        cache = None
        if spec.reuse:
            cache = open_cache(spec, self.namespace(spec), self.loaded.device)
        return TransformersSession(self, spec, cache)

    def session_bytes(self) -> int:
        return 0

    def warm_up(self, tokens: int) -> None:
        rng = np.random.default_rng(0)
        ids = rng.integers(0, self.loaded.config.vocab_size, tokens).astype(np.int32)
        self._reserve(tokens + 2)
        arena = self.arena()
        token = self.forward(arena, ids, 0).argmax()
        self.forward(arena, np.array([int(token)], dtype=np.int32), tokens)

    def facts(self) -> dict[str, object]:
        loaded = self.loaded
        return {
            "engine": self.name,
            "model": self.model,
            "revision": loaded.revision,
            "dtype": loaded.dtype,
            "device": str(loaded.device),
            "torch_threads": torch.get_num_threads(),
            "copy_threads": self.threads,
            "kv_bytes_per_token": self.token_bytes(),
            "max_context": self.max_context,
        }

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        for arena in self._arenas:
            arena.wait()
        self._arenas.clear()

    def arena(self) -> Arena:
        """The memory for the next request; waits if a store still reads it."""
        arena = next(self._next_arena)
        arena.wait()
        return arena

    @torch.inference_mode()
    def forward(self, arena: Arena, ids: NDArray[np.int32], past: int) -> torch.Tensor:
        """Runs ``ids`` behind ``past`` tokens of the arena's KV. Returns the last position's
        logits, ``[vocabulary]``. Writes the new KV into the arena."""
        arena.seek(past)
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self.loaded.device)
        out = self.loaded.model(
            input_ids=tokens, past_key_values=arena.cache, use_cache=True, logits_to_keep=1
        )
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def _reserve(self, tokens: int) -> None:
        if self._arenas and self._arenas[0].capacity >= tokens:
            return
        self.close()
        device = self.loaded.device
        self._arenas = [Arena(self.layout(1), tokens, device) for _ in range(_ARENAS)]
        self._next_arena = cycle(self._arenas)


class TransformersSession:
    """One cell over the engine."""

    def __init__(
        self, engine: TransformersEngine, spec: CacheSpec, cache: TieredCache | None
    ) -> None:
        self.engine = engine
        self.spec = spec
        self.cache = cache
        self.keep_logits = False
        """Set to have each request's first logits in :attr:`logits`: ``verify`` compares them."""
        self.logits = torch.empty(0)
        self._hasher = ChunkHasher(engine.namespace(spec))

    def ready(self) -> None:
        """It is, from the start."""

    def serve(self, requests: Sequence[Request], load: Load) -> Iterator[Sample]:
        return first_come_first_served(requests, load, self._serve, self.engine.now, time.sleep)

    def settle(self) -> None:
        if self.cache is not None:
            self.cache.flush()

    def held_chunks(self) -> int:
        return len(self.cache) if self.cache is not None else 0

    def capacities(self) -> Mapping[str, int | None]:
        tiers = self.cache.tiers if self.cache is not None else ()
        return {tier.name: tier.capacity for tier in tiers}

    def clear(self) -> None:
        if self.cache is not None:
            self.cache.clear()
            self.cache.reset_counters()

    def counters(self) -> Mapping[str, TierCounters]:
        return dict(self.cache.counters) if self.cache is not None else {}

    def chunk_bytes(self) -> int:
        return self.engine.layout(self.spec.chunk_tokens).chunk_bytes

    def troubles(self) -> Mapping[str, Mapping[str, int]]:
        return tier_troubles(self.cache.tiers) if self.cache is not None else {}

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()

    def _serve(self, request: Request, scheduled_s: float, sent_s: float) -> Sample:
        engine, now = self.engine, self.engine.now
        ids = request.token_ids
        arena = engine.arena()
        began = now()
        keys: list[bytes] = []
        loaded = _NOTHING
        size = self.spec.chunk_tokens
        if self.cache is not None:
            keys = self._hasher.keys(ids).prefix
            # The last token's logits must be computed, so a hit leaves at least one token.
            hit = self.cache.acquire(keys[: (len(ids) - 1) // size], _WAIT_S)
            found = now()
            if hit.keys:
                place = arena.chunks(self.cache.layout, 0, len(hit), engine.threads)
                loaded = self.cache.load(hit, place)
        else:
            found = now()
        ready = now()
        past = loaded.chunks * size
        logits = engine.forward(arena, ids[past:], past)
        token = int(logits.argmax())
        times = [now()]
        if self.keep_logits:
            self.logits = logits.float()
        output = [token]
        while len(output) < request.max_tokens:
            step = np.array([token], dtype=np.int32)
            token = int(engine.forward(arena, step, len(ids) + len(output) - 1).argmax())
            times.append(now())
            output.append(token)
        stored = 0
        if self.cache is not None and keys:
            # One thread: a store overlaps the next prefill, and more of them cost that 4 %.
            place = arena.chunks(self.cache.layout, 0, len(keys), 1)
            arena.pending = self.cache.store(keys, place)
            stored = (len(keys) - loaded.chunks) * self.cache.layout.chunk_bytes
        return Sample(
            cell=-1,
            repeat=0,
            request_id=request.id,
            session=request.session,
            workload="",
            prompt_tokens=len(ids),
            output_tokens=len(output),
            scheduled_s=scheduled_s,
            sent_s=sent_s,
            first_token_s=times[0],
            finished_s=times[-1],
            token_s=tuple(times),
            hit_tokens={name: count * size for name, count in loaded.by_tier.items()},
            expected_hit_tokens=None,
            bytes_loaded=loaded.bytes,
            bytes_stored=stored,
            load_s=loaded.seconds,
            lookup_s=found - began,
            prefill_s=times[0] - ready,
            output_ids=tuple(output),
            error=None,
        )
