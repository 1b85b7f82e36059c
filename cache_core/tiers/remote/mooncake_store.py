"""Makes Mooncake Store a remote store; its client has a process of its own."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cache_core.tiers.remote.store import Bytes, StoreError

MOONCAKE_PREFIX = "lmcache/"
# Mooncake's codes for a call or a transfer that failed: RPC, time-out, a master that can't now.
_NOBODY = (-800, *range(-1099, -899))
# As long as the client itself takes to leave at most.
_LEAVING_S = 10.0
_LOCAL_BUFFER = 16 << 20
_LONGEST_REASON = 4096


@dataclass(frozen=True, slots=True)
class MooncakeServer:
    """A Mooncake master, and how this process takes part.

    ``segment_bytes`` of its client's memory hold values for everybody, and go with it; 0 makes
    it a mere client, which needs others that give memory. ``address`` is where the others reach
    this process, ``metadata`` is Mooncake's metadata server.
    """

    master: str
    segment_bytes: int = 0
    address: str = "127.0.0.1"
    metadata: str = "P2PHANDSHAKE"
    protocol: str = "tcp"
    devices: str = ""


class MooncakeClient:
    """The one client that all I/O workers share, which is large, in a process of its own: it can
    hang for minutes, and then nobody else does. Started when a channel is wanted, ended with the
    last user; one that ended by itself is started anew. Safe for any number of threads."""

    def __init__(self, server: MooncakeServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._joined = False
        self._users = 0

    def open(self) -> None:
        """Counts one user more."""
        with self._lock:
            self._users += 1

    def close(self) -> None:
        """Counts one user less. The last one ends the process, by force after ten seconds."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._end(_LEAVING_S if self._joined else 0.0)

    def channel(self, nbytes: int, timeout_s: float) -> Channel:
        """Opens a channel to the client, with ``nbytes`` of memory for values. Raises
        :class:`StoreError`, after ``timeout_s`` seconds if nobody answers; the client goes on
        trying then."""
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):
            raise StoreError(self._silent)
        try:
            control = self._join(deadline)
            ours, theirs = socket.socketpair()
            memory = os.memfd_create("lmcache")
            try:
                os.ftruncate(memory, nbytes)
                socket.send_fds(control, [b"c"], [theirs.fileno(), memory])
                return Channel(ours, memory, nbytes, deadline)
            except OSError as error:
                ours.close()
                raise StoreError(f"Mooncake's client has ended: {error}") from error
            finally:
                theirs.close()
                os.close(memory)
        finally:
            self._lock.release()

    @property
    def _silent(self) -> str:
        return f"the Mooncake master {self._server.master} does not answer"

    def _join(self, deadline: float) -> socket.socket:
        """Returns the line to a client that has joined the master."""
        if self._process is not None and self._process.poll() is not None:
            self._end(0)
        if self._control is None:
            self._knock(deadline)
            self._control = self._start()
        if not self._joined:
            self._control.settimeout(max(1e-3, deadline - time.monotonic()))
            try:
                word = self._control.recv(_LONGEST_REASON).decode("utf-8", "replace").strip()
            except TimeoutError:
                raise StoreError(f"{self._silent}; its client goes on trying to join") from None
            except OSError as error:
                word = str(error)
            if word != "ready":
                self._end(0)
                raise StoreError(word or self._silent)
            self._joined = True
        return self._control

    def _knock(self, deadline: float) -> None:
        """Checks that the master is there: Mooncake would look for an absent one for minutes."""
        host, _, port = self._server.master.rpartition(":")
        left = max(1e-3, deadline - time.monotonic())
        try:
            socket.create_connection((host.strip("[]"), int(port)), left).close()
        except OSError as error:
            raise StoreError(f"the Mooncake master {self._server.master}: {error}") from error

    def _start(self) -> socket.socket:
        server = self._server
        settings = (server.address, server.metadata, server.segment_bytes, _LOCAL_BUFFER)
        ways = (server.protocol, server.devices, server.master)
        ours, theirs = socket.socketpair()
        script = Path(__file__).with_name("mooncake_process.py")
        command = [sys.executable, "-P", str(script), str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                [*command, json.dumps([*settings, *ways])],
                stdin=subprocess.DEVNULL,
                stdout=2,  # ours is for data
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for us: it ends when we have
            )
        except OSError as error:
            ours.close()
            raise StoreError(f"Mooncake's client can't be started: {error}") from error
        finally:
            theirs.close()
        return ours

    def _end(self, timeout_s: float) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None
        self._joined = False


