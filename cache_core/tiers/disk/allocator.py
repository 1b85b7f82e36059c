"""Manages the files of a disk tier and the bytes they take. Gets space back: live chunks
of segments that are mostly dead move to a new one."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from cache_core import _native
from cache_core.tiers.disk.catalog import Catalog, ForeignSegment
from cache_core.tiers.disk.directory import FULL, Directory, Lost
from cache_core.tiers.disk.format import RecordAccess, Sizes
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


# A segment is copied only if that gives back so much of what is copied. Less than the part of the
# cap that is kept free of live chunks, so that there is always one that is worth it.
_LEAST_GAIN = 1 / 64
_NO_FILE = -1


def choose_segments(
    segments: Iterable[SegmentFile], sizes: Sizes, room: int, wanted: int
) -> list[SegmentFile]:
    """Returns the segments to empty so that about ``wanted`` bytes come back, the cheapest first.
    Their live chunks together take at most ``room`` bytes. It is none if nothing comes back."""

    def gain_per_byte(segment: SegmentFile) -> float:
        return segment.reclaimable / (segment.live * segment.header.slot_bytes + 1)

    chosen: list[SegmentFile] = []
    live = 0
    total = 0
    gain = 0
    for segment in sorted(segments, key=gain_per_byte, reverse=True):
        if gain >= wanted or gain_per_byte(segment) < _LEAST_GAIN:
            break
        needed = sizes.on_disk(live + segment.live) if live + segment.live else 0
        if needed > room:
            continue
        chosen.append(segment)
        live += segment.live
        total += segment.bytes
        gain = total - needed
    return chosen if gain > 0 else []


def move_live(
    directory: Directory,
    number: int,
    records: Sequence[tuple[SegmentFile, int]],
    access: RecordAccess,
) -> tuple[SegmentFile, list[bool]]:
    """Makes a new, sealed, durable segment with copies of the records as they are, in their order.
    Returns it, and for each record whether it could be read: False is for ever. Raises ``OSError``
    if the copy can't be written, or a record can't be read for a reason that may pass; then nothing
    has changed."""
    first = records[0][0].header
    target = SegmentFile.create(
        directory, number, len(records), first.payload_bytes, first.namespace
    )
    try:
        with contextlib.ExitStack() as stack:
            fds: dict[SegmentFile, int] = {}
            for segment in [*dict.fromkeys(segment for segment, _ in records), target]:
                try:
                    fds[segment] = segment.open(access.direct, write=segment is target)
                except FileNotFoundError:
                    directory.check()
                    fds[segment] = _NO_FILE  # somebody has removed this one
                else:
                    stack.callback(os.close, fds[segment])
            sources = [fds[segment] for segment, _ in records]
            offsets = [segment.header.offset(slot) for segment, slot in records]
            statuses = _native.copy_records(
                np.array(sources, dtype=np.int32),
                np.array(offsets, dtype=np.int64),
                np.full(len(records), fds[target], dtype=np.int32),
                target.offsets(np.arange(len(records))),
                first.payload_bytes,
                access.direct,
                access.depth,
            )
            readable = [status == 0 for status in statuses.tolist()]
            for row, status in enumerate(statuses.tolist()):
                if status <= 0 or fds[records[row][0]] == _NO_FILE:
                    continue
                if not _is_lost(records[row][0], sources[row], offsets[row], access.direct):
                    raise OSError(status, os.strerror(status))
        for slot, (segment, source) in enumerate(records):
            if readable[slot]:
                target.keys[slot] = segment.keys[source]
                target.sequences[slot] = segment.sequences[source]
        target.filled = len(records)
        target.seal()
        directory.sync()
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    return target, readable


def _is_lost(segment: SegmentFile, fd: int, offset: int, direct: bool) -> bool:
    """Returns whether a record that could not be copied is not on its disk any more. A copy that
    failed does not say which side did, nor for how long."""
    statuses, _, _ = _native.scan_records(
        np.array([fd], dtype=np.int32),
        np.array([offset], dtype=np.int64),
        segment.header.namespace,
        segment.header.payload_bytes,
        direct,
        1,
    )
    return int(statuses[0]) == errno.EIO and segment.has_lost_a_block(direct)
