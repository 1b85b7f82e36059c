"""One pass against replays: a tiny LRU, the Ledger, and whole caches of tiers without bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core import _native
from cache_core.cache import TieredCache
from cache_core.layout import KVLayout
from cache_core.plan import PLACEMENTS, Placement
from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import TierCurves, curve_error, hit_curves
from cache_core.sizing.replay import hit_rates, replay_ledger
from cache_core.tiers.memory import NullTier

# Chunks of a small tree: prefix-closed. And any order, with a chunk several times in a request.
tree = st.lists(
    st.builds(
        lambda document, length, turn, extra: [
            *(document * 10 + i for i in range(length)),
            *(100 + ((document * 7 + length) * 4 + turn) * 4 + i for i in range(extra)),
        ],
        st.integers(0, 4),
        st.integers(0, 6),
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=30,
)
loose = st.lists(st.lists(st.integers(-4, 9), max_size=8), min_size=1, max_size=30)
traces = tree | loose
stacks = st.lists(st.none() | st.integers(0, 12), min_size=1, max_size=3)
placements = st.sampled_from(PLACEMENTS)


def lru_hits(requests: Sequence[Sequence[Hashable]], capacity: int) -> tuple[int, int]:
    """Chunks hit as a prefix and at any position, by a cache that does what it says."""
    order: OrderedDict[Hashable, None] = OrderedDict()
    prefix = anywhere = 0
    for chunks in requests:
        held = [chunk in order for chunk in chunks]
        anywhere += sum(held)
        prefix += held.index(False) if False in held else len(held)
        for chunk in reversed(dict.fromkeys(chunks)):
            order[chunk] = None
            order.move_to_end(chunk)
        while len(order) > capacity:
            order.popitem(last=False)
    return prefix, anywhere


def cache_hits(
    references: AccessTrace, stack: list[int | None], placement: Placement
) -> list[list[int]]:
    """Chunks of each request that each tier of a real cache served."""
    tiers = [NullTier(f"tier{i}", capacity) for i, capacity in enumerate(stack)]
    layout = KVLayout(1, 1, 1, "int8", references.chunk_tokens)
    cache = TieredCache(layout, tiers, placement=placement, synchronous=True)
    served = []
    for keys in references.ledger_keys():
        loaded = cache.load(cache.acquire(keys), None)
        served.append([loaded.by_tier.get(tier.name, 0) for tier in tiers])
        cache.store(keys, None)
    cache.check()
    cache.close()
    return served


@settings(max_examples=400)
@given(traces, st.integers(1, 4))
def test_curves_equal_a_replay_at_every_capacity(
    requests: list[list[int]], chunk_tokens: int
) -> None:
    references = AccessTrace.of(requests, chunk_tokens)
    curves = hit_curves(references)
    for capacity in range(references.distinct + 3):
        prefix, anywhere = lru_hits(requests, capacity)
        assert curves["prefix"].hit_tokens(capacity) == prefix * chunk_tokens
        assert curves["any_position"].hit_tokens(capacity) == anywhere * chunk_tokens
    assert curves["prefix"].hit_tokens(None) == prefix * chunk_tokens
    assert curves["prefix"].distinct == references.distinct


@settings(max_examples=400)
@given(traces, stacks, placements)
def test_every_tier_serves_what_a_cache_of_tiers_serves(
    requests: list[list[int]], stack: list[int | None], placement: Placement
) -> None:
    references = AccessTrace.of(requests)
    [found] = TierCurves(references).hits([stack], placement)
    assert found.tolist() == cache_hits(references, stack, placement)
    assert found.tolist() == replay_ledger(references, stack, placement=placement).hits.tolist()


@given(tree, st.integers(1, 4), st.integers(0, 8))
def test_longer_chunks_are_those_of_the_tokens(
    requests: list[list[int]], group: int, capacity: int
) -> None:
    # In a tree a chunk names its prefix; as contents, the same chunks make the same prefixes.
    longer = [
        [tuple(chunks[: end + group]) for end in range(0, len(chunks) // group * group, group)]
        for chunks in requests
    ]
    expected = lru_hits(longer, capacity)[0] * group
    for naming in ("prefix", "content"):
        merged = AccessTrace.of(requests, 1, naming).merged(group)
        assert merged.tokens == sum(map(len, requests))
        assert hit_curves(merged)["prefix"].hit_tokens(capacity) == expected


@given(loose, st.integers(1, 3), st.integers(0, 8))
def test_contents_hit_at_any_position_and_by_prefix(
    requests: list[list[int]], group: int, capacity: int
) -> None:
    curves = hit_curves(AccessTrace.of(requests, naming="content").merged(group))
    alone = [
        [tuple(c[i : i + group]) for i in range(0, len(c) // group * group, group)]
        for c in requests
    ]
    chained = [[tuple(row[: i + 1]) for i in range(len(row))] for row in alone]
    assert curves["any_position"].hit_tokens(capacity) == lru_hits(alone, capacity)[1] * group
    assert curves["prefix"].hit_tokens(capacity) == lru_hits(chained, capacity)[0] * group


def test_the_last_chunk_counts_as_far_as_the_prompt_goes() -> None:
    references = AccessTrace.of([[1, 2], [1, 2], [1, 2, 3]], 10, prompt_tokens=[15, 15, 30])
    curve = hit_curves(references)["prefix"]
    assert [curve.hit_tokens(c) for c in (0, 1, 2, None)] == [0, 20, 35, 35]
    assert curve.hit_rate(2) == curve.ceiling == 35 / 60
    assert [curve.capacity_for(r) for r in (0, 0.3, 0.5, 0.9)] == [0, 1, 2, None]


def test_a_long_trace_outgrows_every_table() -> None:
    """Places run out and chunks move together many times over; a replay that is quick enough for
    so many chunks counts the same at a few capacities."""
    random = np.random.default_rng(5)
    starts = random.zipf(1.2, 3000) % 4000
    requests = [
        list(range(s * 40, s * 40 + n))
        for s, n in zip(starts, random.integers(1, 40, 3000), strict=True)
    ]
    references = AccessTrace.of(requests)
    curves = hit_curves(references)
    for capacity in (1, 60, 1000, 5000, 20_000):
        prefix, anywhere = lru_hits(requests, capacity)
        assert curves["prefix"].hit_tokens(capacity) == prefix
        assert curves["any_position"].hit_tokens(capacity) == anywhere


def test_a_sample_comes_near() -> None:
    """Each prompt starts with one chunk that all share: the case that needs the correction."""
    random = np.random.default_rng(1)
    starts = random.zipf(1.3, 20_000) % 3000
    references = AccessTrace.of([[0, *range(1 + s * 10, 11 + s * 10)] for s in starts])
    exact = hit_curves(references)
    for seed in range(4):
        sampled = hit_curves(references, sample_above=len(references.ids) // 5, seed=seed)
        for kind, curve in sampled.items():
            assert curve.rate < 0.21
            assert curve_error(curve, exact[kind])[0] < 0.02
    assert curve_error(exact["prefix"], exact["prefix"]) == (0.0, 0.0)


def test_a_sampled_replay_comes_near() -> None:
    random = np.random.default_rng(2)
    starts = random.zipf(1.3, 3000) % 1000
    references = AccessTrace.of([[0, *range(1 + s * 10, 11 + s * 10)] for s in starts])
    for policy in ("lru", "belady", "s3-fifo"):
        exact = replay_ledger(references, [1000], policy).hit_rate
        assert (
            abs(replay_ledger(references, [1000], policy, rate=0.3, seed=3).hit_rate - exact) < 0.05
        )


@given(tree, st.integers(1, 12))
def test_belady_bounds_lru_and_the_ceiling_bounds_both(
    requests: list[list[int]], capacity: int
) -> None:
    references = AccessTrace.of(requests)
    curve = hit_curves(references, ["prefix"])["prefix"]
    assert replay_ledger(references, [capacity]).hit_rate == curve.hit_rate(capacity)
    assert replay_ledger(references, [capacity], "unbounded").hit_rate == curve.ceiling
    rates = hit_rates(references, [capacity, 2 * capacity])
    for lru, belady, ceiling in zip(*rates.values(), strict=True):
        assert lru <= belady <= ceiling


@pytest.mark.parametrize(
    ("ids", "offsets", "says"),
    [([1, 2], [0, 1], "end at 1"), ([1], [0, 2, 1], "offsets\\[2\\]"), ([], [], "empty")],
)
def test_offsets_that_do_not_fit_are_refused(ids: list[int], offsets: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _native.stack_distances(np.array(ids, np.int64), np.array(offsets, np.int64))


def test_what_is_not_possible_is_said() -> None:
    references = AccessTrace.of([[1]])
    with pytest.raises(ValueError, match="known; use one of lru"):
        replay_ledger(references, [1], "newest")
    with pytest.raises(ValueError, match="negative"):
        TierCurves(references).hits([[-1]])
    with pytest.raises(ValueError, match="same number"):
        TierCurves(references).hits([[1], [1, 2]])
    with pytest.raises(ValueError, match="sampling rate"):
        references.sampled(0)
    assert hit_curves(AccessTrace.of([]))["prefix"].hit_rate(None) == 0
