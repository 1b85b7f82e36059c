"""Questions to a shared tier, off the scheduler's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from cache_core.adapters.vllm.scheduler.lookup import RemoteLookup
from cache_core.ledger import Ledger
from cache_core.plan import Plan
from cache_core.residency import FRESH_S, Residency
from cache_core.tiers import NullTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers
from tests.cache_core.memory_engine import key
from tests.cache_core.servers import eventually

KEYS = [key(n) for n in range(6)]


class Slow(NullTier):
    """A shared tier that answers when it may, as it is told to."""

    def __init__(self) -> None:
        super().__init__("remote", None)
        self.may = threading.Event()
        self.may.set()
        self.asked: list[list[bytes]] = []
        self.trouble: Callable[[list[Read]], list[Read]] = lambda answers: answers

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        self.asked.append(list(keys))
        assert self.may.wait(60)
        return self.trouble(super().read(keys, place))


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.tier = Slow()
        self.ledger = Ledger([2, 100])
        self.residency = Residency(self.ledger, 1, clock=lambda: self.now)
        self.remote_lookup = RemoteLookup(self.tier, lambda: self.now)

    def hit(self, request: str, ahead: bool = False) -> int:
        """Chunks of the request that are promised once the answer is in."""
        plans: list[Plan] = []

        def answered() -> bool:
            plan = self.remote_lookup.plan(request, KEYS, self.residency, ahead=ahead)
            plans.extend([] if plan is None else [plan])
            return plan is not None

        eventually(answered)
        assert plans[0].moves == ()
        self.ledger.check()
        return len(self.residency.sure(self.ledger.lookup(KEYS)))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.tier.may.set()
    world.remote_lookup.close()


def test_a_request_asks_once_for_what_nobody_knows_of(world: World) -> None:
    world.tier.write(KEYS[:3], None)
    world.tier.may.clear()
    assert world.remote_lookup.plan("a", KEYS, world.residency) is None
    world.tier.may.set()
    assert world.hit("a") == 3
    world.tier.write(KEYS, None)
    assert world.hit("a") == 3
    assert world.tier.asked == [KEYS]
    assert world.hit("b") == 6
    assert world.tier.asked[1:] == [KEYS[3:]]


def test_what_was_asked_ahead_is_asked_again_in_its_turn_only_after_a_long_wait(
    world: World,
) -> None:
    for waited, asked in ((FRESH_S / 2, 1), (FRESH_S, 2)):
        world.tier.asked.clear()
        assert world.hit(f"after {waited}", ahead=True) == 0
        world.now += waited
        for _ in range(3):
            assert world.hit(f"after {waited}") == 0
            assert len(world.tier.asked) == asked
            world.now += 2 * FRESH_S


def test_a_request_that_waited_for_long_asks_again_for_what_it_was_promised(world: World) -> None:
    world.tier.write(KEYS, None)
    assert world.hit("a") == 6
    world.now += FRESH_S
    world.tier.discard(KEYS[4:5])
    assert world.hit("a") == 4
    assert world.hit("a") == 4
    assert world.tier.asked == [KEYS, KEYS]


def silent(answers: list[Read]) -> list[Read]:
    return [Read.LATER] * len(answers)


def broken(answers: list[Read]) -> list[Read]:
    raise ZeroDivisionError("a defect")


@pytest.mark.parametrize("trouble", [silent, broken])
def test_a_tier_that_does_not_answer_is_asked_once_and_loses_nothing(
    world: World, trouble: Callable[[list[Read]], list[Read]]
) -> None:
    world.tier.write(KEYS, None)
    assert world.hit("a") == 6
    world.now += FRESH_S
    world.tier.trouble = trouble
    for _ in range(3):
        assert world.hit("b") == 0
    assert len(world.tier.asked) == 2
    world.tier.trouble = lambda answers: answers
    world.remote_lookup.forget("b")
    assert world.hit("b") == 6
    assert len(world.ledger) == 6


def test_a_tier_that_did_not_answer_ahead_is_asked_in_the_requests_turn(world: World) -> None:
    world.tier.write(KEYS, None)
    assert world.hit("a") == 6
    world.now += FRESH_S
    world.tier.trouble = silent
    assert world.hit("b", ahead=True) == 0
    world.tier.trouble = lambda answers: answers
    assert world.hit("b") == 0, "it may take its time"
    world.remote_lookup.forget("b")
    world.tier.trouble = silent
    assert world.hit("b", ahead=True) == 0
    world.tier.trouble = lambda answers: answers
    world.now += FRESH_S
    assert world.hit("b") == 6


def test_a_gap_ends_what_is_adopted(world: World) -> None:
    world.tier.write([*KEYS[:2], *KEYS[3:]], None)
    world.ledger.complete_store(world.ledger.prepare_store(KEYS[2:3]).moves, stored=True)
    world.ledger.forget(KEYS[2], 1)
    assert world.hit("a") == 6, "what another tier holds is no gap"
    world.tier.discard(KEYS[1:2])
    world.now += FRESH_S
    assert world.hit("b") == 1
