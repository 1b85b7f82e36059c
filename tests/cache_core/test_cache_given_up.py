"""What was given up, or could not be cleaned up, leaves no wrong chunk and no lost room."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from cache_core.cache import TieredCache
from cache_core.execute import Executed
from cache_core.plan import ENGINE, Move, Plan
from cache_core.plan_executor import PlanExecutor
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from tests.cache_core.gated_tier import PATIENCE_S, GatedMemory, GatedTier, memory, put, served
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK = LAYOUT.chunk_bytes


class Sticky(GatedTier):
    """Keeps what it is told to free, while it is bad."""

    def __init__(self, *, bad: bool, capacity: int = 64) -> None:
        super().__init__(capacity=capacity)
        self.bad, self.written = bad, list[bytes]()

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        self.written += keys
        return super().write(keys, place)

    def discard(self, keys: Sequence[bytes]) -> None:
        super().discard([] if self.bad else keys)
        if self.bad:
            raise OSError("it sticks")


def test_what_is_given_up_in_a_clean_up_is_not_written_from_memory_of_others() -> None:
    disk = Sticky(bad=False)
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk], timeout_s=0.05)
    put(cache, engine, [1]).result(PATIENCE_S)
    worker = cache._executor.workers[0]
    disk.bad = True
    cache.clear()
    assert worker.again == {key(1)}
    disk.bad = False
    disk.discards.shut()
    assert put(cache, engine, [2]).result(PATIENCE_S).chunks == 0, "given up"
    engine.fill([99])
    disk.discards.open()
    while worker.stuck:
        threading.Event().wait(0.001)
    put(cache, engine, [3]).result(PATIENCE_S)  # behind whatever the thread did with the first
    assert disk.written == [key(1), key(3)]
    assert served(cache, engine, [3]) == 1 and len(disk) == 1
    cache.check()
    cache.close()


def test_a_store_that_somebody_cancels_goes_on() -> None:
    cpu = GatedMemory("cpu")
    cpu.writes.shut()
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [cpu])
    stored = put(cache, engine, [1])
    assert not stored.cancel()
    cpu.writes.open()
    assert stored.result(PATIENCE_S).chunks == 1
    assert put(cache, engine, [2]).result(PATIENCE_S).chunks == 1
    cache.close()


def test_a_caller_that_raises_when_it_is_told_does_not_end_the_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def finished(_: int) -> None:
        raise LookupError("who?")

    settled: list[Executed] = []
    carrier = PlanExecutor([memory(2)], CHUNK, settled.append)
    engine = MemoryEngine(LAYOUT, 1)
    for n in range(2):
        engine.fill([n])
        carrier.submit(Plan((Move(key(n), ENGINE, 0, 0),)), engine.place(0, 1), finished)
        carrier.flush()
    assert [list(done.good) for done in settled] == [[True], [True]]
    assert "telling that 1 chunks are taken failed" in caplog.text
    carrier.close(PATIENCE_S)


def test_memory_drops_nothing_of_a_store_that_is_longer_than_what_is_left_of_its_queue() -> None:
    cpu = GatedMemory("cpu")
    cpu.writes.shut()
    engines = MemoryEngine(LAYOUT, 2), MemoryEngine(LAYOUT, 4)
    cache = TieredCache(LAYOUT, [cpu], queue_bytes=3 * CHUNK)
    stored = put(cache, engines[0], [1, 2]), put(cache, engines[1], [3, 4, 5, 6])
    cpu.writes.open()
    assert [future.result(PATIENCE_S).chunks for future in stored] == [2, 4]
    assert cache.counters["cpu"].dropped_chunks == 0
    cache.close()


class Torn(Sticky):
    """While it is bad a write raises, and leaves what it has written."""

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        good = super().write(keys, place)
        if self.bad:
            raise OSError("torn")
        return good


def test_what_a_failed_clean_up_leaves_is_cleaned_up_with_the_next_write() -> None:
    disk = Torn(bad=True, capacity=2)
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [disk])
    assert put(cache, engine, [1, 2]).result(PATIENCE_S).chunks == 0
    cache.flush()
    assert len(disk) == 2 and len(cache) == 0
    disk.bad = False
    assert put(cache, engine, [3, 4]).result(PATIENCE_S).chunks == 2
    assert served(cache, engine, [3, 4]) == 2
    cache.check()
    cache.close()


class Odd(GatedTier):
    """Reads as ``change`` makes of what is there."""

    def __init__(
        self,
        change: Callable[[list[Read]], list[Read]],
        *,
        timely: bool = False,
        name: str = "disk",
    ) -> None:
        super().__init__(name)
        self.change, self.keeps_time = change, timely

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return self.change(super().read(keys, place))


def raises(_: list[Read]) -> list[Read]:
    raise OSError("damaged")


@pytest.mark.parametrize("timely", [False, True])
@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: [*a, Read.HERE], raises])
def test_a_tier_that_reads_wrongly_costs_its_hits_and_nothing_else(
    change: Callable[[list[Read]], list[Read]], timely: bool
) -> None:
    disk = Odd(change, timely=timely)
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [disk])
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    assert served(cache, engine, [1, 2]) == 0
    assert cache.counters["disk"].failures == 2 and cache.counters["disk"].suspensions == 1
    assert len(cache) == 2, "they stay"
    cache.clear()
    assert len(cache) == 0, "a pin was left"
    cache.close()


class Shared(Odd):
    shared = True


@pytest.mark.parametrize("timely", [False, True])
@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: [*a, Read.HERE], raises])
def test_a_shared_tier_that_answers_wrongly_costs_its_hits_and_nothing_else(
    change: Callable[[list[Read]], list[Read]], timely: bool
) -> None:
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [memory(4), Shared(change, timely=timely)])
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    cache.flush()
    hit = cache.acquire([key(n) for n in range(1, 5)])
    assert hit.tiers == (0, 0)
    cache.release(hit)
    assert cache.acquire_any([key(5)])[1] == []
    cache.clear()
    assert len(cache) == 0, "a pin was left"
    cache.close()


def test_an_acquire_that_is_interrupted_leaves_no_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    def heard(*_: object) -> set[bytes]:
        raise KeyboardInterrupt

    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [memory(4), Shared(list)])
    put(cache, engine, [1]).result(PATIENCE_S)
    cache.flush()
    monkeypatch.setattr(cache._residency, "heard", heard)
    with pytest.raises(KeyboardInterrupt):
        cache.acquire([key(1), key(2)])
    cache.clear()
    assert len(cache) == 0
    cache.close()


def test_a_hit_that_is_released_gives_its_probe_back() -> None:
    now = [0.0]
    disk = Odd(raises)
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk], clock=lambda: now[0], pause_s=1.0)
    put(cache, engine, [1]).result(PATIENCE_S)
    assert served(cache, engine, [1]) == 0
    for tenth in range(10, 40):
        now[0] = tenth / 10
        hit = cache.acquire([key(1)])
        assert len(hit) == 1 and len(cache.acquire([key(1)])) == 0, "one at a time"
        cache.release(hit)
    assert served(cache, engine, [1]) == 0, "tried, and in vain"
    assert len(cache.acquire([key(1)])) == 0
    now[0] += 2.0
    disk.change = list
    assert served(cache, engine, [1]) == 1
    cache.close()


def one_chunk_in_each_of_two_that_fail(now: list[float]) -> tuple[TieredCache, MemoryEngine]:
    """Chunk 1 is in the first tier alone, chunk 2 in the second; both raise when they are read."""
    engine = MemoryEngine(LAYOUT, 2)
    tiers = [Odd(raises), Odd(raises, name="remote")]
    cache = TieredCache(LAYOUT, tiers, clock=lambda: now[0], pause_s=1.0)
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    cache.flush()
    cache._ledger.forget(key(1), 1)
    cache._ledger.forget(key(2), 0)
    return cache, engine


def test_a_probe_that_a_load_does_not_come_to_is_given_back() -> None:
    now = [0.0]
    cache, engine = one_chunk_in_each_of_two_that_fail(now)
    for n in (1, 2):  # each tier is suspended
        assert served(cache, engine, [n]) == 0
    now[0] = 1.0
    hit = cache.acquire([key(1), key(2)])
    assert hit.tiers == (0, 1) and hit.probes == {0, 1}
    assert cache.load(hit, engine.place(0, 2)).chunks == 0, "the first tier ends it"
    assert len(cache.acquire([key(1)])) == 0
    assert len(cache.acquire([key(2)])) == 1
    cache.close()


def test_a_probe_of_a_chunk_behind_a_gap_is_given_back() -> None:
    now = [0.0]
    cache, engine = one_chunk_in_each_of_two_that_fail(now)
    assert served(cache, engine, [2]) == 0
    now[0] = 0.5
    assert served(cache, engine, [1]) == 0
    now[0] = 1.0
    assert len(cache.acquire([key(1), key(2)])) == 0, "the disk is out still"
    assert len(cache.acquire([key(2)])) == 1
    cache.close()
