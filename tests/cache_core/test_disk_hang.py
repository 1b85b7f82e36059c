"""A disk that does not answer: callers go on, and nothing of theirs is touched when it comes back.

A call hangs in the kernel where a segment's file is a FIFO that nobody writes to, or in csrc.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from cache_core import _native
from cache_core.cache import TieredCache
from cache_core.tiers import DiskTier, MemoryTier, TierError
from cache_core.tiers.disk.crew import Hung, IoThreads
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import FlatBuffers
from tests.cache_core.disk_world import DiskWorld
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK_BYTES = 5000
NUMBERS = list(range(8))
WORLD = DiskWorld(CHUNK_BYTES)
LIMIT_S = 60.0  # on waits that end by themselves


def opened(directory: Path, **settings: Any) -> DiskTier:
    defaults = {"sync_s": 3600.0, "timeout_s": 0.05}
    return DiskTier("disk", directory, 4 << 20, CHUNK_BYTES, **(defaults | settings))


class Hanging:
    """A verb of csrc that waits until it is let go."""

    def __init__(self, patch: pytest.MonkeyPatch, verb: str) -> None:
        self.released = threading.Event()
        self.entered = threading.Event()
        self.ended = threading.Event()
        plain = getattr(_native, verb)

        def call(*arguments: Any) -> Any:
            self.entered.set()
            assert self.released.wait(LIMIT_S)
            try:
                return plain(*arguments)
            finally:
                self.ended.set()

        patch.setattr(_native, verb, call)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tier"


@pytest.fixture
def tier(folder: Path) -> Iterator[DiskTier]:
    made = opened(folder)
    patient(made)
    assert all(WORLD.put(made, NUMBERS))
    made._crew.timeout_s = 0.05
    yield made
    patient(made)
    made.close()


def patient(tier: DiskTier) -> None:
    """From here on calls end by themselves, however busy this machine is."""
    tier._crew.timeout_s = LIMIT_S


def until_it_answers(tier: DiskTier) -> None:
    patient(tier)
    end = threading.Event()
    for _ in range(6000):
        if not tier._crew.hung:
            return
        end.wait(0.01)
    raise AssertionError("it still hangs")


def test_a_read_that_hangs_is_a_miss_and_touches_no_memory_later(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        hanging = Hanging(patch, "read_records")
        WORLD.rows[:] = 7
        place = WORLD.place(2)
        assert tier.read([key(1), key(2)], place) == [Read.LATER, Read.LATER]
        # What comes meanwhile does not wait at all.
        assert tier.read([key(3)], place) == [Read.LATER]
        assert WORLD.put(tier, [100]) == [False]
        WORLD.rows[:] = 7
        hanging.released.set()
        assert hanging.ended.wait(LIMIT_S)
        until_it_answers(tier)
        assert (WORLD.rows == 7).all(), "memory was written after the call had returned"
    assert WORLD.get(tier, NUMBERS) == NUMBERS
    assert [record.getMessage() for record in caplog.records] == [
        f"disk tier: {tier._directory.path} hangs: no answer within 0.05 s;"
        " requests go on without it",
        "disk tier: its disk answers again",
    ]


def test_a_late_read_does_not_write_to_memory_that_others_use(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads to is not given to the next call."""
    plain = _native.read_records
    first, second = threading.Event(), threading.Event()
    late = threading.Event()

    def read(fds: Any, offsets: Any, addresses: Any, *rest: Any) -> Any:
        if not first.is_set():
            first.set()
            assert second.wait(LIMIT_S)
            late.set()
        return plain(fds, offsets, addresses, *rest)

    monkeypatch.setattr(_native, "read_records", read)
    assert tier.read([key(1)], WORLD.place(1)) == [Read.LATER]
    tier._crew._behind = 0  # as if it did not know that one is left
    patient(tier)
    with tier._staging.borrow(1) as buffer:
        held = WORLD.place(1)
        WORLD.rows[0] = WORLD.content(5)
        held.copy_to(buffer.addresses[:1])
        tier._crew._behind = 1
        second.set()
        assert late.wait(LIMIT_S)
        until_it_answers(tier)
        WORLD.rows[0] = 0
        held.copy_from(buffer.addresses[:1])
        assert (WORLD.rows[0] == WORLD.content(5)).all()


