"""Whether a directory's file system does O_DIRECT in the way that segments need."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from cache_core.tiers.disk.format import BLOCK


def does_direct(directory: Path) -> bool:
    """Writes and reads a block by O_DIRECT; tmpfs and some network file systems refuse, others
    want larger units."""
    path = directory / "probe"
    with contextlib.suppress(OSError):
        path.unlink()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DIRECT, 0o600)
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
            path.unlink()
