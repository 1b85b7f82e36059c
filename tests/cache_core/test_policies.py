"""Every policy under the Ledger against a brute-force model of its definition."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.ledger import PLACEMENTS, Ledger, Placement
from cache_core.policies import POLICIES, PolicyMaker, belady
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
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
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
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
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
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
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
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
        assert {parents[k] for k in ledger.keys(0) if k in parents} <= set(ledger.keys(0))


def test_unbounded_ignores_the_capacity() -> None:
    ledger = Ledger([1, 2], POLICIES["unbounded"])
    assert ledger.capacities == (None, None)
    for i in range(9):
        ledger.complete_store(ledger.prepare_store([key(i), key(100 + i)]).moves, stored=True)
    assert ledger.count(0) == ledger.count(1) == 18
    assert ledger.evictions == [0, 0]


def test_lfu_forgets_old_fame() -> None:
    ledger = Ledger([2], POLICIES["lfu-aging"])
    for i in [0] * 5 + list(range(1, 20)):
        ledger.complete_store(ledger.prepare_store([key(i)]).moves, stored=True)
    assert not ledger.holds(key(0), 0)


def test_gdsf_keeps_what_is_dear_to_recompute() -> None:
    """Depth 9 and a lone chunk, each used once: the deep one stays, though it is older."""
    ledger = Ledger([11], POLICIES["gdsf"])
    deep = [key(i) for i in range(10)]
    for keys in (deep, [key(100)], [key(200)]):
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
    assert len(ledger.lookup(deep)) == 10
    assert not ledger.holds(key(100), 0)


def test_gdsf_follows_a_content_key_to_its_new_place() -> None:
    """Chunk 1 came after chunk 0 and now comes after chunk 2: 0 may go, 2 may not."""
    ledger = Ledger([3], POLICIES["gdsf"])
    for keys in [[key(0), key(1)]] * 9 + [[key(2), key(1)]]:
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
    assert ledger.keys(0) == [key(0), key(1), key(2)]


def test_gdsf_evicts_from_a_circle_of_content_keys() -> None:
    """A tier can be told of parents at different times, which can close a circle."""
    ledger = Ledger([2], POLICIES["gdsf"])
    ledger.complete_store(ledger.prepare_store([key(3), key(1)]).moves, stored=True)
    assert ledger.forget(key(3), 0)
    # 2 behind 1, 3 behind 2, and 1 is still known to be behind 3.
    assert ledger.register([key(1), key(2), key(3)], 0).moves == ()
    ledger.check()
    assert ledger.keys(0) == [key(1), key(3)]


STEPS_ALIKE = [(name, placement) for name in [*POLICIES, "belady"] for placement in PLACEMENTS]


@pytest.mark.parametrize(("name", "placement"), STEPS_ALIKE)
@pytest.mark.parametrize("spare", ["pinned", "pending"])
def test_evictions_cost_no_more_where_more_is_spared(
    name: str, placement: Placement, spare: str
) -> None:
    """Searches come upon a spared chunk once, not once for each victim. Counted in steps."""
    few, many = (evictions(name, placement, spare, spared) for spared in (100, 2000))
    assert many <= few + 2 * 2000


def evictions(name: str, placement: Placement, spare: str, spared: int) -> int:
    """Steps of twenty admissions of ten chunks, each of which makes ten others leave."""
    old, new = [key(i) for i in range(spared)], [key(10_000 + i) for i in range(400)]
    prompts = [old, *(new[i : i + 10] for i in range(0, 400, 10))]
    maker = belady(prompts) if name == "belady" else POLICIES[name]
    ledger = Ledger([spared + 200, 100], maker, placement)
    plan = ledger.prepare_store(old)
    if spare == "pinned":
        ledger.complete_store(plan.moves, stored=True)
        ledger.pin(ledger.lookup(old))
    for keys in prompts[1:21]:
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
    before = ledger.steps
    for keys in prompts[21:]:
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
    ledger.check()
    return ledger.steps - before


@pytest.mark.parametrize("name", list(MODELS))
def test_released_in_any_order_a_run_of_chunks_costs_little_more_than_they_are(name: str) -> None:
    count = 1024
    old = [key(i) for i in range(count)]
    ledger = Ledger([count + 1], POLICIES[name])
    ledger.complete_store(ledger.prepare_store(old).moves, stored=True)
    hits = [ledger.pin(ledger.held([k])) for k in old]
    for i in range(3):  # comes upon all that are pinned
        ledger.complete_store(ledger.prepare_store([key(9000 + i)]).moves, stored=True)
    random.Random(1).shuffle(hits)
    before = ledger.steps
    for hit in hits:
        ledger.unpin(hit)
    assert ledger.steps - before <= count * count.bit_length()
    ledger.check()


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="policy 'magic' is not known"):
        Ledger([1], PolicyMaker("magic"))
    with pytest.raises(ValueError, match="policy 'belady' is not known"):  # without a future
        Ledger([1], PolicyMaker("belady"))
