"""Counts what a disk tier did beside serving; logs trouble that lasts only once."""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger("lmcache")


class RateLimitedWarnings:
    """Writes one line in the log per kind of trouble, until it has gone well again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._open: set[str] = set()

    def about(self, kind: str, text: str) -> None:
        if kind not in self._open:
            self._open.add(kind)
            logger.warning("%s tier: %s; requests go on without it", self.name, text)

    def over(self, *kinds: str) -> None:
        self._open.difference_update(kinds)


@dataclass(slots=True)
class DiskCounters:
    """Counts of what went wrong and what it cost, since the tier was opened. All count chunks, but
    for ``syncs`` and ``failed_syncs``."""

    damaged: int = 0
    unreadable: int = 0
    unwritten: int = 0
    copied: int = 0
    syncs: int = 0
    failed_syncs: int = 0
