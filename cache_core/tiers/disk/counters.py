"""What a disk tier did beside serving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class DiskCounters:
    """What went wrong and what it cost, since the tier was opened. Chunks, but for ``syncs``."""

    damaged: int = 0
    unreadable: int = 0
    unwritten: int = 0
    copied: int = 0
    syncs: int = 0
    failed_syncs: int = 0
