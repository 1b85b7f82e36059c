"""A directory that is moved, removed, replaced or full under a tier that uses it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_core.tiers import DiskTier, TierError
from cache_core.tiers.disk.directory import Directory
from cache_core.tiers.tier import Read
from tests.cache_core.disk_world import DiskWorld, du
from tests.cache_core.memory_engine import key
from tests.cache_core.test_disk_trouble import mounted

CHUNK_BYTES = 5000
ROOT = Path(__file__).parents[2]
NUMBERS = list(range(24))
MORE = list(range(100, 124))
WORLD = DiskWorld(CHUNK_BYTES)


def opened(directory: Path, cap_bytes: int = 4 << 20) -> DiskTier:
    return DiskTier("disk", directory, cap_bytes, CHUNK_BYTES, segment_bytes=60_000, sync_s=3600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tier"


@pytest.fixture
def tier(folder: Path) -> Iterator[DiskTier]:
    made = opened(folder)
    assert all(WORLD.put(made, NUMBERS))
    yield made
    made.close()


def keys(numbers: list[int]) -> list[bytes]:
    return [key(number) for number in numbers]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_directory_that_is_moved_away_is_still_ours(
    tier: DiskTier, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = tmp_path / "away"
    folder.rename(away)
    assert WORLD.get(tier, NUMBERS) == NUMBERS
    assert all(WORLD.put(tier, MORE))
    tier.discard(keys(NUMBERS[:3]))
    assert tier.sync()
    assert not folder.exists()
    away.rename(folder)
    assert WORLD.get(tier, NUMBERS + MORE) == NUMBERS[3:] + MORE
    tier.close()
    assert not caplog.messages
    again = opened(folder)
    assert WORLD.get(again, NUMBERS + MORE) == NUMBERS[3:] + MORE
    again.close()


def test_another_in_its_place_is_never_touched(
    tier: DiskTier, folder: Path, tmp_path: Path
) -> None:
    """A folder that is rotated: ours keeps to its own, under another name, and to its cap."""
    away = tmp_path / "tier.1"
    folder.rename(away)
    other = opened(folder)
    assert all(WORLD.put(other, NUMBERS, like=500))
    assert other.sync()
    before = contents(folder)
    fresh = list(range(1000, 1000 + (tier.capacity or 0)))
    for at in range(0, len(fresh), 32):
        full = max(0, len(tier) + 32 - (tier.capacity or 0))
        held = [n for n in NUMBERS + fresh if tier.contains([key(n)])[0]]
        tier.discard(keys(held[:full]))
        assert all(WORLD.put(tier, fresh[at : at + 32]))
    assert du(away) <= 4 << 20
    assert contents(folder) == before
    assert WORLD.get(other, NUMBERS, like=500) == NUMBERS
    other.close()


@pytest.mark.parametrize("by", ["write", "read", "discard", "sync"])
def test_a_directory_that_is_removed_ends_the_tier(
    by: str, tier: DiskTier, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder)
    if by == "write":
        assert WORLD.put(tier, MORE) == [False] * len(MORE)
    elif by == "read":
        assert tier.read(keys([1, 2]), WORLD.place(2)) == [Read.GONE, Read.GONE]
    elif by == "discard":
        tier.discard(keys(NUMBERS))
    else:
        assert tier.sync() is False
    assert len(tier) == 0 and tier.recovered() == []
    assert tier.contains(keys(NUMBERS)) == [False] * len(NUMBERS)
    assert WORLD.get(tier, NUMBERS) == [] and WORLD.put(tier, MORE) == [False] * len(MORE)
    assert tier.sync() is False
    tier.discard(keys(NUMBERS))
    tier.close()
    assert caplog.messages == [
        f"disk tier: {folder} was removed or belongs to another process by now;"
        " it keeps nothing any more; requests go on without it"
    ]
    assert not folder.exists()


@pytest.mark.parametrize("by", ["another process", "a person"])
def test_one_that_is_removed_and_made_again_is_not_filled(
    by: str, tier: DiskTier, folder: Path
) -> None:
    shutil.rmtree(folder)
    other = opened(folder) if by == "another process" else None
    if other is None:
        folder.mkdir()
    else:
        assert all(WORLD.put(other, NUMBERS, like=500))
    before = contents(folder)
    assert WORLD.put(tier, MORE) == [False] * len(MORE)
    tier.discard(keys(NUMBERS))
    tier.close()
    assert contents(folder) == before
    if other is not None:
        assert WORLD.get(other, NUMBERS, like=500) == NUMBERS
        other.close()
    again = opened(folder)
    again.close()


@pytest.mark.parametrize("by", ["write", "discard", "compaction", "sync"])
def test_a_directory_with_anothers_lock_is_left_alone(
    by: str, tier: DiskTier, folder: Path
) -> None:
    """Its files were removed, and another process has begun anew in the same directory."""
    if by == "compaction":
        tier.discard(keys(NUMBERS[::2]))
    for path in folder.iterdir():
        path.unlink()
    other = opened(folder)
    assert all(WORLD.put(other, NUMBERS, like=500))
    assert other.sync()
    before = contents(folder)
    if by == "write":
        assert WORLD.put(tier, MORE) == [False] * len(MORE)
    elif by == "discard":
        tier.discard(keys(NUMBERS))
    elif by == "compaction":
        for at in range(200, 600, 32):
            WORLD.put(tier, list(range(at, at + 32)))
    else:
        tier.sync()
    tier.close()
    assert contents(folder) == before
    assert WORLD.get(other, NUMBERS, like=500) == NUMBERS
    other.close()


def test_a_start_that_loses_its_directory_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making it and holding its lock."""
    plain = Directory._take

    def take(directory: Directory) -> None:
        plain(directory)
        (folder / "LOCK").unlink()

    monkeypatch.setattr(Directory, "_take", take)
    with pytest.raises(TierError, match="was removed or belongs to another process"):
        opened(folder)
    assert list(folder.iterdir()) == []


