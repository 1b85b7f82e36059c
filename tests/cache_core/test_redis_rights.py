"""Redis users who may do less than everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_core.tiers import TierError
from cache_core.tiers.remote.url import open_remote
from cache_core.tiers.tier import Read
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine
from tests.cache_core.servers import RedisProcess
from tests.cache_core.test_redis import PART, command, hasher, prompt, tier_on

CHUNK = LAYOUT.chunk_bytes


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisProcess]:
    """A server with users of its own."""
    server = RedisProcess(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine(LAYOUT, 8)


RIGHTS = ("exists", "get", "mset", "unlink")


def user(port: int, name: str, *rights: str) -> str:
    """A user who may do that and nothing else; returns the start of a URL."""
    grants = [f"+{right}".encode() for right in rights]
    command(port, b"ACL", b"SETUSER", name.encode(), b"on", b">pw", b"~lmcache:*", *grants)
    return f"redis://{name}:pw@127.0.0.1:{port}"


def test_four_rights_are_enough(own: RedisProcess, engine: MemoryEngine) -> None:
    tier = open_remote(f"{user(own.port, 'cache', *RIGHTS)}?part={PART}", CHUNK)
    tier.ping()
    engine.fill([1])
    assert tier.write([bytes(32)], engine.place(0, 1)) == [True]
    assert tier.read([bytes(32)], engine.place(0, 1)) == [Read.HERE]
    tier.discard([bytes(32)])
    assert command(own.port, b"DBSIZE") == 0
    assert tier.counters.errors == 0
    tier.close()


@pytest.mark.parametrize("lacking", [*RIGHTS, "select"])
def test_a_missing_right_is_named(own: RedisProcess, engine: MemoryEngine, lacking: str) -> None:
    login = user(own.port, "cache", *(right for right in RIGHTS if right != lacking))
    tier = open_remote(login + ("/2" if lacking == "select" else ""), CHUNK)
    with pytest.raises(TierError, match=f"the user cache may not {lacking.upper()}; it needs"):
        tier.ping()
    tier.close()


def test_a_user_who_may_only_read_reads(
    own: RedisProcess, engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    writer = tier_on(own.port)
    keys = hasher("reader").keys(prompt(3)).prefix
    engine.fill([0, 1, 2])
    assert all(writer.write(keys, engine.place(0, 3)))
    reader = open_remote(f"{user(own.port, 'reader', 'exists', 'get')}?part={PART}", CHUNK)
    for _ in range(5):
        assert reader.write(keys, engine.place(0, 3)) == [False] * 3
        assert reader.read(keys, engine.place(0, 3)) == [Read.HERE] * 3
    assert reader.counters.opened == 0 and reader.counters.rejected == 15
    [warning] = [record.getMessage() for record in caplog.records]
    assert "reader may not MSET" in warning
    writer.close()
    reader.close()
