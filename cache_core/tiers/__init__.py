"""Provides tiers: bounded maps from key to bytes. They move bytes and decide nothing."""

from cache_core.tiers.disk import DiskTier
from cache_core.tiers.memory import MemoryTier, NullTier, SlabMemory
from cache_core.tiers.tier import Tier, TierError, TierInUse
from cache_core.tiers.wrappers import Throttled

__all__ = [
    "DiskTier",
    "MemoryTier",
    "NullTier",
    "SlabMemory",
    "Throttled",
    "Tier",
    "TierError",
    "TierInUse",
]
