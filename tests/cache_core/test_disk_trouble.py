"""The disk tier where it can't work, or not now: it says so in one line, and requests go on."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_core.tiers import DiskTier, TierError
from tests.cache_core.disk_world import DiskWorld, du
from tests.cache_core.memory_engine import key

CHUNK_BYTES = 5000
ROOT = Path(__file__).parents[2]
WORLD = DiskWorld(CHUNK_BYTES)


def opened(directory: Path, cap_bytes: int = 1 << 20, **settings: object) -> DiskTier:
    return DiskTier("disk", directory, cap_bytes, CHUNK_BYTES, **settings)  # type: ignore[arg-type]


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    made = opened(tmp_path / "tier")
    yield made
    made.close()


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A tmpfs of its own; skips where that is not allowed."""
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "lmcache-test", str(directory)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"can't mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_file_system_that_is_full_costs_hits_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The cap says 8 MiB, the file system has 1."""
    with mounted(tmp_path / "small", "size=1m"):
        directory = tmp_path / "small" / "tier"
        tier = opened(directory, 8 << 20)
        stored: list[int] = []
        refused = 0
        for number in range(200):
            if WORLD.put(tier, [number]) == [True]:
                stored.append(number)
            else:
                refused += 1
                assert number not in WORLD.get(tier, [number])
        # Most of a MiB of slots of 12 KiB, to the last of them.
        assert len(stored) > 60 and refused == 200 - len(stored)
        assert tier.counters.unwritten == refused
        assert caplog.messages == [
            "disk tier: can't write: No space left on device; requests go on without it"
        ]
        assert WORLD.get(tier, stored) == stored
        # Room that comes back is used again.
        tier.discard([key(number) for number in stored[:40]])
        assert all(WORLD.put(tier, list(range(1000, 1010))))
        rest = stored[40:] + list(range(1000, 1010))
        tier.sync()
        tier.close()
        tier = opened(directory, 8 << 20)
        assert WORLD.get(tier, rest) == rest
        tier.close()


def test_a_full_file_system_gives_room_when_others_leave(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=1m"):
        other = tmp_path / "small" / "other"
        tier = opened(tmp_path / "small" / "tier", 8 << 20)
        with open(other, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, (1 << 20) - du(tmp_path / "small") - 8192)
        assert WORLD.put(tier, [1, 2]) == [False, False]
        other.unlink()
        assert WORLD.put(tier, [1, 2]) == [True, True]
        assert WORLD.get(tier, [1, 2]) == [1, 2]
        tier.close()


def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "size=1m,ro"):
        with pytest.raises(TierError, match="fixed can't hold a disk tier: Read-only file system"):
            opened(tmp_path / "fixed")
        with pytest.raises(TierError, match="tier can't hold a disk tier: Read-only file system"):
            opened(tmp_path / "fixed" / "tier")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any directory")
def test_a_directory_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TierError, match="can't hold a disk tier: Permission denied"):
        opened(tmp_path / "tier")


def test_a_write_that_fails_is_a_miss_and_the_next_one_is_tried(
    tier: DiskTier, caplog: pytest.LogCaptureFixture
) -> None:
    """By a limit on the size of files: the kernel then refuses as it does for a broken disk."""
    assert WORLD.put(tier, [1]) == [True]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert WORLD.put(tier, [2, 3]) == [False, False]
        assert WORLD.put(tier, [4]) == [False]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tier.counters.unwritten == 3
    assert caplog.messages == ["disk tier: can't write: File too large; requests go on without it"]
    assert WORLD.put(tier, [2, 3]) == [True, True]
    assert WORLD.get(tier, [1, 2, 3, 4]) == [1, 2, 3]
    assert len(tier) == 3


def test_a_removed_segment_is_a_miss_and_a_line(
    tier: DiskTier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    WORLD.put(tier, [1, 2])
    for segment in (tmp_path / "tier").glob("*.seg"):
        segment.unlink()
    assert WORLD.get(tier, [1, 2]) == []
    assert len(caplog.messages) == 2
    assert all("its file ends before it does" in line for line in caplog.messages)
    assert len(tier) == 0
    assert tier.sync()


def test_no_more_files_is_a_miss_that_passes(
    tier: DiskTier, caplog: pytest.LogCaptureFixture
) -> None:
    WORLD.put(tier, [1])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        assert WORLD.get(tier, [1]) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caplog.messages == [
        "disk tier: can't read: Too many open files; requests go on without it"
    ]
    assert WORLD.get(tier, [1]) == [1]


def test_a_start_that_was_cut_short_is_no_foreign_directory(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text("1\n")
    (tmp_path / "FORMAT.new").write_text("lmc")
    (tmp_path / "lost+found").mkdir()
    tier = opened(tmp_path)
    assert WORLD.put(tier, [1]) == [True]
    tier.close()
    (tmp_path / "0000000000000007.new").write_bytes(bytes(10_000))
    tier = opened(tmp_path)
    assert WORLD.get(tier, [1]) == [1]
    assert not list(tmp_path.glob("*.new"))
    tier.close()


def test_a_cap_without_room_for_a_chunk_is_refused_with_the_least_one(tmp_path: Path) -> None:
    with pytest.raises(TierError, match="it must be at least") as refusal:
        opened(tmp_path / "tier", 100_000)
    least = int(str(refusal.value).split()[-1])
    tier = opened(tmp_path / "tier", least)
    assert WORLD.put(tier, [1]) == [True]
    assert du(tmp_path / "tier") <= least
    tier.close()


def test_one_process_at_a_time(tier: DiskTier, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom cache_core.tiers import DiskTier, TierError\n"
        "try:\n    DiskTier('disk', sys.argv[1], 1 << 20, 5000)\n"
        "except TierError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "tier")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == (
        f"{tmp_path / 'tier'} is in use by the disk tier of process {os.getpid()};"
        " give each process a directory of its own\n"
    ), done.stderr
    with pytest.raises(TierError, match="in use"):
        opened(tmp_path / "tier")
    assert WORLD.put(tier, [1]) == [True]


def test_a_forked_child_may_read_and_changes_nothing(tier: DiskTier, tmp_path: Path) -> None:
    WORLD.put(tier, [1, 2])
    pid = os.fork()
    if pid == 0:
        good = WORLD.get(tier, [1, 2]) == [1, 2]
        good = good and WORLD.put(tier, [3]) == [False] and not tier.sync()
        tier.discard([key(1)])
        tier.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert WORLD.get(tier, [1, 2]) == [1, 2]
    # The child's end has not given the directory away.
    with pytest.raises(TierError, match="in use"):
        opened(tmp_path / "tier")


def test_a_directory_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TierError, match=r"holds other files \(thesis.tex\)"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(TierError, match="can't hold a disk tier"):
        opened(tmp_path / "thesis.tex")
