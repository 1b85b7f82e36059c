"""Speaks Redis's protocol (RESP2) on a socket: what a cache needs of it, without copies.

Bulk strings are sent from, and received into, the caller's memory, and one deadline covers a whole
exchange however slowly bytes drip. General clients copy every value several times and can bound
only single socket calls.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Sequence

from cache_core.tiers.remote.store import StoreError

_READ_AHEAD = 16 << 10
_MOST_VECTORS = 512
_LONGEST_LINE = 64 << 10

WirePart = bytes | memoryview


class RespError(StoreError):
    """The server refused a command, for the ``reason`` that it gave."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} answered: {reason}")
        self.reason = reason


class RespConnection:
    """One connection to a Redis server. Raises :class:`StoreError` for anything that goes wrong but
    a server's ``-ERR``, which comes as :class:`RespError` and leaves the connection usable."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        self._where = f"{host}:{port}"
        self._buffer = bytearray(_READ_AHEAD)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._deadline = 0.0
        self.allow(timeout_s)
        try:
            plain = socket.create_connection((host, port), timeout_s)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise self._broken(error) from error
        self._socket = plain
        if tls is not None:
            try:
                plain.settimeout(self._left())
                self._socket = tls.wrap_socket(plain, server_hostname=host)
            except OSError as error:
                plain.close()
                raise self._broken(error) from error

    def allow(self, timeout_s: float) -> None:
        """Sets how long the exchange that starts now may take in all."""
        self._deadline = time.monotonic() + timeout_s

    def send(self, commands: Sequence[Sequence[WirePart]]) -> None:
        """Sends commands in one go. The caller reads one reply for each, in order."""
        vectors: list[WirePart] = []
        text = bytearray()
        for command in commands:
            text += b"*%d\r\n" % len(command)
            for part in command:
                text += b"$%d\r\n" % len(part)
                if isinstance(part, bytes):
                    text += part
                else:
                    vectors += (bytes(text), part)
                    text.clear()
                text += b"\r\n"
        vectors.append(bytes(text))
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                for vector in vectors:
                    self._socket.settimeout(self._left())
                    self._socket.sendall(vector)
            else:
                self._send_vectors([memoryview(v) for v in vectors])
        except OSError as error:
            raise self._broken(error) from error

    def reply(self) -> int | bytes | None:
        """Reads an integer, a status or a string (at most 16 KiB), or nil."""
        kind, text = self._header()
        if kind == b"$":
            size = int(text)
            if size < 0:
                return None
            if size > _READ_AHEAD:
                raise StoreError(f"{self._where} sent {size} bytes where a few were due")
            value = bytearray(size)
            self._into(memoryview(value))
            self._crlf()
            return bytes(value)
        if kind == b":":
            return int(text)
        if kind == b"+":
            return text
        raise StoreError(f"{self._where} does not speak Redis's protocol")

    def reply_into(self, target: memoryview) -> bool:
        """Reads a string of exactly ``target``'s size. Returns False for nil and for one of another
        size, which is read and dropped."""
        kind, text = self._header()
        if kind != b"$":
            raise StoreError(f"{self._where} sent {kind.decode('latin-1')!r} where a value was due")
        size = int(text)
        if size < 0:
            return False
        if size != len(target):
            self._skip(size + 2)
            return False
        self._into(target)
        self._crlf()
        return True

    def close(self) -> None:
        """Closes the connection. Never raises."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _header(self) -> tuple[bytes, bytes]:
        line = self._line()
        kind, text = line[:1], line[1:]
        if kind == b"-":
            raise RespError(self._where, text.decode("utf-8", "replace"))
        if kind in b"$:" and not text.removeprefix(b"-").isdigit():
            raise StoreError(f"{self._where} does not speak Redis's protocol")
        return kind, text

    def _line(self) -> bytes:
        line = b""
        while True:
            at = self._buffer.find(b"\n", self._start, self._end)
            if at >= 0:
                line += self._buffer[self._start : at]
                self._start = at + 1
                return line.removesuffix(b"\r")
            line += self._buffer[self._start : self._end]
            if len(line) > _LONGEST_LINE:
                raise StoreError(f"{self._where} does not speak Redis's protocol")
            self._fill()

    def _fill(self) -> None:
        """Reads what there is into the emptied buffer."""
        self._start, self._end = 0, 0
        self._end = self._receive(self._view)

    def _into(self, target: memoryview) -> None:
        ready = min(len(target), self._end - self._start)
        target[:ready] = self._view[self._start : self._start + ready]
        self._start += ready
        while ready < len(target):
            ready += self._receive(target[ready:])

    def _crlf(self) -> None:
        self._skip(2)

    def _skip(self, count: int) -> None:
        while count > 0:
            if self._start == self._end:
                self._fill()
            step = min(count, self._end - self._start)
            self._start += step
            count -= step

    def _receive(self, target: memoryview) -> int:
        try:
            self._socket.settimeout(self._left())
            count = self._socket.recv_into(target)
        except OSError as error:
            raise self._broken(error) from error
        if not count:
            raise StoreError(f"{self._where} closed the connection")
        return count

    def _send_vectors(self, vectors: list[memoryview]) -> None:
        at = 0
        while at < len(vectors):
            self._socket.settimeout(self._left())
            sent = self._socket.sendmsg(vectors[at : at + _MOST_VECTORS])
            while at < len(vectors) and sent >= len(vectors[at]):
                sent -= len(vectors[at])
                at += 1
            if sent:
                vectors[at] = vectors[at][sent:]

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _broken(self, error: OSError) -> StoreError:
        return StoreError(f"{self._where}: {error}")
