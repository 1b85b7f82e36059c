"""Every policy under the Ledger against a brute-force model of its definition."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.ledger import Ledger
from cache_core.policy import POLICIES, belady
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
