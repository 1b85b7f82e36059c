"""Runs Mooncake's client in a process of its own: ``python mooncake_process.py FD SETTINGS``.

Mooncake holds the interpreter's lock while it joins a master, for minutes if that does not answer,
so it must not do that in the process that serves. This one is started by
:mod:`~cache_core.tiers.remote.mooncake_store`, imports nothing of ours, and ends with its parent:
FD is a Unix socket, on which it says ``ready`` or why it can't be, and then gets channels, each a
socket and the memory that values go through. SETTINGS are the arguments of Mooncake's ``setup`` as
JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

_JOINING_S = 120
_LEAVING_S = 10
_VERBS = ("batch_is_exist", "batch_upsert_from", "batch_get_into", "batch_remove")


def main() -> None:
    """Joins the master, serves channels until the parent is gone, and leaves."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        with ending_with(control):
            client = join(json.loads(sys.argv[2]))
    except (ImportError, ConnectionError) as error:
        control.sendall(f"{error}\n".encode())
        return
    control.sendall(b"ready\n")
    while True:
        word, fds, _, _ = socket.recv_fds(control, 1, 2)
        if not word:
            break
        threading.Thread(target=serve, args=(client, *fds), daemon=True).start()
    signal.alarm(_LEAVING_S)
    client.close()
    os._exit(0)  # a channel may hang in a call


@contextlib.contextmanager
def ending_with(control: socket.socket) -> Iterator[None]:
    """Has the kernel end this process if the other end, which says nothing yet, is closed, or after
    two minutes: no thread of ours can run while Mooncake joins."""
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, flags | os.O_ASYNC)  # SIGIO, which ends who doesn't ask
    signal.alarm(_JOINING_S)
    try:
        if select.select([control], [], [], 0)[0]:
            raise ConnectionError("nobody is there")
        yield
    finally:
        signal.alarm(0)
        fcntl.fcntl(control, fcntl.F_SETFL, flags)


def join(settings: list[Any]) -> Any:
    """Returns a client that has joined the master. Raises ``ImportError`` or
    ``ConnectionError``."""
    try:
        from mooncake.store import MooncakeDistributedStore
    except ImportError as error:
        raise ImportError(
            f"Mooncake's client can't be loaded ({error}); it needs the package"
            " mooncake-transfer-engine-non-cuda and the system's libibverbs1"
        ) from error
    client = MooncakeDistributedStore()
    status = client.setup(*settings)
    if status:
        raise ConnectionError(f"the Mooncake master {settings[-1]} can't be used (error {status})")
    return client


def serve(client: Any, channel_fd: int, memory_fd: int) -> None:
    """Answers one channel's calls until the other end is closed. Addresses come as offsets."""
    channel = Connection(channel_fd)
    size = os.fstat(memory_fd).st_size
    memory = mmap.mmap(memory_fd, size) if size else None
    os.close(memory_fd)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) if memory is not None else 0
    with contextlib.suppress(EOFError, OSError):
        if size and client.register_buffer(start, size):
            channel.send(f"Mooncake can't register {size} bytes of memory")
            return
        channel.send("ready")
        while True:
            verb, names, *rest = channel.recv()
            if verb not in _VERBS:
                raise ValueError(f"{verb} is no verb")
            if rest and verb != "batch_remove":
                rest[0] = [start + offset for offset in rest[0]]
            try:
                channel.send(getattr(client, verb)(names, *rest))
            except RuntimeError as error:
                channel.send(str(error))
    channel.close()
    if size:
        client.unregister_buffer(start)


if __name__ == "__main__":
    main()
