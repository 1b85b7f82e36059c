"""Throttled keeps its time to the digit, Chaos its odds and its seed; all let through the rest."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from cache_core.adapters.vllm.worker.open_tiers import RankTier
from cache_core.cache import TieredCache
from cache_core.tiers import DiskTier, MemoryTier, NullTier, Throttled, Tier
from cache_core.tiers.tier import Read
from cache_core.tiers.wrappers import CodedTier, Wrapper
from cache_core.transfer.codec import Codec
from tests.cache_core.chaos import Chaos
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK = LAYOUT.chunk_bytes


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def throttled(time: Time, tier: NullTier | MemoryTier | None = None) -> Throttled:
    return Throttled(
        NullTier("disk", None) if tier is None else tier,
        CHUNK,
        read_bytes_per_s=4 * CHUNK,
        write_bytes_per_s=2 * CHUNK,
        latency_s=0.125,
        clock=time.clock,
        sleep=time.sleep,
    )


def test_a_call_takes_the_time_of_its_chunks_and_one_latency() -> None:
    time = Time()
    tier = throttled(time)
    keys = [key(n) for n in range(8)]
    tier.write(keys, None)
    assert time.now == 100 + 4 + 0.125
    tier.read(keys, None)
    assert time.now == 104.125 + 2 + 0.125
    tier.read([key(99)], None)  # a miss moves nothing
    assert time.now == 106.375
    tier.contains(keys)
    tier.discard(keys)
    assert time.now == 106.375
    tier.read([], None)
    assert time.now == 106.5


def test_callers_share_the_device() -> None:
    """A call that was asked for while another one runs waits for it."""
    ends: list[float] = []
    time = Time()
    tier = throttled(time)
    tier.write([key(n) for n in range(4)], None)
    start = time.now

    def at_the_same_time(seconds: float) -> None:
        ends.append(time.now + seconds)

    tier = throttled(time, NullTier("disk", None))
    tier._sleep = at_the_same_time
    tier.write([key(n) for n in range(4)], None)
    tier.write([key(n) for n in range(4, 8)], None)
    tier.read([key(n) for n in range(8)], None)
    assert ends == [start + 2.125, start + 4.125, start + 2.125]


def test_reading_where_the_bytes_lie_is_reading() -> None:
    time = Time()
    tier = throttled(time, MemoryTier("disk", 4, CHUNK))
    engine = MemoryEngine(LAYOUT, 4)
    engine.fill([1, 2])
    tier.write([key(1), key(2)], engine.place(0, 2))
    began = time.now
    assert tier.place([key(1), key(2)]) is not None
    assert time.now == began + 0.5 + 0.125
    tier.close()


def test_no_rate_is_no_limit_and_zero_is_none() -> None:
    time = Time()
    tier = Throttled(NullTier("x", None), CHUNK, clock=time.clock, sleep=time.sleep)
    tier.write([key(1)], None)
    assert time.now == 100
    with pytest.raises(ValueError, match="for ever"):
        Throttled(NullTier("x", None), CHUNK, read_bytes_per_s=0)


def test_chaos_is_the_same_for_the_same_seed() -> None:
    def run(seed: int) -> list[Sequence[int]]:
        tier = Chaos(NullTier("x", None), seed, failed_reads=0.3, failed_writes=0.3, lost=0.1)
        keys = [key(n) for n in range(50)]
        return [tier.write(keys, None), tier.read(keys, None), tier.contains(keys)]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_chaos_keeps_its_odds_and_counts() -> None:
    tier = Chaos(NullTier("x", None), 0, failed_reads=0.25)
    keys = [key(n) for n in range(4000)]
    assert all(tier.write(keys, None))
    failed = tier.read(keys, None).count(Read.LATER)
    assert 850 < failed < 1150
    assert tier.injected == {"failed reads": failed, "failed writes": 0, "lost": 0, "slow": 0}
    assert all(tier.contains(keys)), "a failed read loses nothing"


def test_a_failed_overwrite_leaves_nothing_behind() -> None:
    inner = NullTier("x", 4)
    inner.write([key(1)], None)
    tier = Chaos(inner, 0, failed_writes=1.0)
    assert tier.write([key(1)], None) == [False]
    assert tier.contains([key(1)]) == [False] and len(tier) == 0


def test_what_is_lost_stays_lost_until_it_is_written_anew() -> None:
    inner = NullTier("x", 4)
    inner.write([key(1), key(2)], None)
    tier = Chaos(inner, 0, lost=1.0)
    assert tier.read([key(1)], None) == Read.of([False])
    assert tier.contains([key(1), key(2)]) == [False, True]
    assert len(tier) == 2  # the room is taken until it is discarded
    tier.write([key(1)], None)
    assert tier.contains([key(1)]) == [True]
    assert tier.read([key(1)], None) == Read.of([False])
    tier.discard([key(1)])
    assert len(tier) == 1


def test_slow_calls_are_slow() -> None:
    time = Time()
    tier = Chaos(NullTier("x", 4), 0, slow=1.0, slow_s=2.5, sleep=time.sleep)
    tier.write([key(1)], None)
    tier.read([key(1)], None)
    tier.contains([key(1)])
    assert time.now == 107.5 and tier.injected["slow"] == 3


def test_a_probability_is_one() -> None:
    with pytest.raises(ValueError, match=r"1\.5 is no probability"):
        Chaos(NullTier("x", 4), 0, lost=1.5)


def test_an_eio_is_a_miss_for_the_cache() -> None:
    tier = Chaos(NullTier("disk", 8), 0, failed_reads=1.0)
    cache = TieredCache(LAYOUT, [tier])
    keys = [key(n) for n in range(3)]
    cache.store(keys, None).result()
    assert cache.load(cache.acquire(keys), None).chunks == 0
    assert cache.counters["disk"].failures == 3
    cache.check()
    cache.close()


FP8 = cast(Codec, Codec.of_layout("fp8", LAYOUT))
WRAPPERS: dict[str, Callable[[Tier], Wrapper]] = {
    "throttled": lambda tier: Throttled(tier, CHUNK),
    "chaos": lambda tier: Chaos(tier, seed=0),
    "coded": lambda tier: CodedTier(tier, FP8),
    "rank": lambda tier: RankTier(tier, 3),
    "two": lambda tier: CodedTier(Throttled(tier, CHUNK), FP8),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def on_disk(folder: Path, wrap: Callable[[Tier], Wrapper]) -> Wrapper:
    size = FP8.coded_bytes if isinstance(wrap(NullTier("x", 1)), CodedTier) else CHUNK
    return wrap(DiskTier("disk", folder / "tier", 4 << 20, size))


@every_wrapper
def test_what_a_disk_tier_kept_is_hit_through_a_wrapper(
    wrap: Callable[[Tier], Wrapper], tmp_path: Path
) -> None:
    """As by --tier-latency."""
    keys = [key(n) for n in range(3)]
    engine = MemoryEngine(LAYOUT, 3)
    cache = TieredCache(LAYOUT, [on_disk(tmp_path, wrap)])
    engine.fill([1, 2, 3])
    cache.store(keys, engine.place(0, 3)).result()
    cache.close()
    again = on_disk(tmp_path, wrap)
    assert again.recovered() == keys
    cache = TieredCache(LAYOUT, [again])
    assert cache.load(cache.acquire(keys), engine.place(0, 3)).chunks == 3
    cache.check()
    cache.close()


@every_wrapper
def test_what_only_some_tiers_have_is_let_through(
    wrap: Callable[[Tier], Wrapper], tmp_path: Path
) -> None:
    tier = on_disk(tmp_path, wrap)
    assert tier.counters.syncs == 0 and tier.sync() is True
    assert tier.counters.syncs == 1
    assert tier.direct in (True, False)
    assert getattr(tier, "shared", False) is False
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tier.nonsense
    tier.close()


class Shared(NullTier):
    """Counts as a remote tier does: a copy each time."""

    shared = True
    asked = 0

    @property
    def counters(self) -> int:
        return self.asked

    def recovered(self) -> list[bytes]:
        return [key(1)]


@every_wrapper
def test_a_shared_tier_is_one_through_a_wrapper(wrap: Callable[[Tier], Wrapper]) -> None:
    within = Shared("remote", None)
    tier = wrap(within)
    assert tier.shared is True
    within.asked = 7
    assert tier.counters == 7
    # Of one rank's names others' can't be told.
    assert tier.recovered() == ([] if isinstance(tier, RankTier) else [key(1)])


@every_wrapper
def test_a_tier_that_keeps_nothing_recovers_nothing(wrap: Callable[[Tier], Wrapper]) -> None:
    assert wrap(NullTier("x", 4)).recovered() == []


def test_ranks_do_not_meet_in_one_tier() -> None:
    within = NullTier("x", None)
    ranks = [RankTier(within, rank) for rank in range(3)]
    assert ranks[0].write([key(1)], None) == [True]
    assert [rank.contains([key(1)]) for rank in ranks] == [[True], [False], [False]]
    ranks[1].discard([key(1)])
    assert ranks[0].read([key(1)], None) == [Read.HERE]


def test_a_wrapper_without_its_tier_has_no_attributes() -> None:
    """As while it is unpickled: no endless search for the tier within."""
    with pytest.raises(AttributeError, match="_tier"):
        _ = Wrapper.__new__(Wrapper).counters
    assert len(pickle.loads(pickle.dumps(Wrapper(NullTier("x", 4))))) == 0
