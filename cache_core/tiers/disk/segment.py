"""Reads and writes one segment: a file of records."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.tiers.disk.directory import Directory, write_all
from cache_core.tiers.disk.format import (
    ALLOWANCE,
    BLOCK,
    KEY_FIELD_BYTES,
    Damaged,
    Keys,
    SegmentHeader,
    Sequences,
    pack_table,
    unpack_table,
)

# One read at opening has header and table of a segment of up to some 1,500 slots.
_FRONT = 64 << 10
# What csrc/disk/record.h calls a slot that was never written, and one after the end of the file.
_EMPTY, _CUT = -5, -4


class SegmentFile:
    """A preallocated file: header, space for a table, slots. Slots are given out in order and
    written once; the table is written when no slot will be given out any more.

    ``filled`` slots are given out, ``live`` of them hold a chunk that can be served, ``bytes`` is
    what the file takes on disk at most. Slot i's record is ``keys[i]``, ``sequences[i]``; sequence
    0 is no record.
    """

    def __init__(self, directory: Directory, name: str, header: SegmentHeader) -> None:
        self.directory = directory
        self.name = name
        self.header = header
        self.keys: Keys = np.zeros((header.slots, KEY_FIELD_BYTES), dtype=np.uint8)
        self.sequences: Sequences = np.zeros(header.slots, dtype=np.uint64)
        self.filled = 0
        self.live = 0
        self.bytes = 0
        self.sealed = False
        self.unsynced = False

    @property
    def number(self) -> int:
        """Returns the number in the file's name, which counts if the file was renamed."""
        return int(self.name.partition(".")[0], 16)

    @property
    def path(self) -> Path:
        """Returns the path of the file, for messages."""
        return self.directory.path / self.name

    @property
    def most_bytes(self) -> int:
        """Returns the bytes on disk as long as the segment is not sealed."""
        return self.header.file_bytes + ALLOWANCE

    @property
    def reclaimable(self) -> int:
        """Returns the bytes that are not live chunks."""
        return self.bytes - self.live * self.header.slot_bytes

    @property
    def last_sequence(self) -> int:
        return int(self.sequences.max(initial=0))

    @classmethod
    def create(
        cls, directory: Directory, number: int, slots: int, payload_bytes: int, namespace: bytes
    ) -> SegmentFile:
        """Makes a file with all its space on disk. Raises ``OSError``; then no file is left."""
        header = SegmentHeader(number, slots, payload_bytes, namespace)
        name, new = f"{number:016x}.seg", f"{number:016x}.new"
        fd = directory.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            os.posix_fallocate(fd, 0, header.file_bytes)
            write_all(fd, header.pack(), 0)
            directory.rename(new, name)
        except BaseException:
            with contextlib.suppress(OSError):
                directory.unlink(new)
            raise
        finally:
            os.close(fd)
        segment = cls(directory, name, header)
        segment.bytes = segment.most_bytes
        return segment

    @classmethod
    def load(cls, directory: Directory, name: str) -> tuple[SegmentFile, str | None]:
        """Reads what is on disk, by one read if it has a table: (segment, what is wrong with its
        table). Without a table, ``sealed`` is False and the records must be found by :meth:`scan`.

        Raises ``Damaged``, ``Foreign`` or ``OSError``.
        """
        fd = directory.open(name, os.O_RDONLY)
        try:
            front = os.pread(fd, _FRONT, 0)
            segment = cls(directory, name, SegmentHeader.unpack(front[:BLOCK]))
            header = segment.header
            if header.data_offset > os.fstat(fd).st_size:
                raise Damaged("it ends before its first record")
            if header.data_offset > len(front):
                front = os.pread(fd, header.data_offset, 0)
            segment.measure(fd)
        finally:
            os.close(fd)
        try:
            table = unpack_table(header, front[BLOCK : header.data_offset])
        except Damaged as damage:
            return segment, str(damage)
        if table is not None:
            segment.filled = len(table[1])
            segment.keys[: segment.filled], segment.sequences[: segment.filled] = table
            segment.sealed = True
        return segment, segment.drop_cut_off() if segment.sealed else None

    def drop_cut_off(self) -> str | None:
        """Forgets records after the file's end; says so if there are any."""
        room = self.directory.stat(self.name).st_size - self.header.data_offset
        left = min(self.filled, max(0, room // self.header.slot_bytes))
        cut = int(np.count_nonzero(self.sequences[left : self.filled]))
        self.sequences[left:] = 0
        self.filled = left
        return f"it is cut off: {cut} records are gone" if cut else None

    def measure(self, fd: int) -> None:
        """Sets ``bytes`` by what the file system says."""
        stat = os.fstat(fd)
        self.bytes = max(stat.st_size, stat.st_blocks * 512) + ALLOWANCE

    def scan(self, direct: bool, depth: int) -> int:
        """Finds records by reading all of them, payloads too. Returns how many slots have
        something that is no whole record. Raises ``OSError`` if one can't be read for a reason that
        may pass; then nothing is known."""
        header = self.header
        fd = self.open(direct)
        try:
            statuses, keys, sequences = _native.scan_records(
                np.full(header.slots, fd, dtype=np.int32),
                self.offsets(np.arange(header.slots)),
                header.namespace,
                header.payload_bytes,
                direct,
                depth,
            )
        finally:
            os.close(fd)
        troubles = set(statuses[statuses > 0].tolist())
        if errno.EIO in troubles and self.has_lost_a_block(direct):
            troubles.remove(errno.EIO)
        for trouble in troubles:
            raise OSError(trouble, os.strerror(trouble))
        good = statuses == 0
        self.keys[good] = keys[good]
        self.sequences[:] = np.where(good, sequences, 0)
        self.filled = int(np.flatnonzero(good)[-1]) + 1 if good.any() else 0
        return int(np.count_nonzero(~good & (statuses != _EMPTY) & (statuses != _CUT)))

    def offsets(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns where slots start in the file, in bytes."""
        start = np.int64(self.header.data_offset)
        return start + slots.astype(np.int64) * np.int64(self.header.slot_bytes)

    def open(self, direct: bool, write: bool = False) -> int:
        """Opens the file and returns a descriptor, the caller's to close. Raises ``OSError``."""
        flags = os.O_RDWR if write else os.O_RDONLY
        return self.directory.open(self.name, flags | (os.O_DIRECT if direct else 0))

    def has_lost_a_block(self, direct: bool) -> bool:
        """Returns whether the file's first block can be read after an input/output error. Then the
        record's are lost for good; else the whole disk may be away for a while."""
        try:
            fd = self.open(direct)
        except OSError:
            return False
        try:
            if not direct:  # what the kernel remembers says nothing about the disk
                os.posix_fadvise(fd, 0, BLOCK, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(-1, BLOCK) as block:
                return os.preadv(fd, [block], 0) == BLOCK
        except OSError:
            return False
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Makes the segment's records durable. Raises ``OSError``."""
        fd = self.directory.open(self.name, os.O_RDWR)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def seal(self) -> None:
        """Makes the records durable, then the table, and gives back the space that no record used.
        Raises ``OSError``."""
        fd = self.directory.open(self.name, os.O_RDWR)
        try:
            if self.filled < self.header.slots:
                os.ftruncate(fd, self.header.offset(self.filled))
            # A table that is there vouches for records that are.
            os.fdatasync(fd)
            table = pack_table(self.header, self.keys[: self.filled], self.sequences[: self.filled])
            write_all(fd, table, BLOCK)
            os.fdatasync(fd)
            self.measure(fd)
        finally:
            os.close(fd)
        self.sealed = True

    def unlink(self) -> None:
        """Removes the file; one that is gone already is no trouble. Raises ``OSError``."""
        self.directory.unlink(self.name)


@dataclass(frozen=True, slots=True)
class Spot:
    """The position of a record, and what it must say. Without a segment it could not be copied when
    its segment was given up: it is lost, which is reported to its reader."""

    segment: SegmentFile | None
    slot: int
    sequence: int
