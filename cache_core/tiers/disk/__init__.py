"""Keeps chunks in files that outlive the process; docs/disk-format.md has the format."""

from cache_core.tiers.disk.disk_tier import DiskTier
from cache_core.tiers.disk.log import DiskCounters

__all__ = ["DiskCounters", "DiskTier"]
