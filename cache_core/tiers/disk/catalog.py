"""Finds what a directory holds when it is opened, and knows which record has a key's chunk."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cache_core.blend.seen import SEEN_FILE
from cache_core.tiers.disk.directory import LOCK_NAME, Directory
from cache_core.tiers.disk.format import (
    FORMAT_NAME,
    KEY_FIELD_BYTES,
    SEGMENT_NAME,
    UNFINISHED_NAME,
    Damaged,
    Foreign,
    RecordAccess,
    Sequences,
)
from cache_core.tiers.disk.segment import SegmentFile, Spot

logger = logging.getLogger("lmcache")

# Ours, and of a size that the cap has in mind.
_KNOWN = {LOCK_NAME, FORMAT_NAME, SEEN_FILE, "deaths", "lost+found"}
_LEFTOVERS = {FORMAT_NAME + ".new", "deaths.new", "probe"}
# Trouble that is one file's: the others are served. Of other trouble (no more descriptors, a mount
# that is away) each file would have its share, and all would be given up.
_OF_ONE_FILE = (
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.EUCLEAN,
    errno.EBADMSG,
)


@dataclass(frozen=True, slots=True)
class ForeignSegment:
    """A segment whose chunks are not served: of another namespace or chunk length, or damaged
    beyond reading. It is kept until its space is needed."""

    name: str
    bytes: int
    sequences: Sequences


@dataclass(slots=True)
class Catalog:
    """What a directory holds: ``segments`` and ``foreign_segments``, oldest first.
    ``untouched_bytes`` are in files that are not ours, or can't be read now: they stay as they are
    and count against the cap. ``unknown`` says that there may be records of ours among them."""

    segments: list[SegmentFile] = field(default_factory=list)
    foreign_segments: list[ForeignSegment] = field(default_factory=list)
    untouched_bytes: int = 0
    unknown: bool = False
    last_number: int = -1


def survey(directory: Directory, access: RecordAccess) -> Catalog:
    """Reads every segment's header and table, and all records of those that have no table: they
    were being written when their process ended. Those get their table here.

    Leftovers of ours are removed; each file that is not ours, or is damaged, is named in one line
    of the log. Raises ``OSError``, and has lost nothing, if the directory can't be read, or a file
    for a reason that is not the file's.
    """
    catalog = Catalog()
    for entry in directory.scan():
        if entry.name in _LEFTOVERS or UNFINISHED_NAME.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                directory.unlink(entry.name)
        elif entry.name in _KNOWN:
            continue
        elif not SEGMENT_NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            path = directory.path / entry.name
            logger.warning("%s is not the disk tier's; it is left alone", path)
            catalog.untouched_bytes += _on_disk(entry)
        else:
            number = int(entry.name.partition(".")[0], 16)
            catalog.last_number = max(catalog.last_number, number)
            _take(catalog, directory, entry, access)
    return catalog


def _take(
    catalog: Catalog, directory: Directory, entry: os.DirEntry[str], access: RecordAccess
) -> None:
    path, nbytes = directory.path / entry.name, _on_disk(entry)
    try:
        segment, trouble = SegmentFile.load(directory, entry.name)
        if trouble is not None:
            logger.warning("%s is damaged: %s", path, trouble)
        if not segment.sealed and (torn := segment.scan(access.direct, access.depth)):
            logger.warning("%s has %d records that are not whole; they are lost", path, torn)
    except Foreign as foreign:
        logger.warning("%s %s; it is left alone", path, foreign)
        catalog.untouched_bytes += nbytes
        catalog.unknown = True
        return
    except Damaged as damage:
        logger.warning("%s is damaged: %s; its chunks are lost", path, damage)
        catalog.foreign_segments.append(
            ForeignSegment(entry.name, nbytes, np.empty(0, dtype=np.uint64))
        )
        return
    except OSError as error:
        if error.errno not in _OF_ONE_FILE:
            raise
        logger.warning("%s can't be read now: %s; it is left alone", path, error.strerror)
        catalog.untouched_bytes += nbytes
        catalog.unknown = True
        return
    try:
        if (not segment.sealed or trouble is not None) and segment.sequences.any():
            segment.seal()
    except OSError as error:
        logger.warning("%s can't be mended: %s", path, error.strerror)
    # One without a record has nothing to serve and goes when it is looked at for its space.
    segment.sealed = True
    header = segment.header
    if (header.payload_bytes, header.namespace) == (access.payload_bytes, access.namespace):
        catalog.segments.append(segment)
    else:
        catalog.foreign_segments.append(
            ForeignSegment(entry.name, segment.bytes, segment.sequences)
        )


def _on_disk(entry: os.DirEntry[str]) -> int:
    stat = entry.stat(follow_symlinks=False)
    return max(stat.st_size if entry.is_file(follow_symlinks=False) else 0, stat.st_blocks * 512)


class KeyIndex:
    """A map from key to spot. Keeps each segment's count of live chunks; ``emptied`` are those that
    came to have none, in that order. Not thread-safe but for :meth:`get`, ``in`` and ``len``."""

    def __init__(self) -> None:
        self.emptied: dict[SegmentFile, None] = {}
        self._spots: dict[bytes, Spot] = {}

    def __len__(self) -> int:
        return len(self._spots)

    def __contains__(self, key: bytes) -> bool:
        return key in self._spots

    def get(self, key: bytes) -> Spot | None:
        """Returns where the key's record is; None if it is not held."""
        return self._spots.get(key)

    def put(self, key: bytes, spot: Spot) -> list[int]:
        """Sets where the key's chunk is. Returns the number of its older record, now dead."""
        dead = self.remove(key)
        if spot.segment is not None:
            spot.segment.live += 1
        self._spots[key] = spot
        return dead

    def remove(self, key: bytes) -> list[int]:
        """Forgets a key. Returns the number of its record, now dead, if it had one."""
        spot = self._spots.pop(key, None)
        if spot is None or spot.segment is None:
            return []
        spot.segment.live -= 1
        if spot.segment.live == 0:
            self.emptied[spot.segment] = None
        return [spot.sequence]

    def keys(self) -> list[bytes]:
        """Returns the keys that are held, least recently written first."""
        return sorted(self._spots, key=lambda key: self._spots[key].sequence)

    def live(self, segment: SegmentFile) -> list[tuple[bytes, Spot]]:
        """Returns a segment's live chunks, in the order of its slots."""
        raw = segment.keys[: segment.filled].tobytes()
        keys = {raw[at : at + KEY_FIELD_BYTES] for at in range(0, len(raw), KEY_FIELD_BYTES)}
        found = [(key, self._spots[key]) for key in keys if key in self._spots]
        live = [(key, spot) for key, spot in found if spot.segment is segment]
        return sorted(live, key=lambda record: record[1].slot)

    def sequences(self) -> Sequences:
        """Returns the sequence numbers of all records that are alive."""
        return np.array([spot.sequence for spot in self._spots.values()], dtype=np.uint64)

    def load(self, segments: Iterable[SegmentFile], dead: set[int]) -> None:
        """Takes in what segments hold, the oldest file first: the newest record of a key counts.
        The same one twice was being copied when its process ended: then the older file counts."""
        for segment in segments:
            raw = segment.keys.tobytes()
            for slot, sequence in enumerate(segment.sequences[: segment.filled].tolist()):
                if sequence == 0 or sequence in dead:
                    continue
                key = raw[slot * KEY_FIELD_BYTES : (slot + 1) * KEY_FIELD_BYTES]
                known = self._spots.get(key)
                if known is None or known.sequence < sequence:
                    self.put(key, Spot(segment, slot, sequence))

    def clear(self) -> None:
        self._spots.clear()
        self.emptied.clear()
