"""The protocol of Redis: large values, refusals, and servers that speak slowly or nonsense."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest

from cache_core.tiers.remote.resp import RespConnection, RespError
from cache_core.tiers.remote.store import StoreError
from tests.cache_core.servers import silent_server


@pytest.mark.parametrize("mute", ["silent", "dripping", "chattering"])
def test_a_server_that_speaks_too_slowly_or_nonsense(mute: str) -> None:
    """A byte now and then resets no clock: one deadline covers the exchange."""
    stop = threading.Event()

    def drip(server: socket.socket) -> None:
        peer, _ = server.accept()
        with peer:
            while not stop.wait(0.01):
                try:
                    peer.send(b"+" if mute == "dripping" else b"HTTP/1.1 400 Bad Request\r\n")
                except OSError:
                    return

    if mute == "silent":
        with silent_server() as port, pytest.raises(StoreError, match="timed out"):
            ask(port)
        return
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        pattern = "timed out" if mute == "dripping" else "does not speak Redis's protocol"
        with pytest.raises(StoreError, match=pattern):
            ask(server.getsockname()[1])
        stop.set()
        thread.join()


def ask(port: int) -> None:
    connection = RespConnection("127.0.0.1", port, None, 0.3)
    try:
        connection.send([[b"PING"]])
        connection.reply()
    finally:
        connection.close()


def test_a_refused_command_leaves_the_connection_usable(redis_port: int) -> None:
    connection = RespConnection("127.0.0.1", redis_port, None, 5)
    connection.send([[b"NOSUCH"], [b"PING"]])
    with pytest.raises(RespError, match="unknown command"):
        connection.reply()
    assert connection.reply() == b"PONG"
    connection.close()


def test_large_values_arrive_whole(redis_port: int) -> None:
    """More than a socket buffer, sent from and received into views, in one pipeline."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (8, 3 << 20), dtype=np.uint8)
    rooms = np.zeros_like(values)
    connection = RespConnection("127.0.0.1", redis_port, None, 30)
    connection.send([[b"SET", b"big%d" % i, value.data] for i, value in enumerate(values)])
    assert [connection.reply() for _ in values] == [b"OK"] * 8
    connection.send([[b"GET", b"big%d" % i] for i in range(8)])
    assert [connection.reply_into(room.data) for room in rooms] == [True] * 8
    assert np.array_equal(values, rooms)
    connection.send([[b"UNLINK", *(b"big%d" % i for i in range(8))]])
    assert connection.reply() == 8
    connection.close()