class Channel:
    """One I/O worker's way to the client's process: calls go over a socket, values through memory
    that both have. Raises :class:`StoreError`, and is of no use any more then: a value that comes
    late goes to memory that nobody reads."""

    def __init__(self, line: socket.socket, memory_fd: int, nbytes: int, deadline: float) -> None:
        self._line = Connection(line.detach())
        self.memory: Bytes = np.empty(0, dtype=np.uint8)
        if nbytes:
            self.memory = np.frombuffer(mmap.mmap(memory_fd, nbytes), dtype=np.uint8)
        try:
            word = self._hear(deadline)
            if word != "ready":
                raise StoreError(str(word))
        except BaseException:
            self.close()
            raise

    def call(self, timeout_s: float, verb: str, names: Sequence[str], *rest: Any) -> list[int]:
        """Calls the client and returns a code for each name. Raises :class:`StoreError`."""
        deadline = time.monotonic() + timeout_s
        try:
            self._line.send((verb, [MOONCAKE_PREFIX + name for name in names], *rest))
        except OSError as error:
            raise StoreError(f"Mooncake's client has ended: {error}") from error
        codes = self._hear(deadline)
        if isinstance(codes, str):
            raise StoreError(f"Mooncake: {codes}")
        for code in codes:
            if code in _NOBODY:
                raise StoreError(f"the Mooncake master does not answer (error {code})")
        answer: list[int] = codes
        return answer

    def close(self) -> None:
        """Closes the channel. Never raises."""
        with contextlib.suppress(OSError):
            self._line.close()

    def _hear(self, deadline: float) -> Any:
        try:
            if not self._line.poll(max(0.0, deadline - time.monotonic())):
                raise StoreError("Mooncake does not answer")
            return self._line.recv()
        except (EOFError, OSError) as error:
            raise StoreError("Mooncake's client has ended") from error


class MooncakeStore:
    """An I/O worker's view of the shared client."""

    def __init__(self, client: MooncakeClient) -> None:
        self._client = client
        self._using = False
        self._channel: Channel | None = None
        self._start = 0
        self._timeout_s = 0.0

    def connect(self, buffer: Bytes, timeout_s: float) -> None:
        if not self._using:
            self._client.open()
            self._using = True
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._start, self._timeout_s = buffer.ctypes.data, timeout_s
        self._channel = self._client.channel(buffer.nbytes, timeout_s)

    def exists(self, names: Sequence[str]) -> list[bool]:
        return [code == 1 for code in self._call("batch_is_exist", names)]

    def put(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        offsets, sizes = self._spans(values)
        for value, room in zip(values, self._rooms(offsets, sizes), strict=True):
            room[:] = value
        return [code == 0 for code in self._call("batch_upsert_from", names, offsets, sizes)]

    def get_into(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        offsets, sizes = self._spans(values)
        codes = self._call("batch_get_into", names, offsets, sizes)
        here = [code == size for code, size in zip(codes, sizes, strict=True)]
        rooms = self._rooms(offsets, sizes)
        for value, room, ok in zip(values, rooms, here, strict=True):
            if ok:
                value[:] = room
        return here

    def remove(self, names: Sequence[str]) -> None:
        # Forced: a value that was just looked at has a lease, which would keep it.
        self._call("batch_remove", names, True)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._using:
            self._client.close()
            self._using = False

    def _call(self, verb: str, names: Sequence[str], *rest: Any) -> list[int]:
        if self._channel is None:
            raise StoreError("not connected")
        return self._channel.call(self._timeout_s, verb, names, *rest)

    def _spans(self, values: Sequence[Bytes]) -> tuple[list[int], list[int]]:
        return [v.ctypes.data - self._start for v in values], [v.nbytes for v in values]

    def _rooms(self, offsets: list[int], sizes: list[int]) -> list[Bytes]:
        assert self._channel is not None
        memory = self._channel.memory
        return [memory[at : at + size] for at, size in zip(offsets, sizes, strict=True)]
