"""No tier waits for a slower one, and no caller for one that hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from cache_core.admission import Admission
from cache_core.cache import Stored, TieredCache
from cache_core.place import Addresses, Place
from cache_core.plan import PLACEMENTS, Placement
from cache_core.tiers import MemoryTier, NullTier
from cache_core.tiers.tier import Read
from tests.cache_core.gated_tier import PATIENCE_S, GatedMemory, GatedTier
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK = LAYOUT.chunk_bytes


def memory(capacity: int, name: str = "cpu") -> MemoryTier:
    return MemoryTier(name, capacity, CHUNK)


def put(cache: TieredCache, engine: MemoryEngine, numbers: Sequence[int]) -> Future[Stored]:
    engine.fill(list(numbers))
    return cache.store([key(n) for n in numbers], engine.place(0, len(numbers)))


def served(cache: TieredCache, engine: MemoryEngine, numbers: Sequence[int]) -> int:
    """Chunks that are hit; proves their bytes."""
    engine.wipe()
    hit = cache.acquire([key(n) for n in numbers])
    loaded = cache.load(hit, engine.place(0, len(hit)))
    for row in range(loaded.chunks):
        assert engine.holds(row, numbers[row]), "a wrong byte was served"
    return loaded.chunks


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
    cache = TieredCache(LAYOUT, [memory(4), disk])
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
    while not cache._carrier.lanes[0].closing:
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


def test_a_read_that_hangs_is_a_miss_and_never_touches_the_engine_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = GatedTier()
    engine = MemoryEngine(LAYOUT, 2)
    now = [0.0]
    cache = TieredCache(LAYOUT, [disk], clock=lambda: now[0], timeout_s=0.05, pause_s=7.0)
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    disk.reads.shut()
    assert served(cache, engine, [1, 2]) == 0
    assert len(cache) == 2, "what can't be read now stays"
    assert "the disk tier did not answer a read of 2 chunks within 0.05 s" in caplog.text
    assert len(cache.lookup([key(1)])) == len(cache.acquire([key(1)])) == 0
    assert cache.counters["disk"].suspensions == 1
    engine.wipe()
    disk.reads.open()
    while cache._carrier.lanes[0].users:
        threading.Event().wait(0.001)
    assert not engine.kv.any(), "a late read wrote to memory that was given back"
    now[0] = 7.0
    assert served(cache, engine, [1, 2]) == 2
    cache.close()


def test_what_a_hanging_read_may_still_read_is_discarded_when_it_is_back() -> None:
    disk = GatedTier()
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk], timeout_s=0.05)
    put(cache, engine, [1]).result(PATIENCE_S)
    disk.reads.shut()
    assert served(cache, engine, [1]) == 0
    cache.clear()
    assert len(cache) == 0 and len(disk) == 1
    disk.reads.open()
    while cache._carrier.lanes[0].late:
        threading.Event().wait(0.001)
    put(cache, engine, [2]).result(PATIENCE_S)
    cache.clear()
    assert len(disk) == 0
    cache.check()
    cache.close()


def test_a_write_that_hangs_gives_the_engine_back_and_leaves_no_chunk() -> None:
    disk = GatedTier()
    disk.writes.shut()
    engines = MemoryEngine(LAYOUT, 2), MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk], timeout_s=0.05)
    stored = put(cache, engines[0], [1, 2]), put(cache, engines[1], [3])
    assert [future.result(PATIENCE_S).chunks for future in stored] == [0, 0]
    cache.flush()
    assert len(cache) == 0 and cache.counters["disk"].dropped_chunks == 3
    assert put(cache, engines[1], [4]).result(PATIENCE_S).chunks == 0, "still stuck"
    engines[0].wipe()
    disk.writes.open()
    while cache._carrier.lanes[0].stuck or cache._carrier.lanes[0].again:
        threading.Event().wait(0.001)
    assert len(disk) == 0, "nobody counts what a late write left"
    put(cache, engines[1], [3]).result(PATIENCE_S)
    assert served(cache, engines[1], [3]) == 1
    cache.check()
    cache.close()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_discard_that_raises_leaves_nothing_pending(placement: Placement) -> None:
    class Sticky(GatedTier):
        bad = True

        def discard(self, keys: Sequence[bytes]) -> None:
            if self.bad:
                raise OSError("it sticks")
            super().discard(keys)

    disk = Sticky(capacity=2)
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk], placement=placement)
    for n in range(4):  # the tier is full, and can't let go
        put(cache, engine, [n]).result(PATIENCE_S)
    cache.flush()
    cache._ledger.check()
    assert not cache._ledger.pending([key(n) for n in range(4)])
    disk.bad = False
    for n in range(4, 8):
        put(cache, engine, [n]).result(PATIENCE_S)
    cache.flush()
    assert served(cache, engine, [7]) == 1
    cache.check()
    cache.close()


def test_a_tier_that_raises_in_the_middle_of_a_discard_in_a_synchronous_cache() -> None:
    class Sticky(NullTier):
        def discard(self, keys: Sequence[bytes]) -> None:
            raise OSError("it sticks")

    cache = TieredCache(LAYOUT, [Sticky("cpu", 1)], synchronous=True)
    for n in range(3):
        cache.store([key(n)], None).result(0)
    assert not cache._ledger.pending([key(n) for n in range(3)])
    cache._ledger.check()


class Torn:
    """Raises at its third chunk."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __len__(self) -> int:
        return len(self._place)

    def pick(self, rows: Sequence[int]) -> Torn:
        return Torn(self._place.pick(rows))

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        if len(self) > 1:
            raise IndexError("a slot lies outside")
        self._place.copy_to(addresses)

    def copy_from(self, addresses: Addresses) -> None:
        self._place.copy_from(addresses)


