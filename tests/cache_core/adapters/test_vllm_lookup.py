"""What the connector promises of tiers that could not be read lately."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.scheduler.lookup import TierLookup
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.ledger import Ledger
from tests.cache_core.memory_engine import key
from tests.processes import run_alone

KEYS = [key(n) for n in range(3)]
SIZE = 16


class World:
    """A disk tier that holds chunks, while more are on their way there, and a clock."""

    def __init__(self, held: int = 3, pending: int = 0) -> None:
        self.now = 0.0
        self.ledger = Ledger([8])
        self.ledger.complete_store(self.ledger.prepare_store(KEYS[:held]).moves, True)
        self.moves = self.ledger.prepare_store(KEYS[: held + pending]).moves
        options = ConnectorOptions.parse({"cpu_size": 0, "disk_size": 1 << 20, "disk_path": "x"})
        self.lookup = TierLookup(
            options, self.ledger, None, SIZE, lambda plan: None, lambda: self.now
        )

    def request(self) -> RequestState:
        ask = SimpleNamespace(request_id=str(object()))
        return RequestState(ask, cast(Any, SimpleNamespace(chunk_tokens=SIZE)), keys=list(KEYS))

    def found(self, request: RequestState, computed: int = 0) -> int | None:
        """Chunks that can be loaded; None if the request has to wait."""
        return len(request.found) if self.lookup.find(request, computed) else None

    def loads(self, later: bool) -> list[int]:
        """The disk was read; ``later``: in vain."""
        return self.lookup.suspended(cast(Any, SimpleNamespace(asked=((0, later),))))


def test_a_suspended_tier_is_not_promised_until_its_pause_is_over() -> None:
    world = World()
    assert world.found(world.request()) == 3
    assert world.loads(later=True) == [0]
    assert world.found(world.request()) == 0
    world.now += 2
    first, second = world.request(), world.request()
    assert world.found(first) == 3
    assert world.found(second) == 0, "one request tries it, not all"
    assert world.loads(later=False) == []
    assert world.found(second) == 3


def test_a_request_that_is_asked_for_again_keeps_its_try() -> None:
    """vLLM asks again as long as it has no blocks for what was promised."""
    world = World()
    world.loads(later=True)
    world.now += 2
    request = world.request()
    for _ in range(5):
        assert world.found(request) == 3


def test_a_request_waits_for_what_continues_its_hit_and_no_longer_than_it_may() -> None:
    world = World(held=1, pending=1)
    request = world.request()
    assert world.found(request) is None
    world.now += 0.9
    assert world.found(request) is None
    world.now += 0.2
    assert world.found(request) == 1, "it has waited for long enough"
    assert world.found(request) == 1


def test_what_is_stored_ends_the_wait() -> None:
    world = World(held=1, pending=1)
    request = world.request()
    assert world.found(request) is None
    world.ledger.complete_store(world.moves, True)
    assert world.found(request) == 2
    assert request.waiting_since is None


def test_nobody_waits_for_what_vllm_has_itself() -> None:
    world = World(held=0, pending=2)
    request = world.request()
    assert world.found(request) is None
    assert world.found(request, computed=2 * SIZE) == 0
    # Half a chunk is none.
    assert world.found(world.request(), computed=2 * SIZE - 1) is None


def test_what_is_behind_vllms_own_prefix_needs_no_prefix_of_ours() -> None:
    world = World(held=0)
    world.ledger.complete_store(world.ledger.prepare_store(KEYS[1:]).moves, True)
    assert world.found(world.request()) == 0
    assert world.found(world.request(), computed=SIZE) == 2


def test_asked_again_a_waiting_request_costs_one_look() -> None:
    """Of a thousand that wait, each is asked for in each pass of the scheduler."""
    world = World(held=2, pending=1)
    request = world.request()
    assert world.found(request) is None
    with mock.patch.object(world.ledger, "lookup", side_effect=AssertionError):
        assert world.found(request) is None


def test_look_ups_can_be_imported_without_vllm() -> None:
    """Else no test of the core can be collected where it is not installed."""
    module = "cache_core.adapters.vllm.scheduler.lookup"
    code = f"import sys; sys.modules['vllm'] = None; import {module}"
    done = run_alone([sys.executable, "-c", code], 120)
    assert done.returncode == 0, done.stderr