def fill(directory: Path) -> Path:
    """A file that takes all the room of its file system."""
    filler = directory / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(fd, bytes(4096)):
            pass
    except OSError as full:
        if full.errno != errno.ENOSPC:
            raise
    finally:
        os.close(fd)
    return filler


def test_a_full_file_system_serves_what_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start: nothing can be written, no LOCK, no probe, no list of the dead."""
    with mounted(tmp_path / "small", "size=1m"):
        folder = tmp_path / "small" / "tier"
        tier = opened(folder, 8 << 20)
        assert all(WORLD.put(tier, NUMBERS))
        tier.discard(keys(NUMBERS[:2]))
        tier.close()
        (folder / "LOCK").write_bytes(b"")  # its block too is somebody else's
        filler = fill(tmp_path / "small")
        again = opened(folder, 8 << 20)
        assert WORLD.get(again, NUMBERS) == NUMBERS[2:]
        # What is dead stays dead, though it can't be written down yet.
        again.discard(keys(NUMBERS[2:4]))
        assert WORLD.get(again, NUMBERS) == NUMBERS[4:]
        filler.unlink()
        assert all(WORLD.put(again, MORE))
        assert again.sync()
        again.close()
        last = opened(folder, 8 << 20)
        assert WORLD.get(last, NUMBERS + MORE) == NUMBERS[4:] + MORE
        last.close()


def test_a_new_folder_on_a_full_file_system_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=64k"):
        fill(tmp_path / "small")
        with pytest.raises(TierError, match="can't hold a disk tier: No space left on device"):
            opened(tmp_path / "small" / "tier")


def test_two_processes_rotate_a_folder_and_both_keep_their_chunks(tmp_path: Path) -> None:
    """As log rotation does it, with real processes."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.cache_core.test_disk_folder import NUMBERS, WORLD, opened\n"
        "tier = opened(Path(sys.argv[1]))\n"
        "assert all(WORLD.put(tier, NUMBERS, 500))\n"
        "print('stored', flush=True)\n"
        "sys.stdin.readline()\n"
        "assert WORLD.get(tier, NUMBERS, 500) == NUMBERS\n"
        "tier.close()\n"
    )
    folder = tmp_path / "tier"
    tier = opened(folder)
    assert all(WORLD.put(tier, NUMBERS))
    folder.rename(tmp_path / "tier.1")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == "stored\n"
        tier.discard(keys(NUMBERS[:12]))
        assert all(WORLD.put(tier, MORE))
        child.stdin.write("\n")
        child.stdin.close()
        assert child.wait(60) == 0
    assert WORLD.get(tier, NUMBERS + MORE) == NUMBERS[12:] + MORE
    tier.close()
