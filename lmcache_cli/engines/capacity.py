"""Conversion of tier sizes in bytes to capacities in chunks, and the part of a session that only
asks its cache."""

from __future__ import annotations

from collections.abc import Mapping

from cache_core.cache import TieredCache
from cache_core.layout import KVLayout
from cache_core.plan import TierCounters
from cache_core.transfer.codec import Codec
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.errors import UserError


def chunks_per_tier(spec: CacheSpec, layout: KVLayout) -> dict[str, int | None]:
    """Returns the whole chunks that fit each tier. Raises ``UserError`` for a tier that fits
    none."""
    sizes = {name: tier_chunk_bytes(name, spec, layout) for name in spec.tiers}
    bounded = {name: room for name, room in spec.tiers.items() if name != "remote"}
    for name, room in bounded.items():
        size = sizes[name]
        if room < size:
            raise UserError(
                f"the {name} tier of {room} bytes holds no chunk of {spec.chunk_tokens} tokens"
                f" ({size} bytes); make --{name}-size larger or --chunk-tokens smaller"
            )
    return {
        name: room // sizes[name] if name in bounded else None for name, room in spec.tiers.items()
    }


def tier_codec(name: str, spec: CacheSpec, layout: KVLayout) -> Codec | None:
    """Returns the codec in which the tier keeps chunks; None: it keeps them as they are. Raises
    ``UserError`` for KV that has no codec."""
    if name == "device":
        return None
    try:
        return Codec.of_layout(spec.codec, layout)
    except ValueError as error:
        raise UserError(f"--codec: {error}") from error


def tier_chunk_bytes(name: str, spec: CacheSpec, layout: KVLayout) -> int:
    """Returns the bytes that a chunk takes in the tier."""
    codec = tier_codec(name, spec, layout)
    return layout.chunk_bytes if codec is None else codec.coded_bytes


def codec_salt(name: str) -> dict[str, str]:
    """Returns what a codec adds to ``Namespace.extra``: coded chunks have keys of their own.
    Without a codec it is nothing, and keys stay what they were."""
    return {} if name == "none" else {"codec": name}


class CachedSession:
    """The part of :class:`lmcache_cli.engines.engine.Session` that only asks the cache, which is
    None in a cell without one."""

    def __init__(self, cache: TieredCache | None) -> None:
        self.cache = cache

    def ready(self) -> None:
        """Does nothing: the session is ready from the start."""

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

    def troubles(self) -> Mapping[str, Mapping[str, int]]:
        return {}

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()
