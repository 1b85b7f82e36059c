"""Every policy under the Ledger against a brute-force model of its definition."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.ledger import Ledger
from cache_core.policies.belady import belady
from cache_core.policies.ranking import Ranking
from cache_core.policy import POLICIES, Use, make_policy
from tests.cache_core.policy_models import (
    AdaptiveModel,
    AgingModel,
    Model,
    RecencyModel,
    ThreeQueuesModel,
    best_hits,
)

MODELS: dict[str, Callable[[int], Model]] = {
    "lru": RecencyModel,
    "lfu-aging": AgingModel,
    "gdsf": lambda capacity: AgingModel(capacity, leaves=True),
    "s3-fifo": ThreeQueuesModel,
    "arc": AdaptiveModel,
}


def key(i: int) -> bytes:
    return i.to_bytes(32, "little")


def path(document: int, length: int, branch: int, extra: int) -> list[bytes]:
    """A path in a small tree of documents, so that requests share prefixes."""
    stem = [key(document * 1000 + i) for i in range(length)]
    leaf = document * 1000 + 100 * (branch + 1) + length * 10
    return stem + [key(leaf + i) for i in range(extra)]


paths = st.builds(path, st.integers(0, 3), st.integers(1, 5), st.integers(0, 2), st.integers(0, 3))
single = st.integers(0, 12).map(lambda i: [key(i)])
sequences = st.one_of(st.lists(paths, max_size=40), st.lists(single, max_size=80))


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=300)
@given(requests=sequences, capacity=st.one_of(st.integers(1, 8), st.integers(9, 32)))
def test_holds_what_the_definition_says(
    name: str, requests: list[list[bytes]], capacity: int
) -> None:
    ledger = Ledger([capacity], POLICIES[name])
    model = MODELS[name](capacity)
    for keys in requests:
        ledger.settle(ledger.admit(keys).moves, stored=True)
        model.request(keys)
        ledger.check()
        assert set(ledger.keys(0)) == model.held()
        assert ledger.keys(0) == order(model)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("seed", range(4))
def test_holds_what_the_definition_says_over_a_long_run(name: str, seed: int) -> None:
    """Loops, scans, pairs and favourites in turns: ghosts and counts come to their limits."""
    draw = random.Random(seed)
    ledger = Ledger([30], POLICIES[name])
    model = MODELS[name](30)
    for step in range(1500):
        favourite = int(draw.paretovariate(0.7)) % 60
        phases = (favourite, step % 45, 1000 + step, 2000 + step // 2 % 60, favourite)
        document = phases[step // 50 % 5]
        keys = path(document, 1 + (seed % 2) * draw.randrange(3), 0, 0)
        ledger.settle(ledger.admit(keys).moves, stored=True)
        model.request(keys)
        assert set(ledger.keys(0)) == model.held()
        assert step % 100 or ledger.keys(0) == order(model)


def order(model: Model) -> list[bytes]:
    later = copy.deepcopy(model)
    return [later.evict() for _ in model.held()]


# A tree so small that every way of evicting can be tried: two documents that branch once.
small_paths = st.sampled_from(
    [path(0, 1, 0, 0), path(0, 2, 0, 0), path(0, 1, 0, 2), path(1, 1, 0, 1)]
)


@settings(max_examples=150)
@given(requests=st.lists(small_paths, max_size=7), capacity=st.integers(1, 4))
def test_belady_hits_as_much_as_any_eviction_can(
    requests: list[list[bytes]], capacity: int
) -> None:
    assert hits(Ledger([capacity], belady(requests)), requests) == best_hits(requests, capacity)


@pytest.mark.parametrize("name", list(POLICIES))
@settings(max_examples=60)
@given(requests=st.lists(paths, max_size=40), capacity=st.integers(1, 20))
def test_none_beats_belady_or_unbounded(
    name: str, requests: list[list[bytes]], capacity: int
) -> None:
    ledger = Ledger([capacity], POLICIES[name])
    unbounded = hits(Ledger([capacity], POLICIES["unbounded"]), requests)
    best = hits(Ledger([capacity], belady(requests)), requests)
    assert best <= unbounded
    assert hits(ledger, requests) <= (unbounded if name == "unbounded" else best)


def hits(ledger: Ledger, requests: list[list[bytes]]) -> int:
    total = 0
    for keys in requests:
        total += len(ledger.lookup(keys))
        ledger.settle(ledger.admit(keys).moves, stored=True)
    return total


# These never let a chunk outlive the one before it. S3-FIFO and ARC can: their papers know no
# prefixes.
@pytest.mark.parametrize("name", ["lru", "lfu-aging", "gdsf", "belady"])
@settings(max_examples=150)
@given(requests=st.lists(paths, max_size=40), capacity=st.integers(1, 20))
def test_leaves_no_orphans(name: str, requests: list[list[bytes]], capacity: int) -> None:
    maker = belady(requests) if name == "belady" else POLICIES[name]
    ledger = Ledger([capacity], maker)
    parents: dict[bytes, bytes] = {}
    for keys in requests:
        parents.update(zip(keys[1:], keys, strict=False))
        ledger.settle(ledger.admit(keys).moves, stored=True)
        assert {parents[k] for k in ledger.keys(0) if k in parents} <= set(ledger.keys(0))


def test_unbounded_ignores_the_capacity() -> None:
    ledger = Ledger([1, 2], POLICIES["unbounded"])
    assert ledger.capacities == (None, None)
    for i in range(9):
        ledger.settle(ledger.admit([key(i), key(100 + i)]).moves, stored=True)
    assert ledger.count(0) == ledger.count(1) == 18
    assert ledger.evictions == [0, 0]


def test_lfu_forgets_old_fame() -> None:
    ledger = Ledger([2], POLICIES["lfu-aging"])
    for i in [0] * 5 + list(range(1, 20)):
        ledger.settle(ledger.admit([key(i)]).moves, stored=True)
    assert not ledger.holds(key(0), 0)


def test_gdsf_keeps_what_is_dear_to_recompute() -> None:
    """Depth 9 and a lone chunk, each used once: the deep one stays, though it is older."""
    ledger = Ledger([11], POLICIES["gdsf"])
    deep = [key(i) for i in range(10)]
    for keys in (deep, [key(100)], [key(200)]):
        ledger.settle(ledger.admit(keys).moves, stored=True)
    assert len(ledger.lookup(deep)) == 10
    assert not ledger.holds(key(100), 0)


def test_gdsf_follows_a_content_key_to_its_new_place() -> None:
    """Chunk 1 came after chunk 0 and now comes after chunk 2: 0 may go, 2 may not."""
    policy = make_policy("gdsf", 3)
    policy.touch(key(1), Use(parent=key(0), depth=1, times=9))
    policy.touch(key(0), Use(times=9))
    policy.touch(key(1), Use(parent=key(2), depth=1, times=10))
    policy.touch(key(2), Use())
    assert policy.victim(lambda k: False) == key(0)
    assert list(policy) == [key(0), key(1), key(2)]


def test_gdsf_evicts_from_a_circle_of_content_keys() -> None:
    """A tier below can be told of parents at different times, which can close a circle."""
    policy = make_policy("gdsf", 2)
    policy.touch(key(1), Use(parent=key(2)))
    policy.touch(key(2), Use(parent=key(1)))
    assert policy.victim(lambda k: k == key(1)) == key(2)
    assert list(policy) == [key(1), key(2)]
    policy.evict(key(2))
    assert list(policy) == [key(1)]


@pytest.mark.parametrize("name", list(POLICIES))
def test_spared_keys_are_no_victims(name: str) -> None:
    policy = make_policy(name, 3)
    for i in range(3):
        policy.touch(key(i), Use())
    assert policy.victim(lambda k: k != key(1)) == key(1)
    assert policy.victim(lambda k: True) is None
    assert {*policy} == {key(0), key(1), key(2)}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.booleans()), max_size=300))
def test_ranking_is_a_sorted_set(steps: list[tuple[int, int, bool]]) -> None:
    ranking = Ranking()
    model: dict[bytes, tuple[float, ...]] = {}
    for tick, (i, rank, put) in enumerate(steps):
        if put:
            ranking.put(key(i), (rank, tick))
            model[key(i)] = (rank, tick)
        else:
            assert ranking.remove(key(i)) == model.pop(key(i), None)
        ordered = sorted(model, key=model.__getitem__)
        assert list(ranking) == ordered
        assert ranking.lowest(lambda k: False) == (ordered[0] if ordered else None)
        odd = [k for k in ordered if k[0] % 2]
        assert ranking.lowest(lambda k: k[0] % 2 == 0) == (odd[0] if odd else None)


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of lru, lfu-aging, gdsf, s3-fifo, arc"):
        make_policy("magic")
