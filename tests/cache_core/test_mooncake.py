"""The remote tier on a real Mooncake master, and without one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import pytest

from cache_core.cache import TieredCache
from cache_core.tiers import MemoryTier, TierError
from cache_core.tiers.remote.mooncake_store import (
    Channel,
    MooncakeClient,
    MooncakeServer,
    MooncakeStore,
)
from cache_core.tiers.remote.remote_tier import RemoteTier
from cache_core.tiers.remote.store import StoreError
from cache_core.tiers.remote.url import open_remote
from cache_core.tiers.tier import Read
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine
from tests.cache_core.servers import MooncakeProcess, eventually, free_port, silent_server
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


def test_without_the_package_the_reason_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with silent_server() as port:
        tier = open_remote(f"mooncake://127.0.0.1:{port}?timeout=60", CHUNK)
        with pytest.raises(TierError, match="mooncake-transfer-engine-non-cuda"):
            tier.ping()
        assert tier.contains([bytes(32)]) == [False]
        tier.close()


def test_a_master_that_is_absent_is_named_at_once() -> None:
    port = free_port()
    tier = open_remote(f"mooncake://127.0.0.1:{port}?timeout=60", CHUNK)
    with pytest.raises(TierError, match=f"master 127.0.0.1:{port}: .*refused"):
        tier.ping()
    tier.close()


def test_a_client_that_dies_is_started_anew(own: MooncakeProcess) -> None:
    engine = MemoryEngine(LAYOUT, 4)
    client = MooncakeClient(MooncakeServer(f"127.0.0.1:{own.port}"))
    tier = RemoteTier("remote", None, CHUNK, partial(MooncakeStore, client), timeout_s=60)
    keys = hasher("dies").keys(prompt(4)).prefix
    engine.fill([0, 1, 2, 3])
    assert all(tier.write(keys, engine.place(0, 4)))
    process = client._process
    assert process is not None
    process.kill()
    process.wait()
    assert tier.read(keys, engine.place(0, 4)) == [Read.LATER] * 4
    engine.wipe()
    assert all(tier.read(keys, engine.place(0, 4)))
    assert all(engine.holds(n, n) for n in range(4))
    tier.close()
    assert client._process is None


def test_a_client_that_can_not_join_ends_with_its_user() -> None:
    """It is deep in Mooncake, which holds the interpreter's lock."""
    with silent_server() as port:
        client = MooncakeClient(MooncakeServer(f"127.0.0.1:{port}"))
        with pytest.raises(StoreError, match="goes on trying"):
            client.channel(0, 3)
        process, control = client._process, client._control
        assert process is not None and control is not None and process.poll() is None
        control.close()
        process.wait(60)


def test_a_frozen_master_loses_nothing(own: MooncakeProcess) -> None:
    """What a time-out leaves open is not taken for absence."""
    engine = MemoryEngine(LAYOUT, 4)
    client = MooncakeClient(MooncakeServer(f"127.0.0.1:{own.port}"))
    store = partial(MooncakeStore, client)
    writer = RemoteTier("remote", None, CHUNK, store, timeout_s=60)
    keys = hasher("frozen").keys(prompt(4)).prefix
    engine.fill([0, 1, 2, 3])
    assert all(writer.write(keys, engine.place(0, 4)))
    tier = RemoteTier("remote", None, CHUNK, store, timeout_s=0.3)
    eventually(lambda: all(tier.read(keys, None)))
    own.stop(paused=True)
    assert tier.read(keys, engine.place(0, 4)) == [Read.LATER] * 4
    assert tier.read(keys, None) == [Read.LATER] * 4
    own.stop(paused=False)
    assert all(writer.read(keys, engine.place(0, 4)))
    tier.close()
    writer.close()


@pytest.mark.parametrize("code", [-800, -900, -901, -1010])
def test_a_code_that_says_nothing_of_a_value_is_an_error(code: int) -> None:
    ours, theirs = Pipe()
    theirs.send("ready")
    theirs.send([1, code])
    channel = Channel(socket.socket(fileno=os.dup(ours.fileno())), -1, 0, time.monotonic() + 60)
    with pytest.raises(StoreError, match=str(code)):
        channel.call(60, "batch_is_exist", ["a", "b"])
    channel.close()
