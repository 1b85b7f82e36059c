"""The Ledger against its model, chunk by chunk: every policy and placement, with pins, late and
failed writes, admissions, and chunks that are lost, adopted, restored and cleared."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.ledger import PLACEMENTS, Hit, Ledger, Move, Placement
from cache_core.policies import POLICIES, Admission, PolicyMaker, SecondTouch, belady
from tests.cache_core.ledger_model import LedgerModel
from tests.cache_core.order_models import order_model
from tests.cache_core.test_ledger import key, path

# Prefixes of a small tree of documents, or contents that come in any order and more than once.
prefixes = st.builds(
    path, st.integers(0, 3), st.integers(1, 6), st.integers(0, 2), st.integers(0, 3)
)
contents = st.lists(st.integers(0, 13).map(key), min_size=1, max_size=6)
verbs = ("admit", "part", "touch", "adopt", "pin", "unpin", "store", "fail", "forget", "clear")
often = st.sampled_from(("admit", "admit", "admit", "store", "store", "pin", "unpin", *verbs))


def steps(prompts: st.SearchStrategy[list[bytes]]) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.tuples(often, prompts, st.integers(0, 99)), max_size=60)


Step = tuple[str, list[bytes], int]
capacities = st.lists(st.one_of(st.none(), st.integers(0, 14)), min_size=1, max_size=3)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", [*POLICIES, "belady"])
@settings(max_examples=100)
@given(
    st.one_of(steps(prefixes), steps(contents)),
    capacities,
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(contents, max_size=3),
)
def test_answers_what_the_model_answers(
    name: str,
    placement: Placement,
    history: list[Step],
    sizes: list[int | None],
    gates: list[bool],
    earlier: list[list[bytes]],
) -> None:
    pair = Pair(name, placement, [keys for _, keys, _ in history], sizes, gates)
    for tier, keys in enumerate(earlier[: len(sizes)]):
        pair.restore(tier, keys)
    for verb, keys, number in history:
        pair.look(keys)
        pair.take(verb, keys, number)
        pair.compare()


class Pair:
    """A Ledger and its model, which are told the same."""

    def __init__(
        self,
        name: str,
        placement: Placement,
        requests: Sequence[Sequence[bytes]],
        sizes: list[int | None],
        gates: list[bool],
    ) -> None:
        def admissions() -> list[Admission | None]:
            return [SecondTouch(5) if gate else None for gate in gates[: len(sizes)]]

        maker: PolicyMaker = belady(requests) if name == "belady" else POLICIES[name]
        self.ledger = Ledger(sizes, maker, placement, admissions())
        order = order_model(name, requests)
        bounds = self.ledger.capacities
        exclusive = placement == "write_on_eviction"
        orders = [order(capacity) for capacity in bounds]
        self.model = LedgerModel(bounds, orders, exclusive, admissions())
        self.ledger.follow()
        self.held: set[tuple[bytes, int]] = set()
        self.pending: set[tuple[bytes, int]] = set()
        self.hits: list[Hit] = []
        self.moves: list[Sequence[Move]] = []

    def restore(self, tier: int, keys: list[bytes]) -> None:
        assert self.ledger.restore(tier, keys) == self.model.restore(tier, keys)
        self.compare()

    def look(self, keys: list[bytes]) -> None:
        hit = self.ledger.lookup(keys)
        assert list(zip(hit.keys, hit.tiers, strict=True)) == self.model.lookup(keys)
        held = self.ledger.held(keys)
        known = [pair for key in keys for pair in self.model.lookup([key])]
        assert list(zip(held.keys, held.tiers, strict=True)) == known
        assert self.ledger.pending(keys) == self.model.waits(keys)

    def take(self, verb: str, keys: list[bytes], number: int) -> None:
        ledger, model, last = self.ledger, self.model, len(self.model.orders) - 1
        if verb == "admit":
            counted = number % len(keys) if number % 4 == 0 else 0
            moves = ledger.prepare_store(keys, counted).moves
            assert list(moves) == model.prepare_store(keys, counted)
            self.moves.append(moves)
        elif verb == "part":
            depth = number % len(keys)
            parent = keys[depth - 1] if depth else None
            moves = ledger.prepare_store(keys[depth:], depth, parent=parent, depth=depth).moves
            assert list(moves) == model.prepare_store(keys[depth:], depth, parent, depth)
            self.moves.append(moves)
        elif verb == "touch":
            ledger.touch(keys, number % 3)
            model.touch(keys, number % 3)
        elif verb == "adopt":
            assert list(ledger.register(keys, last).moves) == model.register(keys, last)
        elif verb == "pin":
            self.hits.append(ledger.pin(ledger.lookup(keys)))
            model.pins.append(frozenset(self.hits[-1].keys))
        elif verb == "unpin" and self.hits:
            hit = self.hits.pop(number % len(self.hits))
            ledger.unpin(hit)
            model.pins.remove(frozenset(hit.keys))
        elif verb in ("store", "fail") and self.moves:
            done = self.moves.pop(number % len(self.moves))
            ledger.complete_store(done, stored=verb == "store")
            model.complete_store(done, stored=verb == "store")
        elif verb == "forget":
            hits = self.hits or [ledger.lookup(keys)]
            for lost, tier in zip(hits[0].keys[-1:], hits[0].tiers[-1:], strict=True):
                assert ledger.forget(lost, tier) == model.forget(lost, tier)
        elif verb == "clear":
            assert ledger.clear() == model.clear()

    def compare(self) -> None:
        ledger, model = self.ledger, self.model
        ledger.check()
        assert len(ledger) == len({key for key, _ in model.held})
        for tier, order in enumerate(model.orders):
            assert ledger.keys(tier) == list(order)
            assert ledger.count(tier) == len(list(order))
        assert ledger.evictions == model.evictions
        assert ledger.refusals == model.refusals
        pending = [tier for _, tier in model.pending]
        assert ledger.arriving == [pending.count(tier) for tier in range(len(model.orders))]
        assert ledger.pinned == len({key for pin in model.pins for key in pin})
        noted = set(ledger.changed())
        ended = self.pending - model.pending
        assert noted >= {key for key, _ in (model.held ^ self.held) | ended}
        self.held, self.pending = set(model.held), set(model.pending)
        keys = sorted(noted | {key for key, _ in model.held | model.pending})
        owned = (model.held, model.pending)
        bits = [tuple(sum(1 << t for t in model.tiers_of(k, of)) for of in owned) for k in keys]
        assert ledger.where(keys) == bits
