"""The remote tier over a store that fails, hangs, forgets and lies."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core.cache import TieredCache
from cache_core.tiers import MemoryTier, TierError
from cache_core.tiers.remote.remote_tier import RemoteTier
from cache_core.tiers.remote.store import HEAD_BYTES, intact, seal
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import PagedBuffers
from tests.cache_core.dict_store import (
    CHUNK,
    Clock,
    Server,
    assert_true,
    open_tier,
    refuse,
    stored,
    written,
)
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine(LAYOUT, 8)


@pytest.mark.parametrize(
    "damage",
    [
        lambda value, other: value[:-1],
        lambda value, other: value + b"\0",
        lambda value, other: b"",
        lambda value, other: bytes(len(value)),
        lambda value, other: other,
        lambda value, other: b"LMKV\2" + value[5:],
        lambda value, other: value[:HEAD_BYTES] + other[HEAD_BYTES:],
        lambda value, other: value[: len(value) // 2] + other[len(value) // 2 :],
        lambda value, other: value[:-1] + bytes([value[-1] ^ 1]),
    ],
    ids=["short", "long", "empty", "zeroes", "foreign", "future", "swapped", "torn", "bit"],
)
def test_a_damaged_value_is_a_miss(
    server: Server, engine: MemoryEngine, damage: Callable[[bytes, bytes], bytes]
) -> None:
    tier = open_tier(server)
    keys = written(tier, engine, [1, 2, 3])
    name, other = keys[1].hex(), keys[2].hex()
    server.values[name] = damage(server.values[name], server.values[other])
    assert tier.read(keys, engine.place(0, 3)) == Read.of([True, False, True])
    assert engine.holds(0, 1) and engine.holds(2, 3)
    assert not engine.chunk(1).any(), "unverified bytes reached the engine"
    assert tier.counters.damaged + tier.counters.absent == 1
    tier.close()


@given(st.integers(0, HEAD_BYTES + 100), st.integers(1, 255))
def test_every_flipped_bit_is_noticed(position: int, flip: int) -> None:
    value = np.arange(HEAD_BYTES + 101, dtype=np.uint8)
    seal(key(1), value)
    assert intact(key(1), value)
    assert not intact(key(2), value)
    value[position] ^= flip
    assert not intact(key(1), value)


def test_a_hanging_store_is_left_behind_and_touches_nothing_later(
    server: Server, engine: MemoryEngine
) -> None:
    """The hang ends only after every call has come back: it would be waited for otherwise."""
    tier = open_tier(server, timeout_s=0.1)
    keys = stored(server, engine, [1, 2])
    gate = threading.Event()
    server.trouble = lambda: assert_true(gate.wait(60))
    assert tier.read(keys, engine.place(0, 2)) == [Read.LATER] * 2
    assert tier.contains(keys) == [False, False]
    assert tier.read(keys, None) == [Read.LATER] * 2
    assert tier.counters.timeouts == 3
    # The breaker is open by now, and what asks gets an answer at once.
    calls = len(server.calls)
    for _ in range(50):
        assert tier.read(keys, engine.place(0, 2)) == [Read.LATER] * 2
        assert tier.write(keys, engine.place(0, 2)) == [False, False]
    assert len(server.calls) == calls
    assert tier.counters.refused >= 100 and tier.counters.opened == 1
    gate.set()
    tier.close()
    assert not engine.kv.any(), "late bytes reached the engine"


def test_lanes_come_back_when_a_hang_ends(server: Server, engine: MemoryEngine) -> None:
    clock = Clock()
    tier = open_tier(server, clock, timeout_s=0.1)
    keys = stored(server, engine, [1, 2])
    gate = threading.Event()
    server.trouble = lambda: assert_true(gate.wait(60))
    while tier.counters.opened == 0:
        assert not any(tier.read(keys, engine.place(0, 2)))
    server.trouble = lambda: None
    gate.set()
    for _ in range(100):
        clock.now += 1000
        if all(tier.read(keys, engine.place(0, 2))):
            break
    assert engine.holds(0, 1) and engine.holds(1, 2)
    tier.close()


def test_the_breaker_opens_probes_and_closes(
    server: Server, engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    tier = open_tier(server, clock)
    keys = written(tier, engine, [1])
    server.trouble = refuse
    for _ in range(3):
        assert tier.contains(keys) == [False]
    calls = len(server.calls)
    for _ in range(10):
        assert tier.contains(keys) == [False]
    assert len(server.calls) == calls and tier.counters.refused == 10
    clock.now = 11
    assert tier.contains(keys) == [False]  # the probe
    assert len(server.calls) > calls
    calls = len(server.calls)
    clock.now = 25  # the second pause is twice as long
    assert tier.contains(keys) == [False]
    assert len(server.calls) == calls
    server.trouble = lambda: None
    clock.now = 40
    assert tier.contains(keys) == [True]
    assert tier.read(keys, engine.place(0, 1)) == Read.of([True])
    assert tier.counters.errors == 4 and tier.counters.opened == 1
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2, warnings
    assert "nobody is there" in warnings[0] and "answers again" in warnings[1]
    tier.close()


def test_one_failure_between_successes_opens_nothing(server: Server, engine: MemoryEngine) -> None:
    tier = open_tier(server)
    keys = written(tier, engine, [1])
    for _ in range(5):
        server.trouble = refuse
        assert tier.contains(keys) == [False]
        server.trouble = lambda: None
        assert tier.contains(keys) == [True]
    assert tier.counters.opened == 0 and tier.counters.errors == 5
    tier.close()


def test_a_store_with_a_defect_costs_hits_only(server: Server, engine: MemoryEngine) -> None:
    tier = open_tier(server)
    keys = written(tier, engine, [1])

    def defect() -> None:
        raise ZeroDivisionError("a defect")

    server.trouble = defect
    assert tier.read(keys, engine.place(0, 1)) == [Read.LATER]
    assert tier.write([key(2)], engine.place(0, 1)) == [False]
    assert tier.contains([key(2)]) == [False]
    tier.discard(keys)
    assert tier.counters.errors == 3  # and then the breaker is open
    tier.close()


def test_one_call_of_many_batches_is_one_failure(server: Server, engine: MemoryEngine) -> None:
    """Eight batches of one chunk on two lanes: the breaker opens at the third call, not within
    the first."""
    tier = RemoteTier("remote", None, CHUNK, server.store, workers=2, batch_bytes=1, timeout_s=30)
    keys = written(tier, engine, list(range(8)))
    server.trouble = refuse
    for calls in (1, 2):
        assert tier.read(keys, engine.place(0, 8)) == [Read.LATER] * 8
        assert (tier.counters.errors, tier.counters.opened) == (calls, 0)
    assert tier.write(keys, engine.place(0, 8)) == [False] * 8
    assert (tier.counters.errors, tier.counters.opened) == (3, 1)
    tier.close()


def test_only_what_this_process_wrote_is_removed(server: Server, engine: MemoryEngine) -> None:
    tier, other = open_tier(server), open_tier(server)
    [mine] = written(tier, engine, [1])
    [theirs] = written(other, engine, [2])
    assert tier.contains([mine, theirs]) == [True, True]
    tier.discard([mine, theirs])
    assert other.contains([mine, theirs]) == [False, True]
    # A write that failed gives no right to what is there.
    server.trouble = refuse
    assert tier.write([theirs], engine.place(0, 1)) == [False]
    server.trouble = lambda: None
    tier.discard([theirs])
    assert other.contains([theirs]) == [True]
    tier.close()
    other.close()


def test_a_damaged_value_is_left_to_whoever_writes_it(server: Server, engine: MemoryEngine) -> None:
    clock = Clock()
    tier = RemoteTier("remote", None, CHUNK, server.store, workers=1, clock=clock)
    keys = written(tier, engine, [1])
    whole = server.values[keys[0].hex()]
    server.values[keys[0].hex()] = bytes(len(whole))
    assert tier.read(keys, engine.place(0, 1)) == [Read.GONE]
    server.values[keys[0].hex()] = whole  # another process heals it
    tier.discard(keys)
    assert keys[0].hex() in server.values
    assert tier.contains(keys) == [False], "it is found out again and again"
    clock.now = 11
    assert tier.contains(keys) == [True]
    assert tier.read(keys, engine.place(0, 1)) == [Read.HERE]
    # And what this process writes is held at once.
    server.values[keys[0].hex()] = bytes(len(whole))
    assert tier.read(keys, engine.place(0, 1)) == [Read.GONE]
    written(tier, engine, [1])
    assert tier.contains(keys) == [True]
    tier.close()


def test_a_place_that_fails_gives_the_lanes_back(server: Server, engine: MemoryEngine) -> None:
    tier = open_tier(server)
    keys = written(tier, engine, list(range(8)))
    beyond = np.full((8, LAYOUT.chunk_tokens), engine.capacity, dtype=np.int64)
    outside = PagedBuffers(engine.paged, beyond, LAYOUT)
    for _ in range(4):
        with pytest.raises(IndexError):
            tier.read(keys, outside)
        with pytest.raises(IndexError):
            tier.write(keys, outside)
    assert all(tier.read(keys, engine.place(0, 8)))
    assert all(engine.holds(n, n) for n in range(8))
    tier.close()


def test_ping_says_why(server: Server) -> None:
    tier = open_tier(server)
    tier.ping()
    server.trouble = refuse
    with pytest.raises(TierError, match="remote tier can't be used: nobody is there"):
        tier.ping()
    gate = threading.Event()
    server.trouble = lambda: assert_true(gate.wait(60))
    slow = open_tier(server, timeout_s=0.05)
    with pytest.raises(TierError, match=r"within 0\.05 s"):
        slow.ping()
    gate.set()
    tier.close()
    slow.close()


def test_two_caches_on_one_server_use_each_others_chunks(
    server: Server, engine: MemoryEngine
) -> None:
    first = TieredCache(LAYOUT, [open_tier(server)])
    second = TieredCache(LAYOUT, [MemoryTier("cpu", 2, CHUNK), open_tier(server)])
    keys = [key(n) for n in range(4)]
    engine.fill([0, 1, 2, 3])
    first.store(keys, engine.place(0, 4)).result()
    engine.wipe()
    server.calls.clear()
    hit = second.acquire([*keys, key(99)])
    assert server.calls.count("exists") == 1
    loaded = second.load(hit, engine.place(0, 4))
    assert loaded.by_tier == {"remote": 4}
    assert all(engine.holds(n, n) for n in range(4))
    # Stored again it is nobody's upload: the ledger knows that the server has it.
    server.calls.clear()
    second.store(keys, engine.place(0, 4)).result()
    assert "put" not in server.calls
    assert second.lookup(keys).tiers == (0, 0, 1, 1)
    second.check()
    # What the cpu tier holds leaves nothing to ask but for the rest.
    server.calls.clear()
    second.release(second.acquire(keys))
    assert server.calls == []
    first.close()
    second.close()
    assert len(server.values) == 4, "a close must leave the others' chunks alone"


def test_chunks_behind_a_gap_are_not_adopted(server: Server, engine: MemoryEngine) -> None:
    tier = open_tier(server)
    written(tier, engine, [1, 2, 4])
    cache = TieredCache(LAYOUT, [open_tier(server)])
    hit = cache.acquire([key(n) for n in (1, 2, 3, 4)])
    assert len(hit) == 2
    cache.release(hit)
    assert len(cache) == 2
    cache.check()
    cache.close()
    tier.close()


def test_a_remote_that_fails_at_the_question_leaves_the_local_hit(
    server: Server, engine: MemoryEngine
) -> None:
    cache = TieredCache(LAYOUT, [MemoryTier("cpu", 4, CHUNK), open_tier(server)])
    engine.fill([1, 2])
    cache.store([key(1), key(2)], engine.place(0, 2)).result()
    server.trouble = refuse
    engine.wipe()
    loaded = cache.load(cache.acquire([key(1), key(2), key(3)]), engine.place(0, 2))
    assert loaded.by_tier == {"cpu": 2} and engine.holds(1, 2)
    cache.close()
