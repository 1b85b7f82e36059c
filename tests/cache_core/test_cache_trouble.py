"""What hangs, raises or is forked costs hits, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence

import pytest

from cache_core.cache import TieredCache
from cache_core.layout import Addresses
from cache_core.plan import PLACEMENTS, Placement
from cache_core.tiers import MemoryTier, NullTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from tests.cache_core.gated_tier import PATIENCE_S, GatedTier, memory, put, served
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK = LAYOUT.chunk_bytes


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
    while cache._executor.workers[0].users:
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
    while cache._executor.workers[0].late:
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
    while cache._executor.workers[0].stuck or cache._executor.workers[0].again:
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

    def __init__(self, place: ChunkBuffers) -> None:
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

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
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
    with cache._lock, cache._executor.changed:  # other threads may be anywhere when one forks
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

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
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
