"""The simulated engine: the real Ledger over tiers without bytes, on a virtual clock.

It generates no tokens, so outputs can't be compared. Everything else (hits, evictions, order)
is the real code, and the whole command line runs in milliseconds, the same on every machine.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from cache_core.cache import TieredCache
from cache_core.groups import GroupedCache, KeptLayer, balanced_groups, slot_layout
from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import Group, KVLayout
from cache_core.plan import LoadOutcome
from cache_core.policies import POLICIES, make_admission
from cache_core.tiers import NullTier, Tier
from cache_core.tiers.wrappers import Throttled
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.capacity import CachedSession, chunks_per_tier, tier_chunk_bytes
from lmcache_cli.engines.engine import Load, first_come_first_served, sample_of
from lmcache_cli.engines.measured_costs import CostModel
from lmcache_cli.errors import UserError
from reports.sample import Sample
from workloads.request import Request

_WORD = re.compile(r"\w+|[^\w\s]")
_VOCABULARY = 32_000


def encode_words(text: str) -> list[int]:
    """Maps words and punctuation marks to stable ids; stands for a tokenizer where there is no
    model."""
    return [zlib.crc32(word.encode()) % _VOCABULARY for word in _WORD.findall(text)]


class SimulatedEngine:
    """An engine (:class:`lmcache_cli.engines.engine.Engine`) on a virtual clock that serves one
    request at a time."""

    name = "simulated"
    interleaves = True

    def __init__(
        self,
        cost: CostModel | None = None,
        layout: KVLayout | None = None,
        max_context: int = 1 << 20,
        jitter: float = 0.0,
        kept: Sequence[KeptLayer] = (),
        model: str = "simulated",
    ) -> None:
        """``kept`` are the layers of a model whose layers keep different things, and replace
        ``layout``, which is of one token."""
        self.cost = cost or CostModel()
        self._kept = tuple(kept)
        self._shape = layout or KVLayout(30, 3, 64, "float32", 1)
        self.model = model
        self.max_context = max_context
        self.bos: int | None = None
        self.encode: Callable[[str], Sequence[int]] = encode_words
        self.frame = ("", "")
        self._time = 0.0
        self._jitter = jitter
        self._noise = random.Random()

    def layout(self, chunk_tokens: int) -> KVLayout:
        """Returns the KV layout for a chunk length."""
        if self._kept:
            return slot_layout(self.groups(chunk_tokens), chunk_tokens)
        return replace(self._shape, chunk_tokens=chunk_tokens)

    def groups(self, chunk_tokens: int) -> tuple[Group, ...]:
        """Returns the groups of layers where those keep different things; else none."""
        return balanced_groups(self._kept, chunk_tokens) if self._kept else ()

    def token_bytes(self) -> int:
        """Returns the bytes of K and V of one token, over all layers."""
        if self._kept:
            return sum(layer.token_bytes for layer in self._kept)
        return self._shape.token_bytes

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        return chunks_per_tier(spec, self.layout(spec.chunk_tokens))

    def open(self, spec: CacheSpec, max_tokens: int) -> SimulatedSession:
        if max_tokens > self.max_context:
            raise UserError(
                f"a request of {max_tokens} tokens exceeds the context of {self.max_context}"
            )
        return SimulatedSession(self, spec)

    def session_bytes(self) -> int:
        return 0

    def warm_up(self, tokens: int) -> None:
        """Does nothing: a formula needs no warming."""

    def facts(self) -> dict[str, object]:
        states = sum(layer.state_bytes for layer in self._kept)
        return {
            "engine": self.name,
            "model": self.model,
            "kv_bytes_per_token": self.token_bytes(),
            "prefill": {"a": self.cost.a, "b": self.cost.b, "c": self.cost.c},
            "decode_s": self.cost.decode_s,
            **({"state_bytes": states} if states else {}),
        }

    def now(self) -> float:
        return self._time

    def advance(self, seconds: float) -> None:
        """Lets virtual time pass."""
        self._time += seconds

    def throttled(self, tier: Tier, layout: KVLayout, latency_s: float) -> Tier:
        """Returns the tier with a latency that passes on the virtual clock."""
        return Throttled(
            tier, layout.chunk_bytes, latency_s=latency_s, clock=self.now, sleep=self.advance
        )

    def noise(self) -> float:
        """Returns the factor by which the times of the next request are multiplied: 1 without
        jitter."""
        return math.exp(self._noise.gauss(0.0, self._jitter)) if self._jitter else 1.0

    def close(self) -> None:
        """Does nothing: the engine holds nothing."""


class SimulatedSession(CachedSession):
    """A session of one cell over the simulated engine."""

    def __init__(self, engine: SimulatedEngine, spec: CacheSpec) -> None:
        self.engine = engine
        self.spec = spec
        self._layout = engine.layout(spec.chunk_tokens)
        self._hasher = ChunkHasher(Namespace(self._layout, engine.model, salt=spec.salt))
        cache: TieredCache | None = None
        if spec.reuse:
            tiers: list[Tier] = [
                NullTier(name, count if spec.bounded else None)
                for name, count in engine.tier_capacity(spec).items()
            ]
            if spec.latency_s:
                tiers = [engine.throttled(tier, self._layout, spec.latency_s) for tier in tiers]
            admission = make_admission(
                spec.admission,
                spec.bytes_per_day,
                tier_chunk_bytes("disk", spec, self._layout),
                engine.now,
            )
            cache = TieredCache(
                self._layout,
                tiers,
                policy=POLICIES[spec.policy],
                placement=spec.placement,
                synchronous=True,
                admission={"disk": admission} if admission is not None else None,
                clock=engine.now,
            )
        super().__init__(cache)
        groups = engine.groups(spec.chunk_tokens)
        self._grouped = GroupedCache(cache, groups) if cache is not None and groups else None

    def capacities(self) -> Mapping[str, int | None]:
        # What a hit needs of groups is no run of chunks: it is not foretold.
        return super().capacities() if self._grouped is None else {}

    def clear(self) -> None:
        super().clear()
        if self._grouped is not None:
            self._grouped.clear()

    def serve(self, requests: Sequence[Request], load: Load) -> Iterator[Sample]:
        engine = self.engine
        return first_come_first_served(requests, load, self._serve, engine.now, engine.advance)

    def chunk_bytes(self) -> int:
        return self._layout.chunk_bytes

    def _reused(self, request: Request) -> tuple[LoadOutcome, float, int]:
        """Loads what is held of a prompt and stores the rest. Returns what was loaded, in how many
        seconds, and the bytes that were stored."""
        cost, load_s, ids = self.engine.cost, 0.0, request.token_ids
        if self.cache is None:
            return LoadOutcome(0, {}, 0, 0.0), 0.0, 0
        keys = self._hasher.keys(ids).prefix
        reusable = (len(ids) - 1) // self.spec.chunk_tokens
        if self._grouped is not None:
            found = self._grouped.load(keys[:reusable], None)
            for tier, (chunks, nbytes) in found.from_tiers.items():
                load_s += cost.tiers[tier].seconds(chunks, nbytes)
            points = self._grouped.points(len(keys), reusable, found)
            prompts = self._grouped.prompts
            new = set(prompts.kept(len(keys), points)).difference(found.rows)
            self._grouped.store(keys, points, None)
            return found, load_s, prompts.nbytes(new)
        loaded = self.cache.load(self.cache.acquire(keys[:reusable]), None)
        for tier, chunks in loaded.by_tier.items():
            load_s += cost.load_s(tier, chunks, tier_chunk_bytes(tier, self.spec, self._layout))
        self.cache.store(keys, None)
        return loaded, load_s, (len(keys) - loaded.chunks) * self._layout.chunk_bytes

    def _serve(self, request: Request, scheduled_s: float, sent_s: float) -> Sample:
        engine, cost = self.engine, self.engine.cost
        ids, size = request.token_ids, self.spec.chunk_tokens
        loaded, load_s, stored = self._reused(request)
        hits = {tier: chunks * size for tier, chunks in loaded.by_tier.items()}
        cached = sum(hits.values())
        prefill_s = cost.prefill_s(len(ids) - cached, cached)
        noise = engine.noise()
        load_s, prefill_s = load_s * noise, prefill_s * noise
        engine.advance(load_s + prefill_s)
        times = [engine.now()]
        for done in range(request.max_tokens - 1):
            engine.advance(cost.step_s(len(ids) + done) * noise)
            times.append(engine.now())
        return sample_of(
            request,
            scheduled_s,
            sent_s,
            times,
            hit_tokens=hits,
            bytes_loaded=loaded.bytes,
            bytes_stored=stored,
            load_s=load_s,
            prefill_s=prefill_s,
        )
