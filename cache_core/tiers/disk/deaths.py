"""Which records are dead: the sequence numbers of what was discarded or overwritten.

Records are never changed, so a death is written down beside them. What is lost of the list (its
last moments in a crash, or all in a damage) comes back to life: with the bytes that were stored.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_core import _native

logger = logging.getLogger("lmcache")

_MAGIC = b"LMCDEATH" + struct.pack("<II", 1, 0)
_FRAME = struct.Struct("<4sI")
_FRAME_MAGIC = b"DEAD"


class Deaths:
    """An append-only list of sequence numbers, framed and checksummed. Safe for any thread."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        """Reads what is there; :meth:`rewrite` must come before the first :meth:`add`."""
        self.path = directory / "deaths"
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._fd = -1
        self._size = 0
        self._waiting: list[int] = []
        self._unsynced = False
        self._troubled = False
        try:
            self.found = _parse(self.path, self.path.read_bytes())
        except FileNotFoundError:
            self.found = np.empty(0, dtype=np.uint64)

    @property
    def long(self) -> bool:
        """Whether it is time to :meth:`rewrite`."""
        return self._size > self._limit

    def rewrite(self, sequences: Iterable[int]) -> None:
        """Replaces the list, at once or not at all. Raises ``OSError``."""
        new = self.path.with_name("deaths.new")
        numbers = list(sequences)
        data = _MAGIC + (_frame(numbers) if numbers else b"")
        with self._lock:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                _write_all(fd, data, 0)
                os.fdatasync(fd)
                os.rename(new, self.path)
            except BaseException:
                os.close(fd)
                raise
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._size = fd, len(data)
            self._waiting.clear()
            self._unsynced = True  # the new name is not durable yet

    def add(self, sequences: list[int]) -> None:
        """Durable after :meth:`sync`. What can't be written now is tried again with the next."""
        with self._lock:
            self._waiting += sequences
            self._flush()

    def sync(self) -> bool:
        """Whether all that was added is durable."""
        with self._lock:
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
        with self._lock:
            self._flush()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _flush(self) -> bool:
        if not self._waiting or self._fd < 0:
            return not self._waiting
        frame = _frame(self._waiting)
        try:
            # Always behind the last whole frame: a half-written one is written over.
            _write_all(self._fd, frame, self._size)
        except OSError as error:
            if not self._troubled:
                logger.warning("%s can't be written: %s", self.path, error.strerror)
            self._troubled = True
            return False
        self._troubled = False
        self._size += len(frame)
        self._waiting.clear()
        self._unsynced = True
        return True


def _frame(sequences: list[int]) -> bytes:
    body = _FRAME.pack(_FRAME_MAGIC, len(sequences)) + np.array(sequences, dtype="<u8").tobytes()
    return body + _native.crc32c(body).to_bytes(4, "little")


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


def _parse(path: Path, data: bytes) -> NDArray[np.uint64]:
    """All numbers up to the end or the first frame that is not whole."""
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
    return np.concatenate(parts)
