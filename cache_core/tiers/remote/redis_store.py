"""Makes Redis and Valkey remote stores."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from typing import TypeVar

from cache_core.tiers.remote.resp import RespConnection, RespError, WirePart
from cache_core.tiers.remote.store import HEAD_BYTES, Bytes, StoreError

PART_BYTES = 1 << 20
REDIS_PREFIX = "lmcache:"
# What a server says of one command; after anything else it is no use to us now.
_DENIED = "NOPERM "
_ABOUT_A_VALUE = ("OOM ", "WRONGTYPE ", "MISCONF ", "READONLY ", _DENIED)
_RIGHTS = "+exists +get +mset +unlink (and +select for a database other than 0) on ~lmcache:*"

logger = logging.getLogger("lmcache")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RedisServer:
    """The address of a server and how to log in. ``tls`` None: in the clear."""

    host: str
    port: int = 6379
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None


class RedisStore:
    """A store of values of ``value_bytes``, whose payloads are cut into parts of at most
    ``part_bytes``: a server that copies or frees one large string serves nobody meanwhile.

    Part 0, ``lmcache:NAME``, begins with the value's head. A value is there if all of its parts
    are, since a server evicts them one by one. One MSET stores it: all of it or nothing, so that a
    write that fails leaves what another process stored, and no reader sees two halves. Parts that
    do not belong together are found out by the head all the same. Redis Cluster, which would spread
    the parts, is not supported.
    """

    def __init__(self, server: RedisServer, value_bytes: int, part_bytes: int = PART_BYTES) -> None:
        self._server = server
        self._cuts = [0, *range(HEAD_BYTES + part_bytes, value_bytes, part_bytes), value_bytes]
        self._timeout_s = 0.0
        self._connection: RespConnection | None = None
        self._proven = False

    def connect(self, buffer: Bytes, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connect(timeout_s)

    def exists(self, names: Sequence[str]) -> list[bool]:
        def ask(connection: RespConnection) -> list[bool]:
            connection.send([[b"EXISTS", *self._parts(name)] for name in names])
            found = self._replies("EXISTS", [connection.reply] * len(names))
            return [reply == self._count for reply in found]

        return self._exchange(ask)

    def put(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        """Stores values. A user who may not write is refused each value, and may read on."""

        def send(connection: RespConnection) -> list[bool]:
            pairs = zip(names, values, strict=True)
            connection.send([[b"MSET", *self._pairs(name, value)] for name, value in pairs])
            try:
                stored = self._replies("MSET", [connection.reply] * len(names))
            except _Denied as denied:
                _warn_once(str(denied))
                return [False] * len(names)
            return [reply is not None for reply in stored]

        return self._exchange(send)

    def get_into(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        def receive(connection: RespConnection) -> list[bool]:
            connection.send([[b"GET", part] for name in names for part in self._parts(name)])
            pieces = [piece for value in values for piece in self._pieces(value)]
            here = self._replies("GET", [partial(connection.reply_into, p) for p in pieces])
            rows = range(0, len(here), self._count)
            return [all(here[row : row + self._count]) for row in rows]

        return self._exchange(receive)

    def remove(self, names: Sequence[str]) -> None:
        def drop(connection: RespConnection) -> None:
            connection.send([[b"UNLINK", *self._parts(name)] for name in names])
            self._replies("UNLINK", [connection.reply] * len(names))

        self._exchange(drop)

    def prove(self) -> None:
        """Stores an empty string, ``lmcache:ping``, and removes it."""
        name = f"{REDIS_PREFIX}ping".encode()
        attempts: list[list[WirePart]] = [[b"EXISTS", name], [b"GET", name]]
        attempts += [[b"MSET", name, b""], [b"UNLINK", name]]

        def attempt(connection: RespConnection) -> list[str]:
            denied = []
            for command in attempts:
                verb = _verb(command)
                connection.send([command])
                try:
                    self._replies(verb, [connection.reply])
                except _Denied:
                    denied.append(verb)
            return denied

        denied = self._exchange(attempt)
        if denied:
            raise _Denied(self._server, *denied)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, timeout_s: float) -> RespConnection:
        self.close()
        server = self._server
        connection = RespConnection(server.host, server.port, server.tls, timeout_s)
        self._connection, self._proven = connection, False
        commands: list[list[WirePart]] = []
        if server.password:
            user = [server.username.encode()] if server.username else []
            commands.append([b"AUTH", *user, server.password.encode()])
        if server.database:
            commands.append([b"SELECT", str(server.database).encode()])
        for command in commands:
            connection.send([command])
            self._replies(_verb(command), [connection.reply])
        return connection

    def _exchange(self, work: Callable[[RespConnection], _T]) -> _T:
        """Runs ``work`` within the timeout, and once more if a connection from before turns out to
        be dead: a server that was restarted, or closes what is idle, is no failure. All our
        commands may be repeated."""
        deadline = time.monotonic() + self._timeout_s
        connection = self._connection
        if connection is None:
            raise StoreError("not connected")
        connection.allow(self._timeout_s)
        try:
            result = work(connection)
        except (RespError, _Denied):
            raise
        except StoreError:
            left = deadline - time.monotonic()
            if not self._proven or left <= 0:
                raise
            result = work(self._connect(left))
        self._proven = True
        return result

    @property
    def _count(self) -> int:
        return len(self._cuts) - 1

    def _parts(self, name: str) -> list[bytes]:
        first = f"{REDIS_PREFIX}{name}".encode()
        return [first, *(b"%s:%d" % (first, i) for i in range(1, self._count))]

    def _pieces(self, value: Bytes) -> list[memoryview]:
        view = value.data
        return [view[a:b] for a, b in pairwise(self._cuts)]

    def _pairs(self, name: str, value: Bytes) -> list[WirePart]:
        pairs = zip(self._parts(name), self._pieces(value), strict=True)
        return [word for pair in pairs for word in pair]

    def _replies(self, verb: str, reads: Sequence[Callable[[], _T]]) -> list[_T | None]:
        """Returns what each of the reads brings, None for a value that was refused. All replies are
        read, so that the connection stays in step. Raises ``_Denied`` if the user may not do
        this."""
        replies: list[_T | None] = []
        denied = False
        for read in reads:
            try:
                replies.append(read())
            except RespError as error:
                if not error.reason.startswith(_ABOUT_A_VALUE):
                    raise
                denied |= error.reason.startswith(_DENIED)
                replies.append(None)
        if denied:
            raise _Denied(self._server, verb)
        return replies


class _Denied(StoreError):
    """The server denies the user a command; the connection is still in step."""

    def __init__(self, server: RedisServer, *verbs: str) -> None:
        super().__init__(
            f"{server.host}:{server.port}: the user {server.username or 'default'} may not"
            f" {', '.join(verbs)}; it needs {_RIGHTS}"
        )


def _verb(command: Sequence[WirePart]) -> str:
    return str(command[0], "ascii")


@cache
def _warn_once(text: str) -> None:
    logger.warning("%s: its values are read, and none is written", text)