class OneByOne(MemoryTier):
    """Publishes each chunk as it comes."""

    def write(self, keys: Sequence[bytes], place: Place | None) -> list[bool]:
        assert place is not None
        good = []
        for row, name in enumerate(keys):
            rows = [row] if row < 2 else [row, row]
            good += super().write([name] * len(rows), place.pick(rows))[:1]
        return good


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_place_that_raises_leaves_no_chunk_that_nobody_counts(synchronous: bool) -> None:
    engine = MemoryEngine(LAYOUT, 4)
    engine.fill([0, 1, 2, 3])
    cache = TieredCache(LAYOUT, [OneByOne("cpu", 8, CHUNK)], synchronous=synchronous)
    keys = [key(n) for n in range(4)]
    stored = cache.store(keys, Torn(engine.place(0, 4)))
    assert stored.result(PATIENCE_S).chunks == 0
    cache.check()
    assert len(cache) == len(cache.tiers[0]) == 0
    cache.close()


def test_a_forked_child_misses_and_the_parent_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    engine = MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, [memory(4)])
    put(cache, engine, [1, 2]).result(PATIENCE_S)
    hit = cache.acquire([key(1), key(2)])
    keys = [key(1), key(2)]
    with cache._lock, cache._carrier.changed:  # other threads may be anywhere when one forks
        child = os.fork()
        if not child:
            signal.alarm(20)
            code = 1
            try:
                place = engine.place(0, 2)
                assert cache.store(keys, place).result(0).chunks == 0
                assert len(cache) == len(cache.lookup(keys)) == len(cache.acquire(keys, 5)) == 0
                assert cache.acquire_any(keys)[1] == []
                assert cache.load(hit, place).chunks == 0
                cache.release(hit)
                cache.touch(keys)
                cache.flush()
                cache.clear()
                cache.check()
                cache.reset_counters()
                assert cache.queued_chunks() == {}
                cache.close()
                code = 0
            finally:
                os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.load(hit, engine.place(0, 2)).chunks == 2
    cache.check()
    cache.close()


def test_acquire_waits_for_nothing_behind_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = GatedTier()
    disk.writes.shut()
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk])
    put(cache, engine, [2])

    def wait(timeout: float) -> bool:
        raise AssertionError(f"it waits {timeout} s for what it can't use")

    with monkeypatch.context() as patched:
        patched.setattr(cache._settled, "wait", wait)
        assert len(cache.acquire([key(1), key(2)], wait_s=60)) == 0
        with pytest.raises(AssertionError, match="it waits"):
            cache.acquire_any([key(1), key(2)], wait_s=60)
    disk.writes.open()
    cache.close()


class Elsewhere(GatedTier):
    """Others fill it too, and it may be out of order."""

    shared = True

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        self.reads.pass_through()
        raise OSError("no answer")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_shared_tier_that_raises_or_hangs_when_it_is_asked_costs_hits_only(hangs: bool) -> None:
    remote = Elsewhere("remote")
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [memory(4), remote], timeout_s=0.05)
    put(cache, engine, [1]).result(PATIENCE_S)
    if hangs:
        remote.reads.shut()
    hit = cache.acquire([key(1), key(2)])
    assert len(hit) == 1
    cache.release(hit)
    assert cache.acquire_any([key(2)])[1] == []
    remote.reads.open()
    cache.close()


class Away(NullTier):
    away = True

    def read(self, keys: Sequence[bytes], place: Place | None) -> list[Read]:
        return [Read.LATER] * len(keys) if self.away else super().read(keys, place)


def test_a_suspended_tier_is_tried_again_less_and_less_often_and_others_serve_meanwhile() -> None:
    now = [0.0]
    disk, remote = Away("disk", 8), NullTier("remote", 2)
    cache = TieredCache(LAYOUT, [disk, remote], clock=lambda: now[0], pause_s=1.0)
    keys = [key(1), key(2), key(3)]
    cache.store(keys, None).result(PATIENCE_S)
    cache.flush()
    tries = []
    for tenth in range(160):
        now[0] = tenth / 10
        hit = cache.acquire(keys)
        if 0 in hit.tiers:
            tries.append(now[0])
        else:
            assert hit.tiers == cache.lookup(keys).tiers == (1, 1)
        cache.load(hit, None)
    assert tries == [0.0, 1.0, 3.0, 7.0, 15.0]
    assert cache.counters["disk"].suspensions == 1
    disk.away = False
    now[0] = 31.0
    assert cache.load(cache.acquire(keys), None).by_tier == {"disk": 3}
    assert cache.lookup(keys).tiers == (0, 0, 0)
    assert cache.acquire_any(keys)[1] == [0, 1, 2]
    cache.close()
