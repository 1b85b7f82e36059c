"""Whether a directory's file system does O_DIRECT in the way that segments need."""

from __future__ import annotations

import contextlib
import mmap
import os

from cache_core.tiers.disk.directory import Directory
from cache_core.tiers.disk.format import BLOCK

_NAME = "probe"


def does_direct(directory: Directory) -> bool:
    """Writes and reads a block by O_DIRECT; tmpfs and some network file systems refuse, others
    want larger units."""
    with contextlib.suppress(OSError):
        directory.unlink(_NAME)
    try:
        fd = directory.open(_NAME, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
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
            directory.unlink(_NAME)
