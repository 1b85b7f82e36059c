"""Tier sizes in bytes to capacities in chunks."""

from __future__ import annotations

from cache_core.layout import KVLayout
from lmcache_cli.engines.engine import CacheSpec
from lmcache_cli.errors import UserError


def chunks_per_tier(spec: CacheSpec, layout: KVLayout) -> dict[str, int | None]:
    """Whole chunks that fit each tier. Raises ``UserError`` for a tier that fits none."""
    size = layout.chunk_bytes
    bounded = {name: room for name, room in spec.tiers.items() if name != "remote"}
    for name, room in bounded.items():
        if room < size:
            raise UserError(
                f"the {name} tier of {room} bytes holds no chunk of {spec.chunk_tokens} tokens"
                f" ({size} bytes); make --{name}-size larger or --chunk-tokens smaller"
            )
    return {name: room // size if name in bounded else None for name, room in spec.tiers.items()}
