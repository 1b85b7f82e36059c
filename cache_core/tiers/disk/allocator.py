"""Manages the files of a disk tier and the bytes they take."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cache_core.tiers.disk.catalog import Catalog, ForeignSegment
from cache_core.tiers.disk.directory import FULL, Directory, Lost
from cache_core.tiers.disk.format import Sizes
from cache_core.tiers.disk.segment import SegmentFile

logger = logging.getLogger("lmcache")


class Allocator:
    """A disk tier's segments, and foreign_segments that are dropped first when space is needed. Not
    thread-safe but for what says so; the sum of its files stays within ``sizes.budget``."""

    def __init__(
        self, directory: Directory, sizes: Sizes, namespace: bytes, catalog: Catalog
    ) -> None:
        self.directory = directory
        self.sizes = sizes
        self.segments = {segment.number: segment for segment in catalog.segments}
        self._namespace = namespace
        self._foreign: list[ForeignSegment] = list(catalog.foreign_segments)
        self._stuck = 0  # bytes of foreign_segments that can't be removed
        self._next_number = catalog.last_number + 1
        self._removed = False  # a file, whose name a power cut could bring back

    @property
    def used(self) -> int:
        """Returns the bytes that files take on disk, at most."""
        ours = sum(segment.bytes for segment in self.segments.values())
        return ours + self._stuck + sum(segment.bytes for segment in self._foreign)

    @property
    def free(self) -> int:
        """Returns the bytes of the budget that no file takes."""
        return self.sizes.budget - self.used

    @property
    def spare(self) -> int:
        """Returns the bytes that new chunks may take: not those kept to copy live ones to."""
        return self.free - self.sizes.reserve

    def settle(self) -> None:
        """Makes the removal of files durable, before their space is given out: else a power cut
        could leave both, and what is over the cap would be dropped. Raises ``OSError``."""
        if self._removed:
            self.directory.sync()
            self._removed = False

    def next_number(self) -> int:
        """Returns the number of a file name that was never used."""
        self._next_number += 1
        return self._next_number - 1

    def drop_foreign(self) -> bool:
        """Removes the oldest segment; returns False if there is none."""
        while self._foreign:
            segment = self._foreign.pop(0)
            try:
                self.directory.unlink(segment.name)
            except Lost:
                raise
            except OSError as error:
                logger.warning(
                    "%s can't be removed: %s", self.directory.path / segment.name, error.strerror
                )
                self._stuck += segment.bytes
                continue
            self._removed = True
            logger.info("%s was removed to make room", self.directory.path / segment.name)
            return True
        return False

    def new_segment(self, make_room: Callable[[], bool]) -> SegmentFile | None:
        """Makes a segment that is as large as may be: None if not one slot fits. On a file system
        that is full, ``make_room`` is called for as long as it says that it helped. The caller puts
        it into ``segments``. Raises ``OSError``."""
        slots = self.sizes.fit(self.spare)
        while slots > 0:
            try:
                self.settle()
                segment = SegmentFile.create(
                    self.directory,
                    self.next_number(),
                    slots,
                    self.sizes.payload_bytes,
                    self._namespace,
                )
            except OSError as error:
                if error.errno not in FULL:
                    raise
                if self.drop_foreign() or make_room():
                    continue
                if slots == 1:
                    raise
                slots = max(1, slots // 4)
            else:
                return segment
        return None

    def remove(self, segment: SegmentFile) -> bool:
        """Removes a segment's file; the caller takes it out of ``segments`` if that went well.
        Raises :class:`Lost`."""
        try:
            segment.unlink()
        except Lost:
            raise
        except OSError as error:
            logger.warning("%s can't be removed: %s", segment.path, error.strerror)
            return False
        self._removed = True
        return True
