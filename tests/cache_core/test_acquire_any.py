"""Hits that are no prefix: what is held of a list of keys, wherever it stands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core.cache import TieredCache
from cache_core.layout import KVLayout
from cache_core.plan import PLACEMENTS, Placement
from cache_core.tiers import MemoryTier, NullTier
from cache_core.transfer.chunks import FlatBuffers

LAYOUT = KVLayout(1, 1, 16, "int8", 4)
SIZE = LAYOUT.chunk_bytes


def name(i: int) -> bytes:
    return bytes([i]) * 32


def flat(array: np.ndarray) -> FlatBuffers:
    steps = np.arange(len(array), dtype=np.uint64) * np.uint64(array.strides[0])
    return FlatBuffers(np.uint64(array.ctypes.data) + steps, SIZE)


@given(
    stored=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=6),
    asked=st.lists(st.integers(0, 9), max_size=8),
    placement=st.sampled_from(PLACEMENTS),
)
def test_held_chunks_are_found_read_and_released(
    stored: list[list[int]], asked: list[int], placement: Placement
) -> None:
    tiers = [MemoryTier("device", 2, SIZE), MemoryTier("cpu", 5, SIZE)]
    cache = TieredCache(LAYOUT, tiers, placement=placement, synchronous=True)
    for request in stored:
        keys = list(dict.fromkeys(request))
        source = np.array([[i] * SIZE for i in keys], dtype=np.uint8)
        cache.store([name(i) for i in keys], flat(source))
    held = [row for row, i in enumerate(asked) if len(cache.lookup([name(i)]))]
    hit, rows = cache.acquire_any([name(i) for i in asked])
    assert rows == held and list(hit.keys) == [name(asked[row]) for row in rows]
    target = np.full((len(rows), SIZE), 255, dtype=np.uint8)
    loaded = cache.load(hit, flat(target))
    assert loaded.chunks == len(rows)
    assert [chunk[0] for chunk in target] == [asked[row] for row in rows]
    cache.touch([name(i) for i in asked])
    cache.check()
    cache.clear()
    assert len(cache) == 0, "a pin was left"
    cache.close()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_touched_chunk_outlives_others(placement: Placement) -> None:
    cache = TieredCache(LAYOUT, [NullTier("cpu", 2)], placement=placement, synchronous=True)
    for i in (1, 2):
        cache.store([name(i)], None)
    cache.touch([name(1), name(7)])
    cache.store([name(3)], None)
    assert [len(cache.lookup([name(i)])) for i in (1, 2, 3, 7)] == [1, 0, 1, 0]
    cache.check()
    cache.close()


def test_what_others_put_into_a_shared_tier_is_found() -> None:
    class Shared(NullTier):
        shared = True

    remote = Shared("remote", None)
    cache = TieredCache(LAYOUT, [NullTier("cpu", 4), remote], synchronous=True)
    cache.store([name(1)], None)
    remote.write([name(5)], None)
    hit, rows = cache.acquire_any([name(9), name(5), name(8), name(1)])
    assert rows == [1, 3] and hit.tiers == (1, 0)
    cache.release(hit)
    cache.check()
    cache.close()
