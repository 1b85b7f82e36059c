"""The remote tier on a real Mooncake master, and without one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cache_core.cache import TieredCache
from cache_core.tiers import MemoryTier, TierError
from cache_core.tiers.mooncake_store import MooncakeClient, MooncakeStore
from cache_core.tiers.remote import RemoteTier
from cache_core.tiers.remote_url import open_remote
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine
from tests.cache_core.servers import MooncakeProcess, eventually
from tests.cache_core.test_redis import hasher, prompt, serve

CHUNK = LAYOUT.chunk_bytes


@pytest.fixture
def own(tmp_path: Path) -> Iterator[MooncakeProcess]:
    """A master for one test, which may kill it."""
    server = MooncakeProcess(tmp_path)
    yield server
    server.end()


def test_a_master_killed_and_restarted_costs_hits_only(own: MooncakeProcess) -> None:
    engine = MemoryEngine(LAYOUT, 8)
    url = f"mooncake://127.0.0.1:{own.port}?timeout=0.5&pause=0.01&segment={64 << 20}"
    remote = open_remote(url, CHUNK)
    cache = TieredCache(LAYOUT, [MemoryTier("cpu", 1, CHUNK), remote])
    keys = hasher("killed").keys(prompt(4)).prefix
    # To connect may take longer than a call is given here.
    eventually(lambda: serve(cache, engine, keys) == 4)
    own.kill()
    for _ in range(10):
        assert serve(cache, engine, keys) == 1
    before = remote.counters
    assert before.opened >= 1 and before.errors + before.timeouts >= 3
    own.start()
    eventually(lambda: serve(cache, engine, keys) == 4)
    cache.check()
    cache.close()


def test_two_tiers_on_one_master_share_chunks(mooncake_client: MooncakeClient) -> None:
    engine = MemoryEngine(LAYOUT, 8)

    def tier() -> RemoteTier:
        store = partial(MooncakeStore, mooncake_client)
        return RemoteTier("remote", None, CHUNK, store, timeout_s=60)

    first, second = TieredCache(LAYOUT, [tier()]), TieredCache(LAYOUT, [tier()])
    keys = hasher("shared").keys(prompt(8)).prefix
    assert serve(first, engine, keys) == 0
    assert serve(second, engine, keys) == 8
    assert serve(second, engine, hasher("another tenant").keys(prompt(8)).prefix) == 0
    first.close()
    assert serve(second, engine, keys) == 8
    second.close()


def test_without_the_package_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mooncake.store", None)
    tier = open_remote("mooncake://127.0.0.1:1", CHUNK)
    with pytest.raises(TierError, match="mooncake-transfer-engine-non-cuda"):
        tier.ping()
    assert tier.contains([bytes(32)]) == [False]
    tier.close()
