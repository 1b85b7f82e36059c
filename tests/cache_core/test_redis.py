"""The remote tier on a real Redis: parts, passwords, TLS, full, killed, restarted, mute."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from cache_core.cache import TieredCache
from cache_core.keys import ChunkHasher, Namespace
from cache_core.tiers import MemoryTier, Tier, TierError
from cache_core.tiers.remote.redis_store import REDIS_PREFIX
from cache_core.tiers.remote.remote_tier import RemoteTier
from cache_core.tiers.remote.resp import RespConnection
from cache_core.tiers.remote.url import open_remote
from cache_core.tiers.tier import Read
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine
from tests.cache_core.servers import RedisProcess, eventually, free_port

CHUNK = LAYOUT.chunk_bytes
_OPENSSL = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
)
Start = Callable[..., RedisProcess]
PART = 300  # so that a value has four parts


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers, which end with the test."""
    with ExitStack() as stack:

        def run(*options: str, tls: bool = False) -> RedisProcess:
            server = RedisProcess(tmp_path, *options, tls=tls)
            stack.callback(server.kill)
            return server

        yield run


@pytest.fixture
def own(start: Start) -> RedisProcess:
    """A server for one test, which may kill it."""
    return start()


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine(LAYOUT, 8)


def tier_on(port: int, options: str = "") -> RemoteTier:
    return open_remote(f"redis://127.0.0.1:{port}?part={PART}&timeout=60{options}", CHUNK)


def hasher(salt: str) -> ChunkHasher:
    return ChunkHasher(Namespace(LAYOUT, "a model", salt=salt))


