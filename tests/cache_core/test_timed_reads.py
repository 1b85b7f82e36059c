"""Threads of a tier's reads: what is busy is waited for, what hangs is not."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from cache_core.cache import TieredCache
from cache_core.io import timed_reads
from cache_core.io.timed_reads import DaemonPool, Unavailable
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from tests.cache_core.gated_tier import PATIENCE_S, Gate, GatedTier, put, served
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key


def test_the_time_that_a_task_waits_for_a_thread_does_not_count() -> None:
    pool = DaemonPool(1, 0, "test")
    gate = Gate(shut=True)
    pool.submit(gate.pass_through)
    gate.await_arrival()
    waiting = pool.submit(lambda: 7)
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(pool.result(waiting, 0.5)), daemon=True)
    waiter.start()
    waiter.join(0.75)
    assert waiter.is_alive(), "the thread is busy, and does not hang"
    gate.open()
    waiter.join(PATIENCE_S)
    assert got == [7]
    pool.close()


def test_what_is_queued_fails_when_all_threads_hang_and_others_take_their_places() -> None:
    pool = DaemonPool(2, 1, "test")
    gate = Gate(shut=True)
    hanging = [pool.submit(gate.pass_through) for _ in range(2)]
    for _ in hanging:
        gate.await_arrival()
    queued = pool.submit(lambda: 1)
    with pytest.raises(TimeoutError):
        pool.result(hanging[0], 0.0)
    assert pool.abandon(hanging[0])
    assert not queued.future.done(), "one thread may come back"
    assert pool.abandon(hanging[1])
    with pytest.raises(Unavailable):
        pool.result(queued, PATIENCE_S)
    assert pool.result(pool.submit(lambda: 2), PATIENCE_S) == 2, "by a spare thread"
    hanging.append(pool.submit(gate.pass_through))
    gate.await_arrival()
    assert pool.abandon(hanging[2])
    with pytest.raises(Unavailable):
        pool.result(pool.submit(lambda: 3), PATIENCE_S)
    gate.open()
    for task in hanging:
        pool.result(task, PATIENCE_S)
    while pool._hanging:
        threading.Event().wait(0.001)
    assert pool.result(pool.submit(lambda: 4), PATIENCE_S) == 4
    pool.close()
    with pytest.raises(Unavailable):
        pool.result(pool.submit(lambda: 5), PATIENCE_S)
    while pool._threads:
        threading.Event().wait(0.001)


def test_closing_a_pool_fails_what_is_queued() -> None:
    pool = DaemonPool(1, 0, "test")
    gate = Gate(shut=True)
    busy = pool.submit(gate.pass_through)
    gate.await_arrival()
    queued = pool.submit(lambda: 1)
    pool.close()
    with pytest.raises(Unavailable):
        pool.result(queued, PATIENCE_S)
    gate.open()
    pool.result(busy, PATIENCE_S)


class Stale(GatedTier):
    """Its first read hangs, and never comes back; the next ones are well."""

    first = True

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        if self.first:
            self.first = False
            self.reads.pass_through()
        return super().read(keys, place) if self.reads._open.is_set() else Read.of([True])


def test_a_tier_that_is_well_again_is_readable_though_all_threads_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timed_reads, "_THREADS", 1)
    now = [0.0]
    disk = Stale()
    disk.reads.shut()
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk], clock=lambda: now[0], timeout_s=0.5)
    put(cache, engine, [1]).result(PATIENCE_S)
    assert served(cache, engine, [1]) == 0
    now[0] = 1.0
    assert cache.load(cache.acquire([key(1)]), None).chunks == 1
    disk.reads.open()
    cache.close()


def test_a_load_that_has_begun_is_finished_by_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_reads, "staged_chunks", lambda _: 1)  # every chunk is a part
    disk = GatedTier()
    engine = MemoryEngine(LAYOUT, 6)
    cache = TieredCache(LAYOUT, [disk])
    put(cache, engine, range(6)).result(PATIENCE_S)
    engine.wipe()
    disk.reads.shut()
    hit = cache.acquire([key(n) for n in range(6)])
    loaded: list[int] = []
    load = threading.Thread(
        target=lambda: loaded.append(cache.load(hit, engine.place(0, 6)).chunks), daemon=True
    )
    load.start()
    disk.reads.await_arrival()
    close = threading.Thread(target=cache.close, daemon=True)
    close.start()
    while not cache._executor.workers[0].closing:
        close.join(0.001)
    disk.reads.open()
    for thread in (load, close):
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert loaded == [6] and all(engine.holds(n, n) for n in range(6))
    assert disk.closed.is_set()


def test_a_read_that_is_left_behind_keeps_the_tier_open() -> None:
    disk = GatedTier()
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk], timeout_s=0.05)
    put(cache, engine, [1]).result(PATIENCE_S)
    disk.reads.shut()
    assert served(cache, engine, [1]) == 0
    cache.close(timeout_s=0.01)
    assert not disk.closed.is_set()
    disk.reads.open()
    assert disk.closed.wait(PATIENCE_S)
