"""What the connector promises of tiers that could not be read lately."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from cache_core.adapters.vllm.lookup import Lookup
from cache_core.adapters.vllm.options import ConnectorOptions
from cache_core.adapters.vllm.tracked import Tracked
from cache_core.ledger import Ledger
from tests.cache_core.memory_engine import key

KEYS = [key(n) for n in range(3)]


class World:
    """A disk tier that holds three chunks, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ledger = Ledger([8])
        self.ledger.settle(self.ledger.admit(KEYS).moves, True)
        options = ConnectorOptions.parse({"cpu_size": 0, "disk_size": 1 << 20, "disk_path": "x"})
        self.lookup = Lookup(options, self.ledger, None, lambda plan: None, lambda: self.now)

    def request(self) -> Tracked:
        return Tracked(cast(Any, None), cast(Any, None), cast(Any, None), "")

    def loads(self, later: bool) -> list[int]:
        """The disk was read; ``later``: in vain."""
        return self.lookup.suspended(cast(Any, SimpleNamespace(asked=((0, later),))))


def test_a_suspended_tier_is_not_promised_until_its_pause_is_over() -> None:
    world = World()
    assert len(world.lookup.hit(world.request(), KEYS)) == 3
    assert world.loads(later=True) == [0]
    assert len(world.lookup.hit(world.request(), KEYS)) == 0
    world.now += 2
    first, second = world.request(), world.request()
    assert len(world.lookup.hit(first, KEYS)) == 3
    assert len(world.lookup.hit(second, KEYS)) == 0, "one request tries it, not all"
    assert world.loads(later=False) == []
    assert len(world.lookup.hit(second, KEYS)) == 3


def test_a_request_that_is_asked_for_again_keeps_its_try() -> None:
    """vLLM asks again as long as it has no blocks for what was promised."""
    world = World()
    world.loads(later=True)
    world.now += 2
    request = world.request()
    for _ in range(5):
        assert len(world.lookup.hit(request, KEYS)) == 3
