"""What a tier holds from an earlier process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cache_core.cache import TieredCache
from cache_core.ledger import PLACEMENTS, Ledger, Placement
from cache_core.policies import POLICIES
from cache_core.tiers import NullTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from tests.cache_core.memory_engine import LAYOUT, key


def keys(*numbers: int) -> list[bytes]:
    return [key(number) for number in numbers]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_restored_chunks_can_be_hit_and_leave_in_their_order(placement: Placement) -> None:
    ledger = Ledger([2, 4], placement=placement)
    assert ledger.restore(1, keys(1, 2, 3)) == []
    ledger.check()
    hit = ledger.lookup(keys(1, 2, 3, 4))
    assert list(hit.keys) == keys(1, 2, 3) and hit.tiers == (1, 1, 1)
    assert ledger.keys(1) == keys(1, 2, 3)
    assert ledger.evictions == [0, 0]


def test_more_than_the_capacity_is_given_back_oldest_first() -> None:
    ledger = Ledger([3])
    assert ledger.restore(0, keys(1, 2, 3, 4, 5)) == keys(1, 2)
    ledger.check()
    assert ledger.keys(0) == keys(3, 4, 5)
    assert ledger.evictions == [0]


@pytest.mark.parametrize("name", ["lru", "lfu-aging", "gdsf", "s3-fifo", "arc"])
def test_a_tier_without_room_gives_all_back(name: str) -> None:
    """As a disk does whose budget has become smaller than a chunk."""
    ledger = Ledger([0], POLICIES[name])
    assert ledger.restore(0, keys(1, 2, 3)) == keys(1, 2, 3)
    ledger.check()
    assert len(ledger) == 0


def test_an_exclusive_stack_keeps_one_copy_an_inclusive_one_both() -> None:
    exclusive, inclusive = Ledger([4, 4], placement="write_on_eviction"), Ledger([4, 4])
    for ledger, surplus in ((exclusive, keys(2)), (inclusive, [])):
        assert ledger.restore(0, keys(1, 2)) == []
        assert ledger.restore(1, keys(2, 3)) == surplus
        ledger.check()
        assert ledger.lookup(keys(1, 2, 3)).tiers == (0, 0, 1)


class Lasting(NullTier):
    """Has chunks from an earlier process."""

    def recovered(self) -> list[bytes]:
        return keys(1, 2, 3, 4)

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return Read.of(self.contains(keys))


def test_a_cache_starts_with_what_its_tiers_have() -> None:
    tier = Lasting("disk", 3)
    tier.write(keys(2, 3, 4), None)
    cache = TieredCache(LAYOUT, [NullTier("cpu", 2), tier])
    cache.check()
    assert len(cache) == 3
    assert len(cache.lookup(keys(2, 3, 4))) == 3 and not len(cache.lookup(keys(1)))
    assert cache.load(cache.acquire(keys(2, 3)), None).by_tier == {"disk": 2}
    cache.close()
