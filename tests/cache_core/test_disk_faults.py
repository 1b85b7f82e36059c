"""Trouble that passes costs hits while it lasts; then everything is there, also after a restart."""

from __future__ import annotations

import errno
import os
import random
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.tiers import DiskTier, TierError
from cache_core.tiers.disk.directory import Directory
from cache_core.tiers.disk.segment import SegmentFile
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import FlatBuffers
from tests.cache_core.disk_world import DiskWorld
from tests.cache_core.memory_engine import key

CHUNK_BYTES = 5000
ONE_SLOT = 25_000  # a segment of one chunk
NUMBERS = list(range(64))
WORLD = DiskWorld(CHUNK_BYTES)
PASSING = [
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EINTR,
    errno.EAGAIN,
    errno.ETIMEDOUT,
    errno.ESTALE,
]
names = pytest.mark.parametrize("trouble", PASSING, ids=lambda number: errno.errorcode[number])


def opened(directory: Path, cap_bytes: int = 4 << 20, **settings: Any) -> DiskTier:
    defaults = {"segment_bytes": ONE_SLOT, "sync_s": 3600.0}
    return DiskTier("disk", directory, cap_bytes, CHUNK_BYTES, **(defaults | settings))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tier"


@pytest.fixture
def tier(folder: Path) -> Iterator[DiskTier]:
    """Holds all of NUMBERS, each in a segment of its own."""
    made = opened(folder)
    assert all(WORLD.put(made, NUMBERS))
    yield made
    made.close()


def everything_is_there(tier: DiskTier, folder: Path) -> None:
    """Now, and after a restart."""
    assert WORLD.get(tier, NUMBERS) == NUMBERS
    tier.close()
    again = opened(folder)
    assert WORLD.get(again, NUMBERS) == NUMBERS
    again.close()


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """The process may open so many more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.dup(0) for _ in range(8)]
    lowest = min(fillers)
    for fd in fillers:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Failing:
    """Opening, or what csrc says of a record, fails with ``trouble`` while it is ``on``."""

    def __init__(self, patch: pytest.MonkeyPatch, trouble: int) -> None:
        self.trouble = trouble
        self.on = True
        self._patch = patch

    def opening(self, victim: str = ".seg") -> Failing:
        """Of files whose name ends so."""
        plain = Directory.open

        def open_file(directory: Directory, name: str, flags: int) -> int:
            if self.on and name.endswith(victim):
                raise OSError(self.trouble, os.strerror(self.trouble))
            return plain(directory, name, flags)

        self._patch.setattr(Directory, "open", open_file)
        return self

    def calls(self, verb: str) -> Failing:
        """All records of a call of csrc."""
        plain = getattr(_native, verb)

        def call(*arguments: Any) -> Any:
            answer = plain(*arguments)
            if self.on:
                statuses = answer[0] if isinstance(answer, tuple) else answer
                statuses[:] = self.trouble
            return answer

        self._patch.setattr(_native, verb, call)
        return self


def test_one_free_descriptor_is_enough_to_load_and_to_store(tier: DiskTier, folder: Path) -> None:
    with files_left(1):
        assert WORLD.get(tier, NUMBERS) == NUMBERS
        assert WORLD.put(tier, [100, 101]) == [True, True]
    assert WORLD.get(tier, [100, 101]) == [100, 101]
    everything_is_there(tier, folder)


def test_no_free_descriptor_deletes_nothing(tier: DiskTier, folder: Path) -> None:
    with files_left(0):
        place = WORLD.place(len(NUMBERS))
        assert tier.read([key(n) for n in NUMBERS], place) == [Read.LATER] * len(NUMBERS)
        assert WORLD.put(tier, [100]) == [False]
        tier.discard([key(5)])
        assert tier.sync() is False
    assert WORLD.put(tier, [5]) == [True]
    everything_is_there(tier, folder)


@names
def test_a_file_that_cannot_be_opened_now_is_read_later(
    trouble: int, tier: DiskTier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, trouble).opening()
    assert tier.read([key(1), key(2)], WORLD.place(2)) == [Read.LATER, Read.LATER]
    assert WORLD.put(tier, [100]) == [False]
    tier.sync()
    failing.on = False
    everything_is_there(tier, folder)


@names
def test_a_record_that_cannot_be_read_now_is_read_later(
    trouble: int, tier: DiskTier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, trouble).calls("read_records")
    assert tier.read([key(1), key(2)], WORLD.place(2)) == [Read.LATER, Read.LATER]
    failing.on = False
    everything_is_there(tier, folder)


def test_an_io_error_of_a_whole_disk_passes(
    tier: DiskTier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the file can be read: a mount that is away, not a sector that is bad."""
    failing = Failing(monkeypatch, errno.EIO).calls("read_records")
    plain = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: _fail(errno.EIO) if failing.on else plain(*a))
    assert tier.read([key(1)], WORLD.place(1)) == [Read.LATER]
    failing.on = False
    everything_is_there(tier, folder)


