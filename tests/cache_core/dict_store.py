"""A store in a dictionary, which can be made to fail, hang, forget and lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cache_core.tiers.remote.remote_tier import RemoteTier
from cache_core.tiers.remote.store import Bytes, StoreError
from cache_core.tiers.suspensions import CircuitBreaker
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK = LAYOUT.chunk_bytes


class Server:
    """What all connections to it see. ``trouble`` runs at the start of every call."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.trouble: Callable[[], None] = lambda: None

    def store(self) -> DictStore:
        return DictStore(self)


class DictStore:
    def __init__(self, server: Server) -> None:
        self._server = server

    def connect(self, buffer: Bytes, timeout_s: float) -> None:
        self._call("connect")

    def exists(self, names: Sequence[str]) -> list[bool]:
        self._call("exists")
        return [name in self._server.values for name in names]

    def put(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        self._call("put")
        self._server.values |= {n: v.tobytes() for n, v in zip(names, values, strict=True)}
        return [True] * len(names)

    def get_into(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        self._call("get")
        found = [self._server.values.get(name, b"") for name in names]
        for data, room in zip(found, values, strict=True):
            if len(data) == len(room):
                room[:] = np.frombuffer(data, dtype=np.uint8)
        return [len(data) == len(room) for data, room in zip(found, values, strict=True)]

    def remove(self, names: Sequence[str]) -> None:
        self._call("remove")
        for name in names:
            self._server.values.pop(name, None)

    def close(self) -> None:
        pass

    def _call(self, verb: str) -> None:
        self._server.calls.append(verb)
        self._server.trouble()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def assert_true(value: bool) -> None:
    assert value


def refuse() -> None:
    raise StoreError("nobody is there")


def open_tier(server: Server, clock: Clock | None = None, **options: float) -> RemoteTier:
    return RemoteTier(
        "remote",
        None,
        CHUNK,
        server.store,
        workers=2,
        timeout_s=options.get("timeout_s", 30.0),
        breaker=CircuitBreaker(3, 10.0, clock=clock or Clock()),
    )


def written(tier: RemoteTier, engine: MemoryEngine, numbers: list[int]) -> list[bytes]:
    keys = [key(n) for n in numbers]
    engine.fill(numbers)
    assert all(tier.write(keys, engine.place(0, len(keys))))
    engine.wipe()
    return keys


def stored(server: Server, engine: MemoryEngine, numbers: list[int]) -> list[bytes]:
    """Written by another tier, with patience."""
    tier = open_tier(server)
    keys = written(tier, engine, numbers)
    tier.close()
    return keys
