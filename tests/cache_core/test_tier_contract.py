"""What every tier promises, wrapped and unwrapped. A new tier is one line in ``OPENERS``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core import _native
from cache_core.cache import TieredCache
from cache_core.ledger import PLACEMENTS, Placement
from cache_core.tiers import DiskTier, MemoryTier, NullTier, Throttled, Tier, TierError
from cache_core.tiers.disk.format import spend
from cache_core.tiers.remote.mooncake_store import MooncakeStore
from cache_core.tiers.remote.remote_tier import RemoteTier
from cache_core.tiers.remote.url import open_remote
from cache_core.tiers.tensor import TensorTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers, FlatBuffers
from tests.cache_core.chaos import Chaos
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, content

CAPACITY = 6
CHUNK = LAYOUT.chunk_bytes


def disk(folder: Path) -> DiskTier:
    """A disk tier's capacity follows from its cap in bytes: the smallest cap with the one asked
    for."""
    cap = next(
        cap for cap in range(64 << 10, 64 << 20, 4096) if disk_capacity(cap, CHUNK) == CAPACITY
    )
    return DiskTier("x", folder / "kv", cap, CHUNK)


def disk_capacity(cap: int, chunk_bytes: int) -> int:
    try:
        return spend(cap, chunk_bytes, None, 0, 0).capacity
    except TierError:
        return 0


# name -> (a fixture, how to open a tier of CAPACITY chunks with what it gives)
OPENERS: dict[str, tuple[str, Callable[[Any], Tier]]] = {
    "null": ("tmp_path", lambda _: NullTier("x", CAPACITY)),
    "memory": ("tmp_path", lambda _: MemoryTier("x", CAPACITY, CHUNK)),
    "tensor": ("tmp_path", lambda _: TensorTier("x", CAPACITY, LAYOUT, torch.device("cpu"))),
    "disk": ("tmp_path", lambda folder: disk(folder)),
    "redis": (
        "redis_port",
        lambda port: open_remote(
            f"redis://127.0.0.1:{port}?part=256&timeout=60", CHUNK, CAPACITY, "x"
        ),
    ),
    "mooncake": (
        "mooncake_client",
        lambda client: RemoteTier(
            "x", CAPACITY, CHUNK, partial(MooncakeStore, client), timeout_s=60
        ),
    ),
}
KEEPS_NO_BYTES = {"null"}
TAKES_TENSORS = {"tensor"}  # of an engine whose KV is no tensor it takes nothing

WRAPPERS: dict[str, Callable[[Tier], Tier]] = {
    "plain": lambda tier: tier,
    "throttled": lambda tier: Throttled(
        tier, CHUNK, read_bytes_per_s=CHUNK * 1e5, write_bytes_per_s=CHUNK * 1e5, latency_s=1e-5
    ),
    "chaos": lambda tier: Chaos(tier, seed=0),
}


@dataclass
class World:
    """A tier under test, and an engine to move chunks to and from. Keys are never used twice, since
    a shared server outlives the test."""

    tier: Tier
    engine: MemoryEngine
    keeps_bytes: bool
    takes_tensors: bool

    def place(self, count: int) -> ChunkBuffers:
        """The first chunks of the engine's memory."""
        if self.takes_tensors:
            return self.engine.tensors(count)
        return self.engine.place(0, count)

    def write(self, keys: list[bytes], numbers: list[int]) -> list[bool]:
        """Stores chunks whose bytes follow from their numbers."""
        self.engine.fill(numbers)
        return self.tier.write(keys, self.place(len(keys)))

    def read(self, keys: list[bytes], numbers: list[int]) -> list[bool]:
        """Reads; proves every byte of what was read, and that the rest was left alone."""
        self.engine.wipe()
        found = [bool(answer) for answer in self.tier.read(keys, self.place(len(keys)))]
        if self.keeps_bytes:
            for row, (number, ok) in enumerate(zip(numbers, found, strict=True)):
                if ok:
                    assert self.engine.holds(row, number)
                else:
                    assert not self.engine.chunk(row).any()
        return found


def fresh(count: int) -> list[bytes]:
    return [os.urandom(32) for _ in range(count)]


@pytest.fixture(params=[f"{tier}-{wrapper}" for tier in OPENERS for wrapper in WRAPPERS])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    name, _, wrapper = request.param.partition("-")
    fixture, opener = OPENERS[name]
    tier = WRAPPERS[wrapper](opener(request.getfixturevalue(fixture)))
    engine = MemoryEngine(LAYOUT, 8)
    yield World(tier, engine, name not in KEEPS_NO_BYTES, name in TAKES_TENSORS)
    tier.close()


