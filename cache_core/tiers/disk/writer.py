"""Writes chunks from memory to disk, into slots that nothing else is in, and makes them durable in
the background, many at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.tiers.disk.format import Sequences, key_array
from cache_core.tiers.disk.log import Log
from cache_core.tiers.disk.reader import Buffer
from cache_core.tiers.disk.segment import SegmentFile


@dataclass(frozen=True, slots=True)
class Written:
    """Records that were tried together, and csrc's answer for each: 0, or an errno."""

    segment: SegmentFile
    slots: NDArray[np.int64]
    sequences: Sequences
    statuses: NDArray[np.int32]


class Writer:
    """Appends records to the log, which does not know of them before they are published."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def append(self, keys: list[bytes], buffer: Buffer, first: int) -> Written | None:
        """Writes the leading keys, whose chunks are in the buffer from ``first`` on, to fresh slots
        of one segment; returns None if there is no space. Raises ``OSError``."""
        self._log.directory.check()
        given = self._log.room(len(keys))
        if given is None:
            return None
        segment, slots, sequences = given
        access = self._log.access
        fd = segment.open(access.direct, write=True)
        try:
            statuses = _native.write_records(
                np.full(len(slots), fd, dtype=np.int32),
                segment.offsets(slots),
                buffer.addresses[first : first + len(slots)],
                key_array(keys[: len(slots)]),
                sequences,
                access.namespace,
                access.payload_bytes,
                access.direct,
                access.depth,
            )
        finally:
            os.close(fd)
        return Written(segment, slots, sequences, statuses)


class Syncer:
    """Calls ``sync`` on a thread of its own once ``limit_bytes`` were written since the last time,
    and at the latest ``limit_s`` seconds after the first of them. The thread starts with the first
    write: a tier that is only read has none."""

    def __init__(self, sync: Callable[[], bool], limit_bytes: int, limit_s: float) -> None:
        self._sync = sync
        self._limit_bytes = limit_bytes
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._bytes = 0
        self._ended = False
        self._thread: threading.Thread | None = None

    def wrote(self, nbytes: int) -> None:
        """Counts bytes that were written; returns at once. For one thread at a time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lmcache-disk-sync", daemon=True)
            self._thread.start()
        with self._changed:
            first = self._bytes == 0
            self._bytes += nbytes
            if first or self._bytes >= self._limit_bytes:
                self._changed.notify()

    def close(self) -> None:
        """Lets the thread end once what it does now is done; what is not durable yet is the
        caller's to sync."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def join(self) -> None:
        """Waits for the thread to end, after :meth:`close`."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._bytes > 0 or self._ended)
                self._changed.wait_for(
                    lambda: self._bytes >= self._limit_bytes or self._ended, self._limit_s
                )
                if self._ended:
                    return
                self._bytes = 0
            self._sync()
