"""The buffers of a remote tier: given back when it is closed, and not before they may be."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest

from cache_core import _native
from cache_core.tiers.remote.store import Bytes
from cache_core.tiers.tier import Read
from tests.cache_core.dict_store import Server, assert_true, open_tier, refuse, stored, written
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine
from tests.cache_core.servers import eventually


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine(LAYOUT, 8)


Slab = _native.Slab


class CountedSlab:
    """A slab whose end can be seen."""

    alive = 0

    def __init__(self, nbytes: int) -> None:
        self._slab = Slab(nbytes)
        self.address = self._slab.address
        CountedSlab.alive += 1

    def view(self) -> Bytes:
        view: Bytes = self._slab.view()
        return view

    def __del__(self) -> None:
        CountedSlab.alive -= 1


@pytest.mark.parametrize("trouble", [lambda: None, refuse], ids=["healthy", "failing"])
def test_a_closed_tier_has_given_its_memory_back(
    server: Server,
    engine: MemoryEngine,
    trouble: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cache_core._native.Slab", CountedSlab)
    gc.collect()
    gc.disable()
    try:
        before = CountedSlab.alive
        tier = open_tier(server)
        keys = written(tier, engine, [1, 2])
        server.trouble = trouble
        tier.read(keys, engine.place(0, 2))
        assert CountedSlab.alive == before + 2
        tier.close()
        assert CountedSlab.alive == before, "memory waits for a collection"
    finally:
        gc.enable()


def test_memory_that_a_hanging_store_may_write_to_stays_until_it_ends(
    server: Server, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_core._native.Slab", CountedSlab)
    keys = stored(server, engine, [1])
    before = CountedSlab.alive
    tier = open_tier(server, timeout_s=0.1)
    gate = threading.Event()
    server.trouble = lambda: assert_true(gate.wait(60))
    assert tier.read(keys, engine.place(0, 1)) == [Read.LATER]
    tier.close()
    assert CountedSlab.alive > before
    gate.set()
    eventually(lambda: CountedSlab.alive == before)