def test_a_file_that_hangs_at_its_opening(tier: DiskTier, folder: Path) -> None:
    """A real one: the kernel does not return from open(2)."""
    patient(tier)
    tier.close()
    tier = opened(folder, direct=False)
    (segment,) = folder.glob("*.seg")
    aside = folder / "aside"
    segment.rename(aside)
    os.mkfifo(segment)
    assert tier.read([key(1)], WORLD.place(1)) == [Read.LATER]
    assert tier.read([key(1)], WORLD.place(1)) == [Read.LATER]
    assert tier.contains([key(1)]) == [True]
    os.close(os.open(segment, os.O_WRONLY))  # lets the reader in, to a file of no bytes
    until_it_answers(tier)
    segment.unlink()
    aside.rename(segment)
    assert WORLD.get(tier, NUMBERS) == NUMBERS
    tier.close()


def test_the_second_of_two_batches_hangs(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first one brought is in place, and is said to be."""
    patient(tier)
    numbers = list(range(100, 100 + 60))
    assert all(WORLD.put(tier, numbers))
    plain = _native.read_records
    released = threading.Event()

    def read(*arguments: Any) -> Any:
        if arguments[3][0].tobytes() == key(100):  # the calls come in any order
            answer = plain(*arguments)
            tier._crew.timeout_s = 0.2  # for what is waited for next
            return answer
        assert released.wait(LIMIT_S)
        return plain(*arguments)

    monkeypatch.setattr(_native, "read_records", read)
    WORLD.rows[:] = 7
    answers = tier.read([key(n) for n in numbers], WORLD.place(len(numbers)))
    done = answers.count(Read.HERE)
    assert 0 < done < len(numbers)
    assert answers == [Read.HERE] * done + [Read.LATER] * (len(numbers) - done)
    released.set()
    until_it_answers(tier)
    for row, number in enumerate(numbers):
        expected = WORLD.content(number) if row < done else 7
        assert (WORLD.rows[row] == expected).all()
    assert len(tier._staging._free) <= 1, "a buffer that a disk may write to was kept"


def test_a_place_that_fails_while_the_next_batch_is_read(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffer is given to nobody before that read has ended."""
    patient(tier)
    numbers = list(range(100, 100 + 60))
    assert all(WORLD.put(tier, numbers))
    plain = _native.read_records
    entered, ended = threading.Event(), threading.Event()
    calls: list[None] = []

    def read(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) != 2:
            return plain(*arguments)
        entered.set()
        answer = plain(*arguments)
        ended.set()
        return answer

    class Failing(FlatBuffers):
        def pick(self, rows: Sequence[int]) -> Self:
            assert entered.wait(LIMIT_S)
            raise RuntimeError("the engine is out of order")

    monkeypatch.setattr(_native, "read_records", read)
    with pytest.raises(RuntimeError, match="out of order"):
        tier.read([key(n) for n in numbers], Failing(WORLD.addresses[:60], CHUNK_BYTES))
    assert ended.is_set() and not tier._crew.hung
    assert WORLD.get(tier, numbers) == numbers


def test_a_write_that_hangs_stores_nothing_that_nobody_counts(
    tier: DiskTier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        hanging = Hanging(patch, "write_records")
        assert WORLD.put(tier, [100, 101]) == [False, False]
        assert len(tier) == len(NUMBERS)
        assert tier.read([key(1)], WORLD.place(1)) == [Read.LATER]
        tier.discard([key(2)])  # returns, and is remembered
        assert tier.contains([key(2), key(3)]) == [False, True]
        # The engine goes on with its memory.
        WORLD.rows[:] = 9
        hanging.released.set()
        until_it_answers(tier)
    rest = [n for n in NUMBERS if n != 2]
    assert tier.contains([key(100)]) == [False] and len(tier) == len(rest)
    assert WORLD.get(tier, NUMBERS) == rest
    assert WORLD.put(tier, [100, 101]) == [True, True]
    patient(tier)
    tier.close()
    again = opened(folder, timeout_s=LIMIT_S)
    assert WORLD.get(again, [*NUMBERS, 100, 101]) == [*rest, 100, 101]
    again.close()


def test_a_sync_that_hangs_is_not_waited_for(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    plain = os.fdatasync

    def fdatasync(fd: int) -> None:
        assert released.wait(LIMIT_S)
        plain(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert tier.sync() is False
    released.set()
    until_it_answers(tier)
    assert tier.sync() is True


def test_closing_a_disk_that_hangs_returns_and_keeps_the_lock_until_it_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opened(folder, timeout_s=LIMIT_S)
    assert all(WORLD.put(tier, NUMBERS))
    tier._crew.timeout_s = 0.05
    with monkeypatch.context() as patch:
        hanging = Hanging(patch, "write_records")
        assert WORLD.put(tier, [100]) == [False]
        tier.close()
        tier.close()
        assert len(tier) == 0 and tier.contains([key(1)]) == [False]
        with pytest.raises(TierError, match="in use"):
            opened(folder)
        hanging.released.set()
        until_it_is_free(folder)
    again = opened(folder, timeout_s=LIMIT_S)
    assert WORLD.get(again, NUMBERS) == NUMBERS
    again.close()


def until_it_is_free(folder: Path) -> None:
    pause = threading.Event()
    for _ in range(6000):
        try:
            opened(folder, timeout_s=LIMIT_S).close()
        except TierError:
            pause.wait(0.01)
        else:
            return
    raise AssertionError("the directory is still held")


def test_closing_waits_for_no_longer_than_the_disk_may_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It hangs only now, in the last sync."""
    tier = opened(folder, timeout_s=LIMIT_S)
    assert all(WORLD.put(tier, NUMBERS))
    tier._crew.timeout_s = 0.05
    released = threading.Event()
    plain = os.fdatasync

    def fdatasync(fd: int) -> None:
        assert released.wait(LIMIT_S)
        plain(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    tier.close()
    assert any("hangs: no answer within 0.05 s" in line for line in caplog.messages)
    released.set()
    until_it_is_free(folder)


def test_a_cache_serves_and_closes_over_a_disk_that_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskTier("disk", folder, 4 << 20, LAYOUT.chunk_bytes, timeout_s=LIMIT_S)
    cache = TieredCache(LAYOUT, [MemoryTier("cpu", 2, LAYOUT.chunk_bytes), disk], pause_s=0)
    engine = MemoryEngine(LAYOUT, 4)
    keys = [key(n) for n in (1, 2, 3, 4)]
    engine.fill([1, 2, 3, 4])
    cache.store(keys, engine.place(0, 4))
    cache.flush()
    disk._crew.timeout_s = 0.05
    with monkeypatch.context() as patch:
        hanging = Hanging(patch, "read_records")
        engine.wipe()
        loaded = cache.load(cache.acquire(keys), engine.place(0, 4))
        assert loaded.chunks < 4
        assert all(
            engine.holds(row, keys_number)
            for row, keys_number in zip(range(loaded.chunks), (1, 2, 3, 4), strict=False)
        )
        hanging.released.set()
        until_it_answers(disk)
    engine.wipe()
    loaded = cache.load(cache.acquire(keys), engine.place(0, 4))
    assert loaded.chunks == 4
    assert all(engine.holds(row, number) for row, number in enumerate((1, 2, 3, 4)))
    cache.check()
    cache.close()


def test_a_forked_child_waits_in_its_own_thread(tier: DiskTier) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if WORLD.get(tier, NUMBERS) == NUMBERS else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_crew_gives_results_errors_and_threads_back() -> None:
    crew = IoThreads("x", LIMIT_S)
    assert crew.call(lambda: 7) == 7
    with pytest.raises(KeyError):
        crew.call(lambda: os.environ["LMCACHE_ABSENT"])
    before = threading.active_count()
    for _ in range(20):
        crew.call(lambda: None)
    assert threading.active_count() == before
    crew.close(lambda: None)
    with pytest.raises(ValueError, match="last"):
        IoThreads("x", LIMIT_S).close(lambda: int("last"))


def test_without_a_limit_the_caller_does_it() -> None:
    crew = IoThreads("x", None)
    assert crew.call(threading.current_thread) is threading.current_thread()


def test_what_is_left_behind_refuses_others_until_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    crew = IoThreads("x", 0.02)
    released, closed = threading.Event(), threading.Event()
    with pytest.raises(Hung, match=r"no answer within 0\.02 s"):
        crew.call(lambda: released.wait(LIMIT_S))
    with pytest.raises(Hung, match="an earlier call has not ended"):
        crew.call(lambda: None)
    with pytest.raises(Hung):
        crew.close(closed.set)
    assert not closed.is_set()
    released.set()
    assert closed.wait(LIMIT_S), "the last call was forgotten"
