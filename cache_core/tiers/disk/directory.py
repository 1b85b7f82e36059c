"""Owns a directory for one process; all that is done in it goes by its descriptor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import weakref
from pathlib import Path

from cache_core.tiers.disk.format import BLOCK, FORMAT_NAME, FORMAT_TEXT, VERSION
from cache_core.tiers.tier import TierError, TierInUse

LOCK_NAME = "LOCK"
FULL = (errno.ENOSPC, errno.EDQUOT)
# What a directory may have and still count as empty: a fresh file system's, or ours from a start
# that was cut short.
_NOTHING = {LOCK_NAME, FORMAT_NAME + ".new", "lost+found"}
_held: weakref.WeakSet[Directory] = weakref.WeakSet()


class Lost(OSError):
    """The directory is not ours any more: it was removed, or has another's ``LOCK`` in it."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ENOENT, f"{path} was removed or belongs to another process by now")


class Directory:
    """Holds a directory, which is made if need be and marked with the format.

    It may be moved: its descriptor, not its path, says where files are. What changes names in it
    looks first whether ``LOCK`` is still ours and raises :class:`Lost` if it isn't, so that nothing
    of another process is touched. ``fd`` is the descriptor, ``path`` is for messages.

    Raises :class:`TierError` if another process has it (naming that one), if it has other things
    in it or another format, or if it can't be written to. Nothing in it is changed then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = self._lock = -1
        try:
            made = make_directories(path)
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fresh = self._is_fresh()
            self._lock = self._open(LOCK_NAME, os.O_RDWR | os.O_CREAT)
            self._take()
            self.check()
            if fresh:
                self._mark()
                # Others may have made it, a moment ago.
                _sync_path(path.parent)
            for parent in made:
                _sync_path(parent)
        except OSError as error:
            self.close()
            raise TierError(f"{path} can't hold a disk tier: {error.strerror or error}") from error
        except TierError:
            self.close()
            raise
        self.pid = os.getpid()
        _held.add(self)

    @property
    def ours(self) -> bool:
        """Returns False once the directory is closed, and in a forked child: it is the parent's."""
        return self._lock >= 0 and self.pid == os.getpid()

    def check(self) -> None:
        """Raises :class:`Lost` if the ``LOCK`` that is there is not the one that we hold, and
        another ``OSError`` if that can't be known now."""
        try:
            there = self.stat(LOCK_NAME)
        except FileNotFoundError:
            raise Lost(self.path) from None
        if not os.path.samestat(there, os.fstat(self._lock)):
            raise Lost(self.path)

    def open(self, name: str, flags: int) -> int:
        """Opens a file in the directory; the caller closes the descriptor. Raises ``OSError``."""
        if flags & os.O_CREAT:
            self.check()
        return self._open(name, flags)

    def rename(self, old: str, new: str) -> None:
        """Renames a file in the directory. Raises ``OSError``."""
        self.check()
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Removes a file; one that is gone already is no trouble. Raises ``OSError``."""
        self.check()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def stat(self, name: str) -> os.stat_result:
        """Returns the status of a file, of the name itself if it is a link. Raises ``OSError``."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def scan(self) -> list[os.DirEntry[str]]:
        """Returns what is in the directory, sorted by name. Raises ``OSError``."""
        with os.scandir(self.fd) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    def sync(self) -> None:
        """Makes the names in the directory durable. Raises ``OSError``."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Closes the directory and releases its lock. Idempotent."""
        for fd in (self._lock, self.fd):
            if fd >= 0:
                os.close(fd)
        self._lock = self.fd = -1

    def let_go(self) -> None:
        """Releases the lock in a forked child, which may go on reading: it shares the parent's lock
        by its descriptor, and would keep it when the parent is gone."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, 0o644, dir_fd=self.fd)

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise TierInUse(
                f"{self.path} is in use by the disk tier of process {holder};"
                " give each process a directory of its own"
            ) from None
        try:
            # Its space is kept: a file system that is full would not give it again.
            number = f"{os.getpid()}\n".encode()
            os.pwrite(self._lock, number, 0)
            os.ftruncate(self._lock, len(number))
        except OSError as error:
            if error.errno not in FULL:
                raise  # else only the number is missing: what is there can be served

    def _is_fresh(self) -> bool:
        """Returns whether nothing is there yet. Raises :class:`TierError` for what is not ours."""
        try:
            with open(self._open(FORMAT_NAME, os.O_RDONLY), "rb") as file:
                text = file.read(200).decode("utf-8", "replace")
        except FileNotFoundError:
            strange = [entry.name for entry in self.scan() if entry.name not in _NOTHING]
            if strange:
                raise TierError(
                    f"{self.path} holds other files ({strange[0]}) and is no disk tier's;"
                    " give the disk tier an empty directory"
                ) from None
            return True
        if text != FORMAT_TEXT.format(VERSION):
            raise TierError(
                f"{self.path / FORMAT_NAME} says {text.strip()[:60]!r}, this program knows"
                f" {FORMAT_TEXT.format(VERSION).strip()!r}; give the disk tier another directory"
            )
        return False

    def _mark(self) -> None:
        """Writes the format file, whole or not at all."""
        new = FORMAT_NAME + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(self.open(new, flags), "wb") as file:
            file.write(FORMAT_TEXT.format(VERSION).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rename(new, FORMAT_NAME)
        self.sync()


def make_directories(path: Path) -> list[Path]:
    """Makes a directory and those above it. Returns the directories that got a new name in them:
    what must be synced for all this to be durable. Raises ``OSError``."""
    above = []
    missing = path
    while not missing.exists():
        above.append(missing.parent)
        missing = missing.parent
    path.mkdir(parents=True, exist_ok=True)
    return above


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Writes all of ``data`` at ``offset`` of a file. Raises ``OSError``."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


def _sync_path(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return  # names may be made in some directories that may not be read
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _let_go() -> None:
    for directory in list(_held):
        directory.let_go()


os.register_at_fork(after_in_child=_let_go)


_NAME = "probe"


def does_direct(directory: Path | int) -> bool:
    """Returns whether a block can be written and read by O_DIRECT in a directory, or in that of a
    descriptor; tmpfs and some network file systems refuse, others want larger units, and a full one
    has no space to try it in."""
    if isinstance(directory, Path):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return does_direct(fd)
        finally:
            os.close(fd)
    with contextlib.suppress(OSError):
        os.unlink(_NAME, dir_fd=directory)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DIRECT
    try:
        fd = os.open(_NAME, flags, 0o600, dir_fd=directory)
    except OSError:
        return False
    try:
        with mmap.mmap(-1, BLOCK) as block, mmap.mmap(-1, BLOCK) as back:
            block.write(b"\xa5" * BLOCK)
            wrote = os.pwritev(fd, [block], BLOCK)
            read = os.preadv(fd, [back], BLOCK)
            return wrote == read == BLOCK and back[:] == block[:]
    except OSError:
        return False
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(_NAME, dir_fd=directory)
