"""Power cuts: of what was not synced, any part may be on the disk and any part not.

The kernel's promises are modelled: a file's bytes are safe as of its last fdatasync, the names in a
directory as of its last fsync. After a cut each later name is there or not, each later block too.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

from cache_core.tiers import DiskTier
from cache_core.tiers.tier import Read
from tests.cache_core.disk_world import DiskWorld, fast_folder
from tests.cache_core.memory_engine import key

CHUNK_BYTES = 3000
CAP_BYTES = 700_000
BLOCK = 4096
WORLD = DiskWorld(CHUNK_BYTES)


class Disk:
    """What is safe, and what a cut now would leave."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.safe: dict[int, bytes] = {}  # inode -> bytes
        self.names: dict[str, int] = {}
        self.kept: dict[int, int] = {}  # inode -> descriptor, of files that are gone
        fdatasync, fsync, unlink, rename = os.fdatasync, os.fsync, os.unlink, os.rename

        def sync(fd: int) -> None:
            fdatasync(fd)
            self._note(fd)

        def sync_all(fd: int) -> None:
            fsync(fd)
            self._note(fd)

        def remove(name: str, *, dir_fd: int) -> None:
            self._keep(directory / name)
            unlink(name, dir_fd=dir_fd)

        def move(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            self._keep(directory / new)
            rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        patch.setattr(os, "fdatasync", sync)
        patch.setattr(os, "fsync", sync_all)
        patch.setattr(os, "unlink", remove)
        patch.setattr(os, "rename", move)

    def cut(self, rng: random.Random) -> dict[str, bytes]:
        """Files as a cut may leave them."""
        current = self._now()
        files = {}
        for name in sorted(current.keys() | self.names.keys()):
            inode = rng.choice([self.names.get(name), current.get(name)])
            if inode is not None:
                files[name] = self._torn(inode, name, current, rng)
        return files

    def close(self) -> None:
        for fd in self.kept.values():
            os.close(fd)

    def _torn(self, inode: int, name: str, current: dict[str, int], rng: random.Random) -> bytes:
        old = self.safe.get(inode, b"")
        where = next((n for n, other in current.items() if other == inode), None)
        if where is not None:
            new = (self.directory / where).read_bytes()
        else:
            new = os.pread(self.kept[inode], 1 << 24, 0)
        size = max(len(old), len(new))
        share = rng.choice([0.0, 0.3, 0.7, 1.0])
        blocks = [
            (new if rng.random() < share else old)[at : at + BLOCK].ljust(BLOCK, b"\0")
            for at in range(0, size, BLOCK)
        ]
        return b"".join(blocks)[: rng.choice([len(old), len(new)])]

    def _now(self) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(self.directory)}

    def _note(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == self.directory:
            self.names = self._now()
        elif not path.is_dir():  # the directories above are not modelled
            self.safe[os.fstat(fd).st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def _keep(self, path: Path) -> None:
        # An open file keeps its inode number from being given to another.
        if path.exists():
            self.kept.setdefault(path.stat().st_ino, os.open(path, os.O_RDONLY))


def opened(directory: Path) -> DiskTier:
    return DiskTier(
        "disk", directory, CAP_BYTES, CHUNK_BYTES, segment_bytes=50_000, sync_s=3600, direct=False
    )


class Life:
    """Random use, and what may be found after a cut."""

    def __init__(self, tier: DiskTier, rng: random.Random) -> None:
        self.tier = tier
        self.rng = rng
        self.now: dict[int, int] = {}  # number -> version
        self.may: dict[int, set[int | None]] = defaultdict(lambda: {None})
        self.version = 0

    def step(self) -> None:
        draw = self.rng.random()
        if draw < 0.85:
            # Well below the capacity, so that few images are full of what was discarded.
            room = (self.tier.capacity or 0) * 6 // 10 - len(self.now)
            self.discard(self.rng.sample(sorted(self.now), min(len(self.now), max(0, 8 - room))))
            self.version += 1000
            self.write(self.rng.sample(range(150), 4), self.version)
        elif draw < 0.95:
            self.discard(self.rng.sample(sorted(self.now), min(len(self.now), 3)))
        else:
            self.sync()

    def write(self, numbers: list[int], version: int) -> None:
        assert all(WORLD.put(self.tier, numbers, version))
        for number in numbers:
            self.now[number] = version
            self.may[number].add(version)

    def discard(self, numbers: list[int]) -> None:
        self.tier.discard([key(number) for number in numbers])
        for number in numbers:
            del self.now[number]
            self.may[number].add(None)

    def sync(self) -> None:
        assert self.tier.sync()
        self.may.clear()
        for number, version in self.now.items():
            self.may[number] = {version}


@pytest.mark.parametrize("seed", [*range(12), 447])
def test_what_was_synced_survives_and_nothing_older_comes_back(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=fast_folder(tmp_path)) as name:
        directory = Path(name) / "tier"
        with monkeypatch.context() as patch:
            disk = Disk(directory, patch)
            tier = opened(directory)
            life = Life(tier, rng)
            life.sync()
            images = []
            for _ in range(400):
                life.step()
                if rng.random() < 0.1:
                    images.append((disk.cut(rng), {n: set(v) for n, v in life.may.items()}))
            assert tier.counters.copied > 0
            tier.close()
            disk.close()
        for number, (files, may) in enumerate(images):
            after = Path(name) / f"after{number}"
            after.mkdir()
            for file, data in files.items():
                (after / file).write_bytes(data)
            look(after, may)


def look(directory: Path, may: dict[int, set[int | None]]) -> None:
    tier = opened(directory)
    for number in range(150):
        held = tier.contains([key(number)])[0]
        versions = may.get(number, {None})
        WORLD.rows[0] = 0
        if tier.read([key(number)], WORLD.place(1)) == Read.of([True]):
            like = [v for v in versions if v is not None]
            right = [v for v in like if (WORLD.rows[0] == WORLD.content(number + v)).all()]
            assert right, f"chunk {number} is none of {sorted(like)}"
        else:
            # Discarded chunks that are back may fill the tier, and then the oldest must go.
            full = len(tier) == tier.capacity
            assert None in versions or full, f"chunk {number} was synced and is gone"
            assert not held, "what a scan found can be read"
    tier.close()