def test_reads_what_was_written_in_any_order(world: World) -> None:
    keys, numbers = fresh(4), [1, 2, 3, 4]
    assert world.tier.name == "x" and world.tier.capacity == CAPACITY
    assert world.write(keys, numbers) == [True] * 4
    assert len(world.tier) == 4
    assert world.tier.contains(keys) == [True] * 4
    assert world.read(keys, numbers) == [True] * 4
    assert world.read(keys[::-1], numbers[::-1]) == [True] * 4
    assert world.read(keys[2:3], [3]) == [True]


def test_what_is_absent_is_false_and_the_rest_is_served(world: World) -> None:
    a, b, c, d = fresh(4)
    assert world.write([a, c], [1, 3]) == [True] * 2
    assert world.tier.contains([a, b, c, d]) == [True, False, True, False]
    assert world.read([a, b, c, d], [1, 2, 3, 4]) == [True, False, True, False]
    assert world.read([b, d], [2, 4]) == [False, False]
    assert len(world.tier) == 2


def test_what_was_never_there_is_gone_and_not_for_later(world: World) -> None:
    """LATER would be asked for again and again, and remembered meanwhile."""
    assert world.write(fresh(1), [1]) == [True]
    assert world.tier.read(fresh(2), world.place(2)) == [Read.GONE] * 2
    assert world.tier.read(fresh(2), None) == [Read.GONE] * 2


def test_nothing_in_nothing_out(world: World) -> None:
    assert world.tier.contains([]) == []
    assert world.tier.read([], world.place(0)) == []
    assert world.tier.write([], world.place(0)) == []
    world.tier.discard([])
    assert len(world.tier) == 0


def test_a_full_tier_refuses_and_keeps_what_it_has(world: World) -> None:
    keys, numbers = fresh(8), list(range(1, 9))
    stored = world.write(keys, numbers)
    assert sum(stored) == CAPACITY == len(world.tier)
    assert world.read(keys, numbers) == stored
    assert world.write(fresh(1), [9]) == [False]
    assert world.read(keys, numbers) == stored


def test_overwriting_needs_no_room_and_serves_the_new_bytes(world: World) -> None:
    keys = fresh(CAPACITY)
    assert all(world.write(keys, [1] * CAPACITY))
    assert world.write(keys[:3], [7, 8, 9]) == [True] * 3
    assert len(world.tier) == CAPACITY
    assert all(world.read(keys, [7, 8, 9, 1, 1, 1]))


def test_discarding_makes_room(world: World) -> None:
    keys = fresh(CAPACITY)
    assert all(world.write(keys, list(range(CAPACITY))))
    world.tier.discard([*keys[:2], *fresh(1)])
    assert len(world.tier) == CAPACITY - 2
    assert world.read(keys, list(range(CAPACITY))) == [False, False, *[True] * 4]
    more = fresh(3)
    assert sum(world.write(more, [11, 12, 13])) == 2
    world.tier.discard(keys)
    world.tier.discard(keys)
    assert world.tier.contains(keys) == [False] * CAPACITY
    assert len(world.tier) == 2


def test_a_place_in_memory_is_where_the_bytes_are(world: World) -> None:
    keys, numbers = fresh(3), [1, 2, 3]
    world.write(keys, numbers)
    place = world.tier.place([keys[2], keys[0]])
    if place is None:
        return
    buffer = np.zeros((2, CHUNK), dtype=np.uint8)
    place.copy_to(buffer.ctypes.data + np.arange(2, dtype=np.uint64) * np.uint64(CHUNK))
    assert np.array_equal(buffer[0], content(LAYOUT, 3))
    assert np.array_equal(buffer[1], content(LAYOUT, 1))


