"""What was given up, or could not be cleaned up, leaves no wrong chunk and no lost room."""

from __future__ import annotations

import threading

import pytest

from cache_core.cache import TieredCache
from cache_core.carrier import Carrier
from cache_core.carry import Carried
from cache_core.plan import ENGINE, Move, Plan
from tests.cache_core.gated_tier import PATIENCE_S, GatedMemory, GatedTier, memory, put, served
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK = LAYOUT.chunk_bytes


def test_what_is_given_up_in_a_clean_up_is_not_written_from_memory_of_others() -> None:
    disk = GatedTier()
    written: list[bytes] = []
    write = disk.write
    engine = MemoryEngine(LAYOUT, 1)
    cache = TieredCache(LAYOUT, [disk], timeout_s=0.05)
    put(cache, engine, [1]).result(PATIENCE_S)
    lane = cache._carrier.lanes[0]
    with cache._carrier.changed:
        lane.again.add(key(1))
    disk.discards.shut()
    disk.write = lambda keys, place: written.extend(keys) or write(keys, place)  # type: ignore[method-assign, func-returns-value]
    assert put(cache, engine, [2]).result(PATIENCE_S).chunks == 0, "given up"
    engine.fill([99])
    disk.discards.open()
    while lane.stuck:
        threading.Event().wait(0.001)
    put(cache, engine, [3]).result(PATIENCE_S)  # behind whatever the thread did with the first
    assert written == [key(3)]
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

    settled: list[Carried] = []
    carrier = Carrier([memory(2)], CHUNK, settled.append)
    engine = MemoryEngine(LAYOUT, 1)
    for n in range(2):
        engine.fill([n])
        carrier.submit(Plan((Move(key(n), ENGINE, 0, 0),)), engine.place(0, 1), finished)
        carrier.flush()
    assert [list(done.good) for done in settled] == [[True], [True]]
    assert "telling that 1 chunks are taken failed" in caplog.text
    carrier.close(PATIENCE_S)