def prompt(chunks: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.arange(chunks * LAYOUT.chunk_tokens, dtype=np.int32)


def command(port: int, *words: bytes) -> int | bytes | None:
    connection = RespConnection("127.0.0.1", port, None, 5)
    connection.send([words])
    reply = connection.reply()
    connection.close()
    return reply


def serve(cache: TieredCache, engine: MemoryEngine, keys: list[bytes]) -> int:
    """One request; proves every byte that was served. Returns the chunks hit."""
    hit = cache.acquire(keys, wait_s=10)
    engine.wipe()
    loaded = cache.load(hit, engine.place(0, len(hit)))
    for row in range(loaded.chunks):
        assert engine.holds(row, row)
    engine.fill(list(range(len(keys))))
    cache.store(keys, engine.place(0, len(keys))).result()
    return loaded.chunks


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("damage", ["lost", "short", "foreign", "wrong type"])
def test_a_value_with_a_bad_part_is_a_miss(
    redis_port: int, engine: MemoryEngine, part: int, damage: str
) -> None:
    tier = tier_on(redis_port)
    keys = hasher(f"{part} {damage}").keys(prompt(3)).prefix
    engine.fill([0, 1, 2])
    assert tier.write(keys, engine.place(0, 3)) == [True] * 3
    name = f"{REDIS_PREFIX}{keys[1].hex()}".encode() + (b":%d" % part if part else b"")
    if damage == "short":
        assert command(redis_port, b"SETRANGE", name, b"0", b"") is not None
        command(redis_port, b"APPEND", name, b"x")
    elif damage == "foreign":
        other = f"{REDIS_PREFIX}{keys[2].hex()}".encode() + (b":%d" % part if part else b"")
        command(redis_port, b"COPY", other, name, b"REPLACE")
    else:
        assert command(redis_port, b"DEL", name) == 1
        if damage == "wrong type":
            command(redis_port, b"LPUSH", name, b"x")
    engine.wipe()
    assert tier.read(keys, engine.place(0, 3)) == Read.of([True, False, True])
    assert engine.holds(0, 0) and engine.holds(2, 2) and not engine.chunk(1).any()
    # The connection is in step: what follows is right.
    assert tier.read(keys[::2], engine.place(0, 2)) == Read.of([True, True])
    assert engine.holds(1, 2)
    assert tier.counters.errors == 0
    # What it can't read another process may have healed meanwhile: it is not removed.
    tier.discard(keys)
    after = tier_on(redis_port)
    assert after.contains(keys) == [False, damage != "lost", False]
    after.close()
    tier.close()


def test_a_write_that_fails_leaves_what_another_process_stored(
    start: Start, engine: MemoryEngine
) -> None:
    server = start("--maxmemory-policy", "noeviction")
    first, second = tier_on(server.port), tier_on(server.port)
    keys = hasher("two writers").keys(prompt(4)).prefix
    engine.fill([0, 1, 2, 3])
    assert all(first.write(keys, engine.place(0, 4)))
    command(server.port, b"CONFIG", b"SET", b"maxmemory", b"1")
    assert second.write(keys, engine.place(0, 4)) == [False] * 4
    second.discard(keys)
    engine.wipe()
    assert all(first.read(keys, engine.place(0, 4)))
    assert all(engine.holds(n, n) for n in range(4))
    first.close()
    second.close()


def test_a_frozen_server_loses_nothing_of_anybody(own: RedisProcess, engine: MemoryEngine) -> None:
    """Two caches on one server: it stops, loads fail, it goes on, and every chunk is there."""
    first = TieredCache(LAYOUT, [tier_on(own.port)])
    second = TieredCache(LAYOUT, [tier_on(own.port, "&timeout=0.2&pause=0.01")])
    keys = hasher("stopped").keys(prompt(8)).prefix
    serve(first, engine, keys)
    eventually(lambda: serve(second, engine, keys) == 8)
    hit = second.acquire(keys)
    own.stop(paused=True)
    assert second.load(hit, engine.place(0, 8)).chunks == 0
    second.flush()
    own.stop(paused=False)
    assert serve(first, engine, keys) == 8
    eventually(lambda: serve(second, engine, keys) == 8)
    first.close()
    second.close()


def test_a_value_that_lost_a_part_is_not_promised(redis_port: int, engine: MemoryEngine) -> None:
    tier = tier_on(redis_port)
    keys = hasher("promise").keys(prompt(4)).prefix
    engine.fill([0, 1, 2, 3])
    assert all(tier.write(keys, engine.place(0, 4)))
    for part in range(4):
        name = f"{REDIS_PREFIX}{keys[part].hex()}".encode() + (b":%d" % part if part else b"")
        assert command(redis_port, b"DEL", name) == 1
        assert tier.contains(keys) == [n > part for n in range(4)]
    tier.close()


def test_a_full_server_refuses_chunks_and_stays_in_use(start: Start, engine: MemoryEngine) -> None:
    server = start("--maxmemory", "100kb", "--maxmemory-policy", "noeviction")
    tier = tier_on(server.port)
    keys = hasher("full").keys(prompt(8)).prefix
    engine.fill(list(range(8)))
    stored = tier.write(keys, engine.place(0, 8))
    assert not any(stored)
    assert tier.contains(keys) == stored
    assert len(tier) == 0
    assert tier.counters.rejected == 8
    assert tier.counters.errors == tier.counters.opened == 0
    command(server.port, b"CONFIG", b"SET", b"maxmemory", b"0")
    assert all(tier.write(keys, engine.place(0, 8)))
    tier.close()


def test_a_server_killed_and_restarted_costs_hits_only(
    own: RedisProcess, engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    tiers: list[Tier] = [MemoryTier("cpu", 1, CHUNK), tier_on(own.port, "&pause=0.001")]
    cache = TieredCache(LAYOUT, tiers, pause_s=0.0)
    keys = hasher("killed").keys(prompt(4)).prefix
    assert serve(cache, engine, keys) == 0
    assert serve(cache, engine, keys) == 4
    own.kill()
    assert serve(cache, engine, keys) == 1  # what the cpu tier has
    for _ in range(10):
        assert serve(cache, engine, keys) == 1
    failures = cache.counters["remote"].failures
    assert failures >= 3 * 4
    own.start()
    eventually(lambda: serve(cache, engine, keys) == 4)
    cache.check()
    remote = cache.tiers[1]
    assert isinstance(remote, RemoteTier)
    assert remote.counters.errors > 0 and remote.counters.opened >= 1
    assert sum("answers again" in r.getMessage() for r in caplog.records) >= 1
    cache.close()


def test_a_restart_between_two_calls_is_not_even_noticed(
    own: RedisProcess, engine: MemoryEngine
) -> None:
    tier = tier_on(own.port)
    keys = hasher("restart").keys(prompt(2)).prefix
    engine.fill([0, 1])
    assert all(tier.write(keys, engine.place(0, 2)))
    own.kill()
    own.start()
    assert tier.contains(keys) == [False, False]
    assert all(tier.write(keys, engine.place(0, 2)))
    assert tier.counters.errors == 0
    tier.close()


def test_a_frozen_server_is_left_alone_after_the_timeout(
    own: RedisProcess, engine: MemoryEngine
) -> None:
    """The server is thawed only when every request has been answered without it."""
    cache = TieredCache(LAYOUT, [tier_on(own.port, "&timeout=0.3&pause=0.1")])
    keys = hasher("frozen").keys(prompt(4)).prefix
    eventually(lambda: serve(cache, engine, keys) == 4)
    own.stop(paused=True)
    for _ in range(10):
        assert serve(cache, engine, keys) == 0
    remote = cache.tiers[0]
    assert isinstance(remote, RemoteTier)
    assert remote.counters.opened >= 1 and remote.counters.refused > 0
    assert remote.counters.errors + remote.counters.timeouts >= 3
    own.stop(paused=False)
    cache.close()


def test_a_password_is_needed_and_never_shown(
    tmp_path: Path, start: Start, engine: MemoryEngine
) -> None:
    server = start("--requirepass", "s3cret/word")
    secret = tmp_path / "password"
    secret.write_text("s3cret/word\n")
    right = open_remote(f"redis://:s3cret%2Fword@127.0.0.1:{server.port}/3", CHUNK)
    named = open_remote(f"redis://default:s3cret%2Fword@127.0.0.1:{server.port}/3", CHUNK)
    filed = open_remote(f"redis://127.0.0.1:{server.port}/3?password_file={secret}", CHUNK)
    wrong = open_remote(f"redis://:hunter22@127.0.0.1:{server.port}", CHUNK)
    none = open_remote(f"redis://127.0.0.1:{server.port}", CHUNK)
    engine.fill([1])
    assert right.write([bytes(32)], engine.place(0, 1)) == [True]
    for tier in (right, named, filed):
        tier.ping()
        assert tier.contains([bytes(32)]) == [True]
    with pytest.raises(TierError, match="WRONGPASS") as error:
        wrong.ping()
    assert "hunter22" not in str(error.value)
    with pytest.raises(TierError, match="NOAUTH"):
        none.ping()
    assert wrong.contains([bytes(32)]) == [False]
    for tier in (right, named, filed, wrong, none):
        tier.close()


def test_tls_with_a_certificate_of_the_house(
    tmp_path: Path, start: Start, engine: MemoryEngine
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        _OPENSSL.split(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    files = ["--tls-cert-file", str(cert), "--tls-key-file", str(private)]
    server = start(*files, "--tls-ca-cert-file", str(cert), "--tls-auth-clients", "yes", tls=True)
    url = f"rediss://127.0.0.1:{server.port}?part={PART}&timeout=60"
    mine = f"&cert={cert}&key={private}"
    trusting = open_remote(f"{url}&ca={cert}{mine}", CHUNK)
    careless = open_remote(f"{url}&verify=no{mine}", CHUNK)
    doubting = open_remote(f"{url}{mine}", CHUNK)
    plain = open_remote(f"redis://127.0.0.1:{server.port}", CHUNK)
    keys = hasher("tls").keys(prompt(8)).prefix
    engine.fill(list(range(8)))
    assert all(trusting.write(keys, engine.place(0, 8)))
    engine.wipe()
    assert all(careless.read(keys, engine.place(0, 8)))
    assert all(engine.holds(n, n) for n in range(8))
    with pytest.raises(TierError, match="certificate"):
        doubting.ping()
    with pytest.raises(TierError):
        plain.ping()
    for tier in (trusting, careless, doubting, plain):
        tier.close()


_OTHER_PROCESS = """
import sys
from cache_core.cache import TieredCache
from cache_core.tiers.tier import Read
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine
from tests.cache_core.test_redis import hasher, prompt, tier_on
engine = MemoryEngine(LAYOUT, 8)
engine.fill(list(range(8)))
cache = TieredCache(LAYOUT, [tier_on(int(sys.argv[1]))])
keys = hasher("two processes").keys(prompt(8)).prefix
print(cache.store(keys, engine.place(0, 8)).result().chunks)
cache.close()
"""


def test_two_processes_reuse_each_others_chunks(redis_port: int, engine: MemoryEngine) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, str(redis_port)],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "8\n", done.stderr
    cache = TieredCache(LAYOUT, [MemoryTier("cpu", 2, CHUNK), tier_on(redis_port)])
    keys = hasher("two processes").keys(prompt(8)).prefix
    assert serve(cache, engine, keys) == 8
    cache.check()
    cache.close()


def test_a_tenant_cannot_hit_anothers_chunks(redis_port: int, engine: MemoryEngine) -> None:
    mine = TieredCache(LAYOUT, [tier_on(redis_port)])
    theirs = TieredCache(LAYOUT, [tier_on(redis_port)])
    tokens = prompt(6)
    assert serve(mine, engine, hasher("tenant a").keys(tokens).prefix) == 0
    assert serve(theirs, engine, hasher("tenant b").keys(tokens).prefix) == 0
    assert serve(theirs, engine, hasher("").keys(tokens).prefix) == 0
    # The very same tokens and the very same server: only the salt is another.
    assert serve(theirs, engine, hasher("tenant a").keys(tokens).prefix) == 6
    mine.close()
    theirs.close()


def test_a_dead_server_at_the_start_is_cold(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "lmcache")
    cache = TieredCache(LAYOUT, [tier_on(free_port())])
    keys = hasher("dead").keys(prompt(3)).prefix
    for _ in range(4):
        assert serve(cache, engine, keys) == 0
    assert len(caplog.records) == 1 and "refused" in caplog.records[0].getMessage()
    cache.close()
