"""The disk tier: chunks that outlive the process, never served wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache_core import _native
from cache_core.place import Addresses, Place
from cache_core.tiers.disk.complaints import Complaints
from cache_core.tiers.disk.counters import DiskCounters
from cache_core.tiers.disk.format import KEY_BYTES, key_array, slot_bytes
from cache_core.tiers.disk.lock import DirectoryLock
from cache_core.tiers.disk.log import Log
from cache_core.tiers.disk.place import DiskPlace
from cache_core.tiers.disk.probe import does_direct
from cache_core.tiers.disk.reader import Reader
from cache_core.tiers.disk.staging import Staging
from cache_core.tiers.disk.syncer import Syncer
from cache_core.tiers.tier import Read, TierError

logger = logging.getLogger("lmcache")

_BATCH = 128  # chunks


class DiskTier:
    """Chunks of ``chunk_bytes`` in segment files in ``directory``, which takes at most
    ``cap_bytes`` on disk, all files and what file systems add counted.

    What was written is found again by the next process that opens the directory. A chunk counts as
    stored once its bytes are with the operating system, where they survive this process; they
    survive a power cut after :meth:`sync`, which happens by itself after ``sync_bytes`` or
    ``sync_s`` seconds. Every read proves header and payload by checksum: damage is a miss, one
    line in the log, and the chunk is forgotten.

    ``namespace``, 32 bytes, says what shape the chunks have; those of another one stay unserved
    until their room is needed. ``segment_bytes`` defaults to 256 MiB or a 32nd of the cap.
    ``depth`` reads or writes are under way at once. ``direct`` goes around the page cache; None
    asks the file system whether it can.

    Raises :class:`TierError`, and changes nothing, if another process has the directory, if it
    can't be written to, if its contents are not a disk tier's or a later version's, or if
    not one chunk fits into the cap.
    """

    def __init__(
        self,
        name: str,
        directory: str | Path,
        cap_bytes: int,
        chunk_bytes: int,
        *,
        namespace: bytes = bytes(32),
        segment_bytes: int | None = None,
        depth: int = 8,
        direct: bool | None = None,
        sync_bytes: int = 64 << 20,
        sync_s: float = 1.0,
    ) -> None:
        if len(namespace) != KEY_BYTES:
            raise ValueError(f"namespace has {len(namespace)} bytes; it must have {KEY_BYTES}")
        self.name = name
        self.counters = DiskCounters()
        self._chunk_bytes = chunk_bytes
        self._namespace = namespace
        self._depth = depth
        self._complaints = Complaints(name)
        self._lock = DirectoryLock(Path(directory))
        try:
            self.direct = does_direct(Path(directory)) if direct is None else direct
            self._log = Log(
                Path(directory),
                cap_bytes,
                chunk_bytes,
                namespace,
                segment_bytes,
                self.direct,
                depth,
                self.counters,
                self._complaints,
            )
        except OSError as error:
            self._lock.release()
            raise TierError(f"{directory} can't be opened: {error.strerror or error}") from error
        except BaseException:
            self._lock.release()
            raise
        self.capacity: int | None = self._log.sizes.capacity
        self._reader = Reader(
            self._log, namespace, self.direct, depth, self.counters, self._complaints
        )
        self._staging = Staging(chunk_bytes, depth)
        self._syncer = Syncer(self.sync, sync_bytes, sync_s)

    def __len__(self) -> int:
        return len(self._log)

    def recovered(self) -> list[bytes]:
        """Keys that are held, least recently written first: at most ``capacity``."""
        return self._log.keys()

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [key in self._log for key in keys]

    def read(self, keys: Sequence[bytes], place: Place | None) -> list[Read]:
        good = Read.of(self.contains(keys))
        rows = [row for row, held in enumerate(good) if held]
        if place is None or not rows:
            return good
        flat = place.flat()
        if flat is not None:
            fetched = self._reader.fetch([keys[row] for row in rows], flat[rows])
            for row, ok in zip(rows, fetched, strict=True):
                good[row] = ok
            return good
        try:
            with self._staging.borrow() as memory:
                for batch in _batches(rows, self._staging.chunks):
                    fetched = self._reader.fetch([keys[row] for row in batch], memory[: len(batch)])
                    whole = [i for i, ok in enumerate(fetched) if ok]
                    if whole:
                        place.pick([batch[i] for i in whole]).copy_from(memory[whole])
                    for row, ok in zip(batch, fetched, strict=True):
                        good[row] = ok
        except MemoryError as error:
            self._complaints.about("memory", f"reading needs memory: {error}")
            return [Read.LATER if held else Read.GONE for held in self.contains(keys)]
        return good

    def write(self, keys: Sequence[bytes], place: Place | None) -> list[bool]:
        if place is None:
            raise ValueError(f"the {self.name} tier keeps bytes: write() needs a place")
        stored = [False] * len(keys)
        if not self._lock.ours:
            return stored
        rows = self._admitted(keys)
        flat = place.flat()
        if flat is not None:
            for batch in _batches(rows, _BATCH):
                self._put(keys, batch, flat[batch], stored)
        elif rows:
            try:
                with self._staging.borrow() as memory:
                    for batch in _batches(rows, self._staging.chunks):
                        place.pick(batch).copy_to(memory[: len(batch)])
                        self._put(keys, batch, memory[: len(batch)], stored)
            except MemoryError as error:
                self._complaints.about("memory", f"writing needs memory: {error}")
        return stored

    def discard(self, keys: Sequence[bytes]) -> None:
        if self._lock.ours:
            self._log.discard(keys)

    def place(self, keys: Sequence[bytes]) -> Place | None:
        return DiskPlace(keys, self._reader.fetch)

    def sync(self) -> bool:
        """Waits until everything written so far survives a power cut. False if it may not; the
        log says why, and the next sync tries again."""
        if not self._lock.ours:
            return False
        good = self._log.sync()
        self.counters.syncs += 1
        self.counters.failed_syncs += not good
        return good

    def close(self) -> None:
        """Makes everything durable and lets the directory go; the chunks stay in it."""
        if not self._lock.ours:
            return
        self._syncer.close()
        self._log.close()
        self._staging.release()
        self._lock.release()

    def _admitted(self, keys: Sequence[bytes]) -> list[int]:
        """Rows that the capacity has room for; held keys always."""
        room = (self.capacity or 0) - len(self._log)
        fresh: set[bytes] = set()
        rows = []
        for row, key in enumerate(keys):
            if key not in self._log and key not in fresh:
                if len(fresh) >= room:
                    continue
                fresh.add(key)
            rows.append(row)
        return rows

    def _put(
        self, keys: Sequence[bytes], rows: list[int], addresses: Addresses, stored: list[bool]
    ) -> None:
        """Writes rows' chunks, segment by segment, and notes in ``stored`` which are whole."""
        done = 0
        while done < len(rows):
            try:
                given = self._log.room(len(rows) - done)
                if given is None:
                    self._refuse("room", "has no room", len(rows) - done)
                    return
                segment, slots, sequences = given
                batch = [keys[row] for row in rows[done : done + len(slots)]]
                fd = segment.open(self.direct, write=True)
            except OSError as error:
                self._refuse("write", f"can't write: {error.strerror or error}", len(rows) - done)
                return
            try:
                statuses = _native.write_records(
                    np.full(len(slots), fd, dtype=np.int32),
                    segment.offsets(slots),
                    addresses[done : done + len(slots)],
                    key_array(batch),
                    sequences,
                    self._namespace,
                    self._chunk_bytes,
                    self.direct,
                    self._depth,
                )
            finally:
                os.close(fd)
            good = np.flatnonzero(statuses == 0)
            self._log.publish(segment, slots[good], sequences[good], [batch[i] for i in good])
            for i in good:
                stored[rows[done + int(i)]] = True
            if len(good) < len(slots):
                worst = int(statuses[statuses != 0][0])
                self._refuse("write", f"can't write: {os.strerror(worst)}", len(slots) - len(good))
            else:
                self._complaints.over("write", "room")
            self._syncer.wrote(len(slots) * slot_bytes(self._chunk_bytes))
            done += len(slots)

    def _refuse(self, kind: str, text: str, chunks: int) -> None:
        self.counters.unwritten += chunks
        self._complaints.about(kind, text)


def _batches(rows: list[int], size: int) -> list[list[int]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]
