"""One process owns a directory; a directory is ours or is left alone."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from cache_core.tiers.disk.format import FORMAT_NAME, FORMAT_TEXT, VERSION
from cache_core.tiers.tier import TierError, TierInUse

_LOCK_NAME = "LOCK"
# What a directory may have and still count as empty: a fresh file system's, or ours from a start
# that was cut short.
_NOTHING = {_LOCK_NAME, FORMAT_NAME + ".new", "lost+found"}
_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


class DirectoryLock:
    """Holds a directory, which is made if need be and marked with the format.

    Raises :class:`TierError` if another process has it (naming that one), if it has other things
    in it or another format, or if it can't be written to. Nothing in it is changed then.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = -1
        try:
            directory.mkdir(parents=True, exist_ok=True)
            fresh = _is_fresh(directory)
            self._fd = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._take(directory)
            if fresh:
                _mark(directory)
        except OSError as error:
            self.release()
            raise TierError(
                f"{directory} can't hold a disk tier: {error.strerror or error}"
            ) from error
        except TierError:
            self.release()
            raise
        self.pid = os.getpid()
        _held.add(self)

    @property
    def ours(self) -> bool:
        """False in a forked child: the directory belongs to the parent."""
        return self._fd >= 0 and self.pid == os.getpid()

    def release(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self, directory: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise TierInUse(
                f"{directory} is in use by the disk tier of process {holder};"
                " give each process a directory of its own"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)


def _is_fresh(directory: Path) -> bool:
    """Whether nothing is there yet. Raises :class:`TierError` for what is not ours."""
    try:
        text = (directory / FORMAT_NAME).read_bytes()[:200].decode("utf-8", "replace")
    except FileNotFoundError:
        strange = sorted({entry.name for entry in os.scandir(directory)} - _NOTHING)
        if strange:
            raise TierError(
                f"{directory} holds other files ({strange[0]}) and is no disk tier's;"
                " give the disk tier an empty directory"
            ) from None
        return True
    if text != FORMAT_TEXT.format(VERSION):
        raise TierError(
            f"{directory / FORMAT_NAME} says {text.strip()[:60]!r}, this program knows"
            f" {FORMAT_TEXT.format(VERSION).strip()!r}; give the disk tier another directory"
        )
    return False


def _mark(directory: Path) -> None:
    """Writes the format file, whole or not at all."""
    new = directory / (FORMAT_NAME + ".new")
    with open(new, "w") as file:
        file.write(FORMAT_TEXT.format(VERSION))
        file.flush()
        os.fsync(file.fileno())
    new.rename(directory / FORMAT_NAME)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Makes the names in it durable. Raises ``OSError``."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _let_go() -> None:
    # A child shares the parent's lock by its descriptor, and would keep it when the parent is gone.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go)
