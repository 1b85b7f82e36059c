"""What a session over a cache in this process tells of it."""

from __future__ import annotations

from collections.abc import Mapping

from cache_core.cache import TieredCache
from cache_core.outcomes import TierCounters


class CachedSession:
    """The part of :class:`lmcache_cli.engines.engine.Session` that only asks the cache; None is a
    cell without one."""

    def __init__(self, cache: TieredCache | None) -> None:
        self.cache = cache

    def ready(self) -> None:
        """It is, from the start."""

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

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()
