"""What a cold cache must hit: the real Ledger, fed the same requests, with tiers without bytes."""

from __future__ import annotations

from collections.abc import Mapping

from cache_core.cache import TieredCache
from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.policies import POLICIES, SecondTouch
from cache_core.tiers import NullTier
from lmcache_cli.engines.cache_spec import CacheSpec
from workloads.request import Request


class HitOracle:
    """Predicts each request's hit tokens from a cold start. A real cache that hits more was not
    cold; one that hits less lost chunks."""

    def __init__(self, spec: CacheSpec, capacity: Mapping[str, int | None]) -> None:
        self._size = spec.chunk_tokens
        # Only sharing matters here, not the shape of the KV.
        layout = KVLayout(1, 1, 1, "int8", spec.chunk_tokens)
        self._hasher = ChunkHasher(Namespace(layout, "oracle"))
        tiers = [NullTier(name, chunks) for name, chunks in capacity.items()]
        self._cache = TieredCache(
            layout,
            tiers,
            policy=POLICIES[spec.policy],
            placement=spec.placement,
            admission={"disk": SecondTouch()} if spec.admission == "second-touch" else None,
            synchronous=True,
        )

    def expect(self, request: Request) -> int:
        """Hit tokens of the next request; remembers it."""
        keys = self._hasher.keys(request.token_ids).prefix
        usable = keys[: (len(request.token_ids) - 1) // self._size]
        hit = len(self._cache.lookup(usable))
        self._cache.store(keys, None)
        return hit * self._size
