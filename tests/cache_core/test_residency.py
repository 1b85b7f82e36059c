"""A shared tier that others empty: what is promised of it, and what is given."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cache_core.cache import TieredCache
from cache_core.ledger import Hit
from cache_core.plan import PLACEMENTS, Placement
from cache_core.residency import FRESH_S
from cache_core.tiers import NullTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from tests.cache_core.memory_engine import LAYOUT, key


class Shared(NullTier):
    """What it is asked for is written down; ``silent`` it answers nothing."""

    shared = True

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__("remote", capacity)
        self.asked: list[list[bytes]] = []
        self.discarded: list[bytes] = []
        self.silent = False

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        self.asked.append(list(keys))
        return [Read.LATER] * len(keys) if self.silent else super().read(keys, place)

    def discard(self, keys: Sequence[bytes]) -> None:
        self.discarded += keys
        super().discard(keys)


class World:
    """A cache of a local tier and a shared one, which keeps no bytes, and its clock."""

    def __init__(
        self, capacity: int | None = None, placement: Placement = "write_on_insertion"
    ) -> None:
        self.now = 0.0
        self.remote = Shared(capacity)
        self.cache = TieredCache(
            LAYOUT,
            [NullTier("cpu", 1), self.remote],
            placement=placement,
            synchronous=True,
            clock=lambda: self.now,
        )

    def acquire(self, *numbers: int) -> int:
        hit = self.cache.acquire([key(n) for n in numbers])
        self.cache.release(hit)
        return len(hit)

    def acquire_any(self, *numbers: int) -> list[int]:
        hit, rows = self.cache.acquire_any([key(n) for n in numbers])
        self.cache.release(hit)
        return rows


@pytest.fixture
def world() -> World:
    """Chunks 1 to 4 are on the server, and were just heard of."""
    world = World()
    world.remote.write([key(n) for n in (1, 2, 3, 4)], None)
    assert world.acquire(1, 2, 3, 4) == 4
    world.remote.asked.clear()
    return world


def test_what_was_heard_of_lately_is_not_asked_for(world: World) -> None:
    world.now += FRESH_S - 1
    assert world.acquire(1, 2, 3, 4) == 4
    assert world.acquire_any(4, 2) == [0, 1]
    assert world.remote.asked == []


def test_what_is_old_is_asked_for_with_the_rest_in_one_round_trip(world: World) -> None:
    world.now += FRESH_S
    world.remote.write([key(5)], None)
    assert world.acquire(1, 2, 3, 4, 5, 6) == 5
    assert world.remote.asked == [[key(n) for n in (1, 2, 3, 4, 5, 6)]]
    assert world.acquire(1, 2, 3, 4, 5) == 5
    assert len(world.remote.asked) == 1


def test_what_the_server_evicted_is_not_promised(world: World) -> None:
    world.remote.discard([key(3)])
    world.now += FRESH_S
    assert world.acquire(1, 2, 3, 4) == 2
    assert world.acquire_any(4, 3, 2) == [0, 2]
    world.cache.check()
    # Forgotten, so that it can be stored again.
    world.cache.store([key(n) for n in (1, 2, 3, 4)], None)
    assert world.acquire(1, 2, 3, 4) == 4


def test_arbitrary_chunks_are_asked_for_again_too(world: World) -> None:
    world.remote.discard([key(3)])
    world.now += FRESH_S
    assert world.acquire_any(9, 4, 3, 2) == [1, 3]
    assert world.remote.asked == [[key(n) for n in (9, 4, 3, 2)]]


def test_a_server_that_does_not_answer_is_promised_nothing_and_forgets_nothing(
    world: World,
) -> None:
    world.now += FRESH_S
    world.remote.silent = True
    assert world.acquire(1, 2, 3, 4) == 0
    assert world.acquire_any(4, 2) == []
    assert len(world.cache) == 4
    world.remote.silent = False
    assert world.acquire(1, 2, 3, 4) == 4
    assert world.remote.discarded == []


def test_what_a_load_found_gone_is_asked_for_again(world: World) -> None:
    hit = world.cache.acquire([key(n) for n in (1, 2, 3)])
    world.remote.discard([key(2)])
    assert world.cache.load(hit, None).chunks == 1
    counters = world.cache.counters["remote"]
    assert (counters.promised_chunks, counters.read_chunks) == (3, 2)
    assert world.acquire(1, 2, 3) == 1
    world.remote.write([key(2)], None)
    assert world.acquire(1, 2, 3) == 3


def test_a_pinned_chunk_that_is_gone_is_not_promised_again(world: World) -> None:
    """Another request may be reading it: the Ledger keeps it until that has failed."""
    other = world.cache.acquire([key(n) for n in (1, 2, 3)])
    world.remote.discard([key(2)])
    world.now += FRESH_S
    assert world.acquire(1, 2, 3) == 1
    world.cache.release(other)
    world.cache.check()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_is_kept_in_mind_is_bounded_and_what_is_forgotten_stays(
    monkeypatch: pytest.MonkeyPatch, placement: Placement
) -> None:
    monkeypatch.setattr("cache_core.residency.MOST_REMEMBERED", 8)
    world = World(placement=placement)
    for n in range(0, 100, 2):
        world.cache.store([key(n), key(n + 1)], None)
        world.acquire(n, n + 1)
    assert len(world.cache) <= 9
    world.cache.check()
    stored = [key(n) for n in range(100) if n < 80]
    assert all(world.remote.contains(stored)), "what was only forgotten was removed"
    # And it is found when it is asked for.
    assert world.acquire(0, 1, 2) == 3
    others = [key(n) for n in range(200, 220)]
    world.remote.write(others, None)
    assert len(world.cache.acquire(others)) <= 8
    assert all(world.remote.contains(others))


def test_a_capacity_is_kept_by_removing() -> None:
    world = World(capacity=4)
    for n in range(10):
        world.cache.store([key(n)], None)
    assert len(world.remote) == 4 and len(world.remote.discarded) == 6


def test_a_hit_of_other_tiers_asks_nobody(world: World) -> None:
    world.cache.store([key(7)], None)
    world.now += FRESH_S
    hit = world.cache.acquire([key(7)])
    assert hit == Hit((key(7),), (0,))
    assert world.remote.asked == []
