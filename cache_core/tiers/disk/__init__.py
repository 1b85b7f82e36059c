"""Chunks in files that outlive the process; docs/disk-format.md has the format."""

from cache_core.tiers.disk.counters import DiskCounters
from cache_core.tiers.disk.tier import DiskTier

__all__ = ["DiskCounters", "DiskTier"]
