"""TieredCache over real tiers: every byte that is served is the byte that was stored."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.cache import TieredCache
from cache_core.ledger import Placement
from cache_core.tiers import MemoryTier, NullTier, Tier
from cache_core.tiers.tensor import TensorTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, content, key


def tiers(capacities: Sequence[int]) -> list[Tier]:
    names = ("device", "cpu", "disk")
    return [
        MemoryTier(name, capacity, LAYOUT.chunk_bytes)
        for name, capacity in zip(names, capacities, strict=False)
    ]


def serve(cache: TieredCache, engine: MemoryEngine, numbers: list[int]) -> int:
    """One request as an engine does it: load the hit, compute the rest, store all. Returns hits."""
    keys = [key(n) for n in numbers]
    hit = cache.acquire(keys, wait_s=5)
    engine.wipe()
    loaded = cache.load(hit, engine.place(0, len(hit)))
    for i in range(loaded.chunks):
        assert engine.holds(i, numbers[i]), "a wrong byte was served"
    engine.fill(numbers)
    cache.store(keys, engine.place(0, len(keys))).result()
    return loaded.chunks


prompts = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 5)).map(
        lambda p: [p[0] * 10 + i for i in range(p[1])]
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(
    prompts,
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.sampled_from(["write_on_insertion", "write_on_eviction"]),
)
def test_serves_what_was_stored(
    sequence: list[list[int]], capacities: list[int], placement: Placement
) -> None:
    engine = MemoryEngine(LAYOUT, 6)
    cache = TieredCache(LAYOUT, tiers(capacities), placement=placement)
    try:
        for numbers in sequence:
            serve(cache, engine, numbers)
            cache.check()
    finally:
        cache.close()


def test_hits_are_counted_per_tier_and_demoted_bytes_survive() -> None:
    engine = MemoryEngine(LAYOUT, 4)
    cache = TieredCache(LAYOUT, tiers([2, 4]), placement="write_on_eviction")
    serve(cache, engine, [1, 2])
    serve(cache, engine, [3, 4])  # moves 1, 2 down
    hit = cache.acquire([key(1), key(2)])
    loaded = cache.load(hit, engine.place(0, 2))
    assert loaded.by_tier == {"cpu": 2}
    assert engine.holds(0, 1) and engine.holds(1, 2)
    assert loaded.bytes == 2 * LAYOUT.chunk_bytes
    assert cache.counters["device"].evicted_chunks == 2
    cache.close()


class Flaky(NullTier):
    """Fails to read chosen keys."""

    def __init__(self, bad: set[bytes]) -> None:
        super().__init__("cpu", 8)
        self.bad = bad

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return Read.of(key not in self.bad for key in keys)


class Broken(NullTier):
    """Raises on every write."""

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        raise OSError("the tier has burnt down")


def test_failed_read_ends_the_load_and_is_forgotten() -> None:
    cache = TieredCache(LAYOUT, [Flaky({key(2)})])
    cache.store([key(1), key(2), key(3)], None).result()
    loaded = cache.load(cache.acquire([key(1), key(2), key(3)]), None)
    assert loaded.chunks == 1
    assert cache.counters["cpu"].failures == 1
    assert len(cache.lookup([key(1), key(2)])) == 1
    cache.check()
    cache.close()


def test_broken_tier_costs_hits_and_no_request(caplog: pytest.LogCaptureFixture) -> None:
    cache = TieredCache(LAYOUT, [Broken("cpu", 4)])
    stored = cache.store([key(1), key(2)], None).result()
    assert stored.chunks == 0
    assert cache.counters["cpu"].failures == 2
    assert len(cache.lookup([key(1)])) == 0
    assert "writing 2 chunks to cpu failed" in caplog.text
    cache.check()
    cache.close()


def test_pinned_hit_survives_a_flood_until_it_is_loaded() -> None:
    engine, other = MemoryEngine(LAYOUT, 2), MemoryEngine(LAYOUT, 2)
    cache = TieredCache(LAYOUT, tiers([3]))
    serve(cache, engine, [1, 2])
    hit = cache.acquire([key(1), key(2)])
    for n in range(10, 30):
        other.fill([n])
        cache.store([key(n)], other.place(0, 1)).result()
    engine.wipe()
    assert cache.load(hit, engine.place(0, 2)).chunks == 2
    assert engine.holds(0, 1) and engine.holds(1, 2)
    cache.check()
    cache.close()


def test_acquire_waits_for_a_store_on_its_way() -> None:
    gate = threading.Event()

    class Slow(NullTier):
        def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
            gate.wait(5)
            return super().write(keys, place)

    cache = TieredCache(LAYOUT, [Slow("cpu", 4)])
    cache.store([key(1)], None)
    assert len(cache.acquire([key(1)], wait_s=0)) == 0
    threading.Timer(0.05, gate.set).start()
    assert len(cache.acquire([key(1)], wait_s=5)) == 1
    cache.close()


def test_clear_leaves_a_cold_cache() -> None:
    engine = MemoryEngine(LAYOUT, 3)
    cache = TieredCache(LAYOUT, tiers([2, 3]))
    serve(cache, engine, [1, 2, 3])
    cache.clear()
    assert len(cache) == 0
    cache.check()
    assert serve(cache, engine, [1, 2, 3]) == 0
    cache.close()
    cache.close()
    with pytest.raises(RuntimeError, match="closed"):
        cache.store([key(1)], None)


def test_tensor_tier_moves_the_same_bytes_as_the_native_path() -> None:
    """The path of a CUDA engine, on a CPU device: buffer -> device tier -> cpu tier -> buffer."""
    layout = LAYOUT
    engine = MemoryEngine(layout, 3)
    device: list[Tier] = [TensorTier("device", 2, layout, torch.device("cpu"))]
    cache = TieredCache(
        layout,
        [*device, MemoryTier("cpu", 4, layout.chunk_bytes)],
        placement="write_on_eviction",
    )
    engine.fill([1, 2, 3])
    keys = [key(1), key(2), key(3)]
    cache.store(keys, engine.tensors(3)).result()
    engine.wipe()
    loaded = cache.load(cache.acquire(keys), engine.tensors(3))
    assert loaded.by_tier == {"device": 2, "cpu": 1}
    assert all(engine.holds(i, n) for i, n in enumerate([1, 2, 3]))
    # 4 pushes 1 and 2 down: a demotion from the device tier to memory.
    engine.fill([4, 5])
    cache.store([key(4), key(5)], engine.tensors(2)).result()
    engine.wipe()
    assert cache.load(cache.acquire(keys), engine.place(0, 3)).by_tier == {"cpu": 3}
    assert all(engine.holds(i, n) for i, n in enumerate([1, 2, 3]))
    cache.check()
    cache.close()


@pytest.mark.parametrize("placement", ["write_on_insertion", "write_on_eviction"])
def test_eight_threads_over_a_tier_too_small_for_them(placement: Placement) -> None:
    """Look-ups, loads and stores from 8 threads, with checks in between. Half a minute of each
    placement in CI (LMCACHE_STRESS_SECONDS), a few seconds otherwise."""
    seconds = float(os.environ.get("LMCACHE_STRESS_SECONDS", "3"))
    cache = TieredCache(LAYOUT, tiers([16, 24]), placement=placement)
    wrong: list[str] = []
    served = [0] * 8
    expected = {n: content(LAYOUT, n) for d in range(10) for n in range(d * 10, d * 10 + 8)}
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(number)
        engine = MemoryEngine(LAYOUT, 8)
        try:
            while time.monotonic() < end:
                start = rng.randrange(10) * 10
                numbers = list(range(start, start + rng.randint(1, 8)))
                keys = [key(n) for n in numbers]
                hit = cache.acquire(keys, wait_s=rng.choice([0.0, 0.01]))
                if rng.random() < 0.1:
                    cache.release(hit)
                    continue
                engine.wipe()
                loaded = cache.load(hit, engine.place(0, len(hit)))
                for i in range(loaded.chunks):
                    if not np.array_equal(engine.chunk(i).ravel(), expected[numbers[i]]):
                        wrong.append(f"chunk {numbers[i]} has wrong bytes")
                for i, n in enumerate(numbers):
                    engine.chunk(i)[...] = expected[n].reshape(engine.chunk(i).shape)
                cache.store(keys, engine.place(0, len(keys))).result()
                served[number] += 1
                if rng.random() < 0.05:
                    cache.check()
        except Exception as error:
            wrong.append(repr(error))
            raise

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(served)
    cache.check()
    counters = cache.counters
    assert counters["device"].read_chunks > 0 and counters["cpu"].evicted_chunks > 0
    cache.close()


class Away(NullTier):
    """Can't be reached while ``away``: holds what it holds."""

    away = True

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return [Read.LATER] * len(keys) if self.away else super().read(keys, place)


def test_what_can_not_be_read_now_is_a_miss_and_stays() -> None:
    tier = Away("disk", 8)
    now = [100.0]
    cache = TieredCache(LAYOUT, [tier], clock=lambda: now[0], pause_s=1.0)
    keys = [key(1), key(2), key(3)]
    cache.store(keys, None).result()
    assert cache.load(cache.acquire(keys), None).chunks == 0
    assert cache.counters["disk"].failures == 3
    assert len(tier) == len(cache) == 3, "trouble that passes deletes nothing"
    tier.away = False
    now[0] += 1.0
    assert cache.load(cache.acquire(keys), None).chunks == 3
    cache.check()
    cache.close()
