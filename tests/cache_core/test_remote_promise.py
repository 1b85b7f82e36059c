"""No call to a remote tier waits much longer than its timeout, whatever the server does or not.

A call that does not come back, or holds the interpreter's lock, fails a test after a minute: the
clients' own patience is longer.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from cache_core.tiers.remote.mooncake_store import MooncakeClient, MooncakeServer, MooncakeStore
from cache_core.tiers.remote.remote_tier import RemoteTier
from cache_core.tiers.remote.url import open_remote
from cache_core.tiers.tier import Read
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key
from tests.cache_core.remote_verbs import VERBS
from tests.cache_core.servers import (
    MooncakeProcess,
    RedisProcess,
    free_port,
    full_server,
    rude_server,
    silent_server,
)

T = TypeVar("T")
CHUNK = LAYOUT.chunk_bytes
NEVER_S = 60
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("scheme", ["redis", "rediss", "mooncake"])
def test_every_verb_comes_back_from_a_server_that_never_answers(scheme: str) -> None:
    """Absent, mute, deaf, rude, or not even to be found: of each verb, a tier that has not
    connected yet. With a password Redis hangs at AUTH, over TLS at the handshake."""
    login = "" if scheme == "mooncake" else ":secret@"
    with silent_server() as silent, full_server() as full, rude_server() as rude:
        hosts = [f"127.0.0.1:{port}" for port in (free_port(), silent, full, rude)] + ["hangs:1"]
        urls = [f"{scheme}://{login}{host}?timeout=0.3" for host in hosts]
        done = subprocess.run(
            [sys.executable, "-m", "tests.cache_core.remote_verbs", *urls],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            timeout=NEVER_S,
            check=False,
        )
    assert done.stdout.splitlines() == sorted(f"{v.__name__} {url}" for v in VERBS for url in urls)
    assert done.returncode == 0


Frozen = tuple[Callable[[], RemoteTier], Callable[[bool], None]]


@pytest.fixture(params=["redis", "mooncake"])
def frozen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Frozen]:
    """How to open a tier of little patience, and how to stop its server and let it go on."""
    with ExitStack() as stack:
        if request.param == "redis":
            redis = RedisProcess(tmp_path)
            stack.callback(redis.kill)
            url = f"redis://127.0.0.1:{redis.port}?timeout=0.3&pause=1000"
            yield partial(open_remote, url, CHUNK), redis.stop
            return
        mooncake = MooncakeProcess(tmp_path)
        stack.callback(mooncake.end)
        client = MooncakeClient(MooncakeServer(f"127.0.0.1:{mooncake.port}"))
        client.open()
        stack.callback(client.close)
        client.channel(0, NEVER_S).close()  # to join takes longer
        store = partial(MooncakeStore, client)
        yield partial(RemoteTier, "remote", None, CHUNK, store, timeout_s=0.3), mooncake.stop


def test_every_verb_comes_back_from_a_server_that_stops(frozen: Frozen) -> None:
    """Connected, and in the middle of its work; ``discard`` of what is there, too."""
    open_tier, stop = frozen
    engine = MemoryEngine(LAYOUT, 2)
    engine.fill([1, 2])
    keys = [key(1), key(2)]
    verbs: list[tuple[Callable[[RemoteTier], object], object]] = [
        (lambda tier: tier.contains(keys), [False] * 2),
        (lambda tier: tier.read(keys, None), [Read.LATER] * 2),
        (lambda tier: tier.read(keys, engine.place(0, 2)), [Read.LATER] * 2),
        (lambda tier: tier.write(keys, engine.place(0, 2)), [False] * 2),
        (lambda tier: tier.discard(keys), None),
    ]
    tiers = [open_tier() for _ in verbs]
    for tier in tiers:
        while not all(tier.write(keys, engine.place(0, 2))) or not all(tier.contains(keys)):
            pass
    stop(True)
    for tier, (verb, answer) in zip(tiers, verbs, strict=True):
        assert came_back(partial(verb, tier)) == answer
        came_back(tier.close)
    stop(False)


def came_back(call: Callable[[], T]) -> T:
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(NEVER_S)
    assert answers, "the call did not come back"
    return answers[0]
