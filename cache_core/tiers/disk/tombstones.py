"""Lists which records are dead: the sequence numbers of what was discarded or overwritten.

Records are never changed, so a death is written down beside them. What is lost of the list (its
last moments in a crash, or all in a damage) comes back to life: with the bytes that were stored.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.tiers.disk.directory import Directory, write_all

logger = logging.getLogger("lmcache")

_MAGIC = b"LMCDEATH" + struct.pack("<II", 1, 0)
_FRAME = struct.Struct("<4sI")
_FRAME_MAGIC = b"DEAD"
_NAME, _NEW = "deaths", "deaths.new"


class Tombstones:
    """An append-only list of sequence numbers, framed and checksummed. Safe for any thread, and
    :meth:`queue` never waits for a disk."""

    def __init__(self, directory: Directory, limit_bytes: int) -> None:
        """Reads the list that is there; :meth:`rewrite` must come before the first :meth:`add`.
        Raises ``OSError``."""
        self.path = directory.path / _NAME
        self._directory = directory
        self._limit = limit_bytes
        self._io = threading.Lock()
        self._fd = -1
        self._size = 0
        self._waiting: list[int] = []
        self._unsynced = False
        self._troubled = False
        try:
            with open(directory.open(_NAME, os.O_RDONLY), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        self.found, self._whole = _parse(self.path, data)

    @property
    def waiting(self) -> bool:
        """Returns whether some numbers are not written down yet."""
        return bool(self._waiting)

    @property
    def long(self) -> bool:
        """Returns whether the list is so long that it is time to :meth:`rewrite` it."""
        return self._size > self._limit

    def rewrite(self, sequences: Iterable[int]) -> None:
        """Replaces the list, at once or not at all. Raises ``OSError``; then the one that is there
        goes on, if there is one."""
        numbers = list(sequences)
        data = _MAGIC + (_frame(numbers) if numbers else b"")
        with self._io:
            try:
                fd = self._create(data)
            except OSError:
                if self._fd < 0:
                    with contextlib.suppress(OSError):
                        self._resume()
                raise
            self._adopt(fd, len(data))
            self._unsynced = True  # the new name is not durable yet

    def queue(self, sequences: list[int]) -> None:
        """Queues numbers, which the next :meth:`flush` or :meth:`sync` writes down."""
        self._waiting.extend(sequences)

    def add(self, sequences: list[int]) -> None:
        """Adds numbers, durable after :meth:`sync`. What can't be written is tried again later."""
        self.queue(sequences)
        self.flush()

    def flush(self) -> bool:
        """Writes down what waits. Returns whether nothing waits any more."""
        with self._io:
            return self._flush()

    def sync(self) -> bool:
        """Makes the list durable. Returns whether all that was added is."""
        with self._io:
            if not self._flush():
                return False
            if not self._unsynced:
                return True
            try:
                os.fdatasync(self._fd)
            except OSError:
                return False
            self._unsynced = False
            return True

    def close(self) -> None:
        with self._io:
            self._flush()
            self._adopt(-1, 0)

    def _create(self, data: bytes) -> int:
        fd = self._directory.open(_NEW, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(fd, data, 0)
            os.fdatasync(fd)
            self._directory.rename(_NEW, _NAME)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                self._directory.unlink(_NEW)
            raise
        return fd

    def _resume(self) -> None:
        """Goes on after the last whole frame of what was found: a file system that is full has no
        space for another list. Raises ``OSError``."""
        if self._whole:
            self._adopt(self._directory.open(_NAME, os.O_RDWR), self._whole)
        else:
            self._adopt(self._create(_MAGIC), len(_MAGIC))

    def _adopt(self, fd: int, size: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, size

    def _flush(self) -> bool:
        count = len(self._waiting)
        if count == 0:
            return True
        frame = _frame(self._waiting[:count])
        try:
            if self._fd < 0:
                self._resume()
            # Always after the last whole frame: a half-written one is written over.
            write_all(self._fd, frame, self._size)
        except OSError as error:
            if not self._troubled:
                logger.warning("%s can't be written: %s", self.path, error.strerror)
            self._troubled = True
            return False
        self._troubled = False
        self._size += len(frame)
        del self._waiting[:count]
        self._unsynced = True
        return True


def _frame(sequences: list[int]) -> bytes:
    body = _FRAME.pack(_FRAME_MAGIC, len(sequences)) + np.array(sequences, dtype="<u8").tobytes()
    return body + _native.crc32c(body).to_bytes(4, "little")


def _parse(path: Path, data: bytes) -> tuple[NDArray[np.uint64], int]:
    """Returns all numbers up to the end or the first frame that is not whole, and where that is; 0
    if this is no list at all."""
    parts = [np.empty(0, dtype=np.uint64)]
    at = len(_MAGIC)
    whole = data[:at] == _MAGIC
    while whole and at < len(data):
        body = data[at : at + _FRAME.size]
        whole = len(body) == _FRAME.size and body[:4] == _FRAME_MAGIC
        if not whole:
            break
        end = at + _FRAME.size + 8 * _FRAME.unpack(body)[1]
        whole = _native.crc32c(data[at:end]).to_bytes(4, "little") == data[end : end + 4]
        if whole:
            parts.append(np.frombuffer(data[at + _FRAME.size : end], dtype="<u8").astype(np.uint64))
            at = end + 4
    if not whole and data:
        logger.info("%s ends in a frame that is not whole; what follows is left out", path)
    return np.concatenate(parts), at if data[: len(_MAGIC)] == _MAGIC else 0
