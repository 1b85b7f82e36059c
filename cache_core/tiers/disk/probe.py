"""Whether a directory's file system does O_DIRECT in the way that segments need."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from cache_core.tiers.disk.format import BLOCK

_NAME = "probe"


def does_direct(directory: Path | int) -> bool:
    """Writes and reads a block by O_DIRECT in a directory, or in that of a descriptor; tmpfs and
    some network file systems refuse, others want larger units, and a full one has no room to ask
    in."""
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