@pytest.mark.parametrize("direct", [False, True])
def test_an_io_error_of_a_record_alone_is_damage(
    direct: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opened(folder, direct=direct)
    WORLD.put(tier, [1, 2])
    failing = Failing(monkeypatch, errno.EIO).calls("read_records")
    assert tier.read([key(1)], WORLD.place(1)) == [Read.GONE]
    failing.on = False
    assert tier.contains([key(1), key(2)]) == [False, True]
    assert WORLD.put(tier, [1]) == [True]
    assert WORLD.get(tier, [1, 2]) == [1, 2]
    tier.close()


def _fail(trouble: int) -> int:
    raise OSError(trouble, os.strerror(trouble))


@names
def test_a_start_in_trouble_is_refused_and_loses_nothing(
    trouble: int, tier: DiskTier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier.close()
    before = sorted(os.listdir(folder))
    failing = Failing(monkeypatch, trouble).opening()
    with pytest.raises(TierError, match=r"can't be opened: .*; nothing in it is lost"):
        opened(folder)
    assert sorted(os.listdir(folder)) == before
    failing.on = False
    again = opened(folder)
    assert WORLD.get(again, NUMBERS) == NUMBERS
    again.close()


@names
def test_a_start_that_cannot_look_through_an_open_segment_loses_nothing(
    trouble: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opened(folder, segment_bytes=None)
    assert all(WORLD.put(tier, NUMBERS))
    kill(tier)
    failing = Failing(monkeypatch, trouble).calls("scan_records")
    with pytest.raises(TierError, match="nothing in it is lost"):
        opened(folder)
    failing.on = False
    again = opened(folder)
    assert WORLD.get(again, NUMBERS) == NUMBERS
    again.close()


def kill(tier: DiskTier) -> None:
    """Leaves the files as they are and lets the directory go: what SIGKILL does."""
    tier._directory.close()


@pytest.mark.parametrize("trouble", [errno.EIO, errno.EACCES])
def test_one_file_that_cannot_be_read_waits_and_the_others_are_served(
    trouble: int,
    tier: DiskTier,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It stays when room is needed, and what was dead in it stays dead."""
    tier.discard([key(1)])
    assert WORLD.put(tier, [1], like=500) == [True]  # a record of a number behind all others
    tier.close()
    victim = sorted(folder.glob("*.seg"))[-1]
    kept = victim.read_bytes()
    caplog.clear()
    with monkeypatch.context() as patch:
        Failing(patch, trouble).opening(victim.name)
        again = opened(folder)
    rest = [n for n in NUMBERS if n != 1]
    assert WORLD.get(again, NUMBERS) == rest
    assert [m for m in caplog.messages if "it is left alone" in m and victim.name in m]
    fresh = list(range(1000, 1000 + (again.capacity or 0) - len(again)))
    for at in range(0, len(fresh), 32):
        WORLD.put(again, fresh[at : at + 32])
    gone = fresh[: len(fresh) // 2]
    again.discard([key(n) for n in gone])
    assert victim.read_bytes() == kept
    again.close()
    last = opened(folder)
    assert WORLD.get(last, rest) == rest
    assert WORLD.get(last, [1], like=500) == [1]
    assert not any(last.contains([key(n) for n in gone]))
    last.close()


@pytest.mark.parametrize("trouble", [*PASSING, errno.EIO])
def test_compaction_in_trouble_gives_up_no_chunk(
    trouble: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opened(folder, 1 << 20, segment_bytes=60_000)
    failing = Failing(monkeypatch, trouble).calls("copy_records")
    scans = Failing(monkeypatch, trouble).calls("scan_records")
    plain = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: _fail(errno.EIO) if failing.on else plain(*a))
    held: list[int] = []
    refused = 0
    for fresh in range(0, 400, 4):
        numbers = list(range(fresh, fresh + 4))
        make_room(tier, held)
        stored = WORLD.put(tier, numbers)
        held += [n for n, ok in zip(numbers, stored, strict=True) if ok]
        refused += stored.count(False)
    assert refused > 0, "no room was needed: this tests nothing"
    assert tier.counters.copied == 0
    failing.on = scans.on = False
    assert WORLD.get(tier, held) == held
    for fresh in range(1000, 1100, 4):
        make_room(tier, held)
        held += range(fresh, fresh + 4)
        assert all(WORLD.put(tier, held[-4:]))
    assert tier.counters.copied > 0
    tier.close()
    again = opened(folder, 1 << 20, segment_bytes=60_000)
    assert WORLD.get(again, held) == held
    again.close()


def make_room(tier: DiskTier, held: list[int]) -> None:
    """For four chunks: any of them leave, so that no segment empties by itself."""
    rng = random.Random(len(held))
    while len(tier) + 4 > (tier.capacity or 0):
        tier.discard([key(held.pop(rng.randrange(len(held))))])


def test_compaction_goes_on_without_a_file_that_somebody_removed(folder: Path) -> None:
    tier = opened(folder, 1 << 20, segment_bytes=60_000)
    numbers = list(range(tier.capacity or 0))
    for at in range(0, len(numbers), 32):
        assert all(WORLD.put(tier, numbers[at : at + 32]))
    tier.discard([key(n) for n in numbers[::2]])
    for segment in list(folder.glob("*.seg"))[:3]:
        segment.unlink()
    fresh = list(range(1000, 1000 + len(numbers[::2])))
    stored = [ok for at in range(0, len(fresh), 8) for ok in WORLD.put(tier, fresh[at : at + 8])]
    assert all(stored)
    assert WORLD.get(tier, fresh) == fresh
    tier.close()


class Raising:
    """A place of the engine that fails at its ``last`` chunk."""

    def __init__(self, addresses: Addresses, last: int) -> None:
        self.addresses, self.last = addresses, last

    def __len__(self) -> int:
        return len(self.addresses)

    def pick(self, rows: Sequence[int]) -> Raising:
        return Raising(self.addresses[list(rows)], self.last - min(rows))

    def flat(self) -> None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        if self.last < len(addresses):
            raise RuntimeError("the engine is out of order")
        FlatBuffers(self.addresses, CHUNK_BYTES).copy_to(addresses)

    copy_from = copy_to


def test_a_place_that_raises_leaves_no_chunk_that_nobody_counts(folder: Path) -> None:
    """In the second batch: the first one was written."""
    tier = opened(folder, 16 << 20, segment_bytes=None)
    staged = tier._staging.chunks
    keys = [key(n) for n in range(staged + 10)]
    addresses = np.resize(WORLD.addresses, len(keys))
    for _ in range(2 + (tier.capacity or 0) // staged):
        with pytest.raises(RuntimeError, match="out of order"):
            tier.write(keys, Raising(addresses, staged + 5))
        assert len(tier) == 0
    assert WORLD.put(tier, NUMBERS) == [True] * len(NUMBERS)
    assert WORLD.get(tier, NUMBERS) == NUMBERS
    tier.close()


def test_a_directory_of_several_levels_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    plain = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        plain(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    opened(tmp_path / "a" / "b" / "tier").close()
    for made in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "tier"):
        assert str(made) in synced
    synced.clear()
    (tmp_path / "made").mkdir()
    opened(tmp_path / "made").close()
    assert str(tmp_path) in synced, "whoever made it has not synced its name"


def test_a_segment_that_was_never_sealed_for_trouble_is_sealed_later(
    tier: DiskTier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SegmentFile.seal
    failing = Failing(monkeypatch, errno.EIO)

    def seal(segment: SegmentFile) -> None:
        if failing.on:
            _fail(errno.EIO)
        plain(segment)

    monkeypatch.setattr(SegmentFile, "seal", seal)
    assert tier.sync() is False
    kill(tier)
    again = opened(folder)
    assert WORLD.get(again, NUMBERS) == NUMBERS
    failing.on = False
    again.sync()
    everything_is_there(again, folder)