def test_flat_memory_goes_in_and_out(world: World) -> None:
    if not world.keeps_bytes:
        pytest.skip("keeps no bytes")
    stride = -(-CHUNK // 4096) * 4096
    slab = _native.Slab(4 * stride)
    view = slab.view().reshape(4, stride)
    addresses = np.uint64(slab.address) + np.arange(4, dtype=np.uint64) * np.uint64(stride)
    for row in range(2):
        view[row, :CHUNK] = content(LAYOUT, row + 1)
    keys = fresh(2)
    assert world.tier.write(keys, FlatBuffers(addresses[:2], CHUNK)) == [True, True]
    assert world.tier.read(keys, FlatBuffers(addresses[2:], CHUNK)) == Read.of([True, True])
    assert np.array_equal(view[2:, :CHUNK], view[:2, :CHUNK])


def test_without_a_place(world: World) -> None:
    keys = fresh(2)
    if world.keeps_bytes:
        with pytest.raises(ValueError, match="place"):
            world.tier.write(keys, None)
        world.write(keys[:1], [1])
    else:
        assert world.tier.write(keys[:1], None) == [True]
    assert world.tier.read(keys, None) == Read.of([True, False])


def test_a_closed_tier_answers_nothing(world: World) -> None:
    keys = fresh(2)
    world.write(keys, [1, 2])
    world.tier.close()
    assert len(world.tier) == 0
    assert world.tier.contains(keys) == [False, False]
    assert world.read(keys, [1, 2]) == [False, False]
    world.tier.close()


def test_readers_never_see_a_half_written_chunk(world: World) -> None:
    """Three readers, and a writer that writes, overwrites nothing and discards its own."""
    stable, numbers = fresh(2), [1, 2]
    world.write(stable, numbers)
    growing: list[bytes] = []
    wrong: list[str] = []
    done = threading.Event()

    def reader() -> None:
        own = replace(world, engine=MemoryEngine(LAYOUT, 8))
        try:
            while not done.is_set():
                assert own.read(stable, numbers) == [True, True]
                for key in growing[-1:]:
                    own.read([key], [3])
        except AssertionError as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            [new] = fresh(1)
            growing.append(new)
            assert world.write([new], [3]) == [True]
            if len(growing) > 2 and world.tier.place([new]) is None:
                world.tier.discard([growing[-3]])
            if len(world.tier) == CAPACITY:
                break
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong


step = st.tuples(
    st.sampled_from(["write", "read", "discard", "contains"]),
    st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True),
)


def test_any_history_agrees_with_a_dictionary(world: World) -> None:
    @settings(max_examples=15, deadline=None, database=None)
    @given(st.lists(step, max_size=10))
    def run(history: list[tuple[str, list[int]]]) -> None:
        names = fresh(10)
        model: dict[bytes, int] = {}
        for turn, (verb, chosen) in enumerate(history):
            keys = [names[i] for i in chosen]
            held = [key in model for key in keys]
            if verb == "write":
                numbers = [100 * turn + i for i in chosen]
                stored = world.write(keys, numbers)
                assert all(ok for ok, was in zip(stored, held, strict=True) if was)
                model |= {k: n for k, n, ok in zip(keys, numbers, stored, strict=True) if ok}
                assert len(model) == CAPACITY or all(stored)
            elif verb == "discard":
                world.tier.discard(keys)
                for key in keys:
                    model.pop(key, None)
            elif verb == "contains":
                assert world.tier.contains(keys) == held
            else:
                assert world.read(keys, [model.get(key, 0) for key in keys]) == held
            assert len(world.tier) == len(model) <= CAPACITY
        world.tier.discard(names)

    run()


def requests() -> Iterator[list[int]]:
    """Prompts that share prefixes and do not fit."""
    rng = np.random.default_rng(0)
    for _ in range(25):
        start = int(rng.integers(4)) * 10
        yield list(range(start, start + int(rng.integers(1, 6))))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_below_a_cache_every_served_byte_is_right(world: World, placement: Placement) -> None:
    cache = TieredCache(LAYOUT, [MemoryTier("top", 3, CHUNK), world.tier], placement=placement)
    hits = serve_all(cache, world)
    cache.check()
    assert hits > 0
    cache.close()


def serve_all(cache: TieredCache, world: World) -> int:
    """Serves :func:`requests` as an engine does; proves every byte. Returns the chunks hit."""
    names = {number: os.urandom(32) for number in range(50)}
    engine, hits = world.engine, 0
    for numbers in requests():
        keys = [names[n] for n in numbers]
        hit = cache.acquire(keys, wait_s=5)
        engine.wipe()
        loaded = cache.load(hit, world.place(len(hit)))
        for row in range(loaded.chunks if world.keeps_bytes else 0):
            assert engine.holds(row, numbers[row])
        hits += loaded.chunks
        engine.fill(numbers)
        cache.store(keys, world.place(len(keys)))
        cache.flush()
    return hits


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("seed", range(3))
def test_in_a_storm_no_wrong_byte_and_no_failed_request(
    world: World, placement: Placement, seed: int
) -> None:
    storm = Chaos(world.tier, seed, failed_reads=0.2, failed_writes=0.2, lost=0.1, slow=0.2)
    tiers: list[Tier] = [MemoryTier("top", 2, CHUNK), storm]
    cache = TieredCache(LAYOUT, tiers, placement=placement, pause_s=0)
    serve_all(cache, world)
    assert storm.injected["failed writes"] > 0 and storm.injected["slow"] > 0
    assert cache.counters["x"].failures > 0
    cache.close()
