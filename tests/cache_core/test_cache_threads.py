"""No tier waits for a slower one, and no caller for one that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from cache_core.cache import TieredCache
from cache_core.policies import Admission
from tests.cache_core.gated_tier import PATIENCE_S, GatedMemory, GatedTier, memory, put, served
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK = LAYOUT.chunk_bytes


def beside(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_slow_tier_drops_its_own_work_and_holds_up_no_faster_one() -> None:
    disk = GatedTier()
    disk.writes.shut()
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [memory(64), disk], queue_bytes=4 * CHUNK)
    for n in range(20):
        put(cache, engine, [2 * n, 2 * n + 1]).result(PATIENCE_S)
    assert sum(served(cache, engine, [2 * n, 2 * n + 1]) for n in range(20)) == 40
    assert cache.queued_chunks()["disk"] == (4, 4)
    disk.writes.open()
    cache.flush()
    cache.check()
    assert len(disk) == 4 and cache.counters["disk"].written_chunks == 4
    assert cache.counters["disk"].dropped_chunks == 36
    assert cache.counters["cpu"].dropped_chunks == cache.counters["cpu"].failures == 0
    cache.close()


def test_a_burst_waits_for_memory_and_loses_nothing_there() -> None:
    cpu = GatedMemory("cpu")
    cpu.writes.shut()
    engines = [MemoryEngine(LAYOUT, 2) for _ in range(6)]
    cache = TieredCache(LAYOUT, [cpu], queue_bytes=2 * CHUNK)

    def burst() -> None:
        for n, engine in enumerate(engines):
            put(cache, engine, [2 * n, 2 * n + 1])

    storing = beside(burst)
    cpu.writes.await_arrival()
    cpu.writes.open()
    storing.join(PATIENCE_S)
    cache.flush()
    assert len(cpu) == 12
    assert cache.queued_chunks()["cpu"][1] <= 4, "more than the bound and one store"
    cache.close()


def test_the_engine_is_free_when_the_fastest_tier_has_its_chunks() -> None:
    disk = GatedTier()
    disk.writes.shut()
    engine = MemoryEngine(LAYOUT, 3)
    cache = TieredCache(LAYOUT, [memory(8), disk])
    assert put(cache, engine, [1, 2, 3]).result(PATIENCE_S).chunks == 3
    engine.wipe()
    disk.writes.open()
    cache.flush()
    assert len(disk) == 3
    cache._ledger.forget(key(1), 0)  # what the disk has must be what the engine had
    assert served(cache, engine, [1]) == 1
    assert cache.counters["disk"].read_chunks == 1
    cache.close()


def test_bytes_that_wait_for_the_disk_are_those_that_were_stored() -> None:
    disk = GatedTier()
    engine = MemoryEngine(LAYOUT, 4)
    cache = TieredCache(LAYOUT, [memory(4), disk], queue_bytes=2 * CHUNK)
    disk.writes.shut()
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    for numbers in ([3, 4], [5, 6], [7, 8]):  # the two that are left of the cpu tier go round
        put(cache, engine, numbers).result(PATIENCE_S)
    disk.writes.open()
    cache.flush()
    here = [n for n in range(1, 9) if disk.contains([key(n)])[0]]
    assert {1, 2} <= set(here)
    for n in here:
        cache._ledger.forget(key(n), 0)
        assert served(cache, engine, [n]) == 1
    cache.close()


def test_a_demoted_chunk_is_copied_out_and_its_room_is_free_at_once() -> None:
    disk = GatedTier()
    disk.writes.shut()
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [memory(2), disk], placement="write_on_eviction")
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    put(cache, engine, [3, 4]).result(PATIENCE_S)  # 1 and 2 go down, and the disk hangs
    assert served(cache, engine, [3, 4]) == 2
    disk.writes.open()
    cache.flush()
    cache.check()
    assert served(cache, engine, [1, 2]) == 2
    cache.close()


def test_a_demotion_too_many_is_dropped() -> None:
    disk = GatedTier()
    disk.writes.shut()
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(
        LAYOUT, [memory(2), disk], placement="write_on_eviction", queue_bytes=2 * CHUNK
    )
    for n in range(0, 12, 2):
        put(cache, engine, [n, n + 1]).result(PATIENCE_S)
    disk.writes.open()
    cache.flush()
    cache.check()
    assert len(disk) == 2 and cache.counters["disk"].dropped_chunks == 8
    assert served(cache, engine, [10, 11]) == served(cache, engine, [0, 1]) == 2
    cache.close()


class Nothing(Admission):
    """Lets no chunk in."""

    def select(self, keys: Sequence[bytes], uses: object) -> list[bool]:
        return [False] * len(keys)

    def entered(self, chunks: int) -> None:
        assert not chunks


def test_what_no_memory_has_is_read_from_the_engine_until_it_is_stored() -> None:
    disk = GatedTier()
    disk.writes.shut()
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [memory(2), disk], admission={"cpu": Nothing()})
    stored = put(cache, engine, [1, 2])
    disk.writes.await_arrival()
    assert not stored.done()
    disk.writes.open()
    assert stored.result(PATIENCE_S).chunks == 2
    assert served(cache, engine, [1, 2]) == 2
    cache.close()


def test_an_empty_queue_takes_a_whole_store_and_a_full_one_its_head() -> None:
    disk = GatedTier()
    disk.writes.shut()
    engines = MemoryEngine(LAYOUT, 6), MemoryEngine(LAYOUT, 3)
    cache = TieredCache(LAYOUT, [disk], queue_bytes=8 * CHUNK)
    first = put(cache, engines[0], range(6))
    second = put(cache, engines[1], [10, 11, 12])
    disk.writes.open()
    assert (first.result(PATIENCE_S).chunks, second.result(PATIENCE_S).chunks) == (6, 2)
    assert served(cache, engines[1], [10, 11, 12]) == 2
    cache.check()
    cache.close()


@pytest.mark.parametrize("synchronous", [False, True])
def test_close_waits_for_a_load_and_a_load_after_it_gets_nothing(synchronous: bool) -> None:
    cpu = GatedMemory("cpu")
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [cpu], synchronous=synchronous)
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    cpu.reads.shut()
    hits = [cache.acquire([key(1), key(2)]) for _ in range(2)]
    engine.wipe()
    loaded: list[int] = []
    loading = beside(lambda: loaded.append(cache.load(hits[0], engine.place(0, 2)).chunks))
    cpu.reads.await_arrival()
    closing = beside(cache.close)
    while not cache._executor.workers[0].closing:
        closing.join(0.001)
    assert not cpu.closed.is_set(), "the memory of a load was taken away"
    assert cache.load(hits[1], engine.place(0, 2)).chunks == 0
    cpu.reads.open()
    for thread in (loading, closing):
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert loaded == [2] and engine.holds(0, 1) and engine.holds(1, 2)
    assert cpu.closed.is_set()


def test_close_leaves_a_tier_behind_that_hangs_and_the_last_one_out_closes_it() -> None:
    disk = GatedTier()
    disk.writes.shut()
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [memory(2), disk])
    put(cache, engine, [1]).result(PATIENCE_S)
    disk.writes.await_arrival()
    cache.close(timeout_s=0.01)
    assert not disk.closed.is_set()
    disk.writes.open()
    assert disk.closed.wait(PATIENCE_S)


def test_what_is_being_read_is_not_discarded() -> None:
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [memory(2)])
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    hit = cache.acquire([key(1)])
    cache.discard([key(1), key(2), key(3)])
    put(cache, engine, [3]).result(PATIENCE_S)
    engine.wipe()
    assert cache.load(hit, engine.place(0, 1)).chunks == 1 and engine.holds(0, 1)
    cache.check()
    assert len(cache) == 2, "one is discarded, one was being read, one came"
    cache.discard([key(1), key(3)])
    cache.check()
    assert len(cache) == 0
    cache.close()
