"""Redis and Valkey as a remote store."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cache_core.tiers.resp import Part, RespConnection, RespError
from cache_core.tiers.store import Bytes, StoreError

PART_BYTES = 1 << 20
PREFIX = "lmcache:"
# What a server says of one command; after anything else it is no use to us now.
_ABOUT_A_VALUE = ("OOM ", "WRONGTYPE ", "MISCONF ", "READONLY ")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RedisServer:
    """Where a server is and how to get in. ``tls`` None: in the clear."""

    host: str
    port: int = 6379
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None


class RedisStore:
    """Values of ``value_bytes`` in parts of at most ``part_bytes``: a server that copies or frees
    one large string serves nobody meanwhile.

    Part 0 is ``lmcache:NAME``; it is written last and stands for the value. Parts that do not
    belong together are found out by the value's head. Redis Cluster, which would spread the parts,
    is not supported.
    """

    def __init__(self, server: RedisServer, value_bytes: int, part_bytes: int = PART_BYTES) -> None:
        self._server = server
        self._cuts = [*range(0, value_bytes, part_bytes), value_bytes]
        self._timeout_s = 0.0
        self._connection: RespConnection | None = None
        self._proven = False

    def connect(self, buffer: Bytes, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connect(timeout_s)

    def exists(self, names: Sequence[str]) -> list[bool]:
        def ask(connection: RespConnection) -> list[bool]:
            connection.send([[b"EXISTS", _part(name, 0)] for name in names])
            return [connection.reply() == 1 for _ in names]

        return self._exchange(ask)

    def put(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        def send(connection: RespConnection) -> list[bool]:
            sets = [self._sets(name, value) for name, value in zip(names, values, strict=True)]
            connection.send([command for commands in sets for command in commands])
            good = [_all([_accepted(connection) for _ in commands]) for commands in sets]
            torn = [name for name, ok in zip(names, good, strict=True) if not ok]
            if torn:
                self._drop(connection, torn)
            return good

        return self._exchange(send)

    def get_into(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        def receive(connection: RespConnection) -> list[bool]:
            count = len(self._cuts) - 1
            connection.send([[b"GET", _part(name, i)] for name in names for i in range(count)])
            return [
                _all([_arrived(connection, piece) for piece in self._pieces(value)])
                for value in values
            ]

        return self._exchange(receive)

    def remove(self, names: Sequence[str]) -> None:
        self._exchange(lambda connection: self._drop(connection, names))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, timeout_s: float) -> RespConnection:
        self.close()
        server = self._server
        connection = RespConnection(server.host, server.port, server.tls, timeout_s)
        self._connection, self._proven = connection, False
        commands: list[list[Part]] = []
        if server.password:
            user = [server.username.encode()] if server.username else []
            commands.append([b"AUTH", *user, server.password.encode()])
        if server.database:
            commands.append([b"SELECT", str(server.database).encode()])
        commands.append([b"PING"])
        for command in commands:
            connection.send([command])
            connection.reply()
        return connection

    def _exchange(self, work: Callable[[RespConnection], T]) -> T:
        """Within the timeout, and once more if a connection from before turns out to be dead: a
        server that was restarted, or closes what is idle, is no failure. All our commands may be
        repeated."""
        deadline = time.monotonic() + self._timeout_s
        connection = self._connection
        if connection is None:
            raise StoreError("not connected")
        connection.allow(self._timeout_s)
        try:
            result = work(connection)
        except RespError:
            raise
        except StoreError:
            left = deadline - time.monotonic()
            if not self._proven or left <= 0:
                raise
            result = work(self._connect(left))
        self._proven = True
        return result

    def _drop(self, connection: RespConnection, names: Sequence[str]) -> None:
        count = len(self._cuts) - 1
        connection.send([[b"UNLINK", *(_part(name, i) for i in range(count))] for name in names])
        for _ in names:
            _accepted(connection)

    def _sets(self, name: str, value: Bytes) -> list[list[Part]]:
        """Part 0 first away and last there: a value is whole whenever it can be found."""
        first, *rest = self._pieces(value)
        commands: list[list[Part]] = [[b"UNLINK", _part(name, 0)]] if rest else []
        commands += [[b"SET", _part(name, i), piece] for i, piece in enumerate(rest, 1)]
        return [*commands, [b"SET", _part(name, 0), first]]

    def _pieces(self, value: Bytes) -> list[memoryview]:
        view = value.data
        ends = self._cuts[1:]
        return [view[a:b] for a, b in zip(self._cuts, ends, strict=False)]


def _part(name: str, index: int) -> bytes:
    return f"{PREFIX}{name}:{index}".encode() if index else f"{PREFIX}{name}".encode()


def _all(replies: list[bool]) -> bool:
    """``all`` of a list, not of a generator: every reply must have been read."""
    return all(replies)


def _accepted(connection: RespConnection) -> bool:
    try:
        connection.reply()
    except RespError as error:
        if error.reason.startswith(_ABOUT_A_VALUE):
            return False
        raise
    return True


def _arrived(connection: RespConnection, piece: memoryview) -> bool:
    try:
        return connection.reply_into(piece)
    except RespError as error:
        if error.reason.startswith(_ABOUT_A_VALUE):
            return False
        raise
