"""Real HTTP servers that speak OpenAI's completions API well, badly, or not at all."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import numpy as np

from workloads.request import Request, Segment

Write = Callable[[str], None]
Behaviour = Callable[["Handler", dict[str, Any], int], None]


class Server(ThreadingHTTPServer):
    """``behave(handler, body, number)`` answers the completion of that number, from 0 on."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, behave: Behaviour, models: list[dict[str, Any]], key: str, tokenize: bool
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.models, self.key, self.tokenize = behave, models, key, tokenize
        self.lock = threading.Lock()
        self.seen: list[dict[str, Any]] = []
        self.released = threading.Event()
        self.shift = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def home(self) -> Server:
        return cast(Server, self.server)

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.document(200, {"data": self.home.models})
        else:
            self.document(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.home.key and given != self.home.key:
            self.document(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        elif self.path == "/tokenize" and self.home.tokenize:
            ids = [byte + self.home.shift for byte in body["prompt"].encode()]
            self.document(200, {"tokens": ids})
        elif self.path == "/v1/completions":
            with self.home.lock:
                number = len(self.home.seen)
                self.home.seen.append(body)
            self.home.behave(self, body, number)
        else:
            self.document(404, {"detail": "Not Found"})

    def document(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @contextmanager
    def stream(self) -> Iterator[Write]:
        """Writes pieces of an event stream; leaving ends it properly."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def write(text: str) -> None:
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        yield write
        if self.close_connection:
            return
        self.wfile.write(b"0\r\n\r\n")


def event(document: object) -> str:
    return f"data: {json.dumps(document)}\n\n"


def token(text: str, ids: list[int] | None = None, end: bool = False) -> str:
    choice = {"index": 0, "text": text, "finish_reason": "length" if end else None}
    return event({"choices": [choice | ({} if ids is None else {"token_ids": ids})]})


def well(handler: Handler, body: dict[str, Any], number: int) -> None:
    """What a server with vLLM's extensions says; every token is ``x``."""
    count = body["max_tokens"]
    with handler.stream() as write:
        for i in range(count):
            write(token("x", [120], end=i == count - 1))
        usage: dict[str, Any] = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}
        usage["prompt_tokens_details"] = {"cached_tokens": 16 if number > 2 else 0}
        write(event({"choices": [], "usage": usage}))
        write("data: [DONE]\n\n")


def strict(handler: Handler, body: dict[str, Any], number: int) -> None:
    """What a cloud says: text only, and no field that OpenAI does not have."""
    extra = set(body) & {"ignore_eos", "return_token_ids"}
    if extra or not isinstance(body["prompt"], str):
        handler.document(400, {"error": {"message": f"unknown: {sorted(extra)}"}})
        return
    with handler.stream() as write:
        write(": a comment\n\n")
        write(token("Hello") + token(" wor")[:20])
        write(token(" wor")[20:] + token("ld", end=True))
        usage = {"prompt_tokens": 50, "completion_tokens": 3, "prompt_tokens_details": None}
        write(event({"choices": [], "usage": usage}))
        write("data: [DONE]\n\n")


def hang_up(handler: Handler) -> None:
    """Closing would not do: the handler's files hold the socket too."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def bad(handler: Handler, how: str) -> None:
    """One of the ways in which a server can go wrong."""
    if how == "500":
        handler.document(500, {"error": {"message": "out of memory"}})
    elif how == "no stream":
        handler.document(200, {"choices": [{"text": "all at once"}]})
    elif how == "no http":
        handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        handler.close_connection = True
    elif how == "hangs":
        handler.home.released.wait(60)
    elif how == "hangs amid":
        with handler.stream() as write:
            write(token("x", [120]))
            handler.home.released.wait(60)
    elif how == "hangs up":
        hang_up(handler)
    else:
        with handler.stream() as write:
            write(token("x", [120]))
            if how == "dies":
                hang_up(handler)
                return
            pieces = {
                "garbage": "data: {not json\n\n",
                "no object": "data: [1, 2]\n\n",
                "wrong shape": event({"choices": [7]}),
                "error event": event({"error": {"message": "engine is dead", "code": 500}}),
                "cut short": "",
            }
            write(pieces.get(how, ""))


@contextmanager
def odd_server(
    behave: Behaviour = well,
    *,
    models: list[dict[str, Any]] | None = None,
    key: str = "",
    tokenize: bool = True,
) -> Iterator[Server]:
    """A server on a free port of the loopback interface, until the block is left."""
    if models is None:
        models = [{"id": "odd", "max_model_len": 4096, "owned_by": "test"}]
    server = Server(behave, models, key, tokenize)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def requests(count: int, every_s: float = 0.0, length: int = 32) -> list[Request]:
    """What to ask them: no two begin alike."""
    return [
        Request(
            f"r{i}",
            "s",
            i * every_s,
            np.arange(i, i + length, dtype=np.int32),
            (Segment(0, length, "question"),),
            3,
        )
        for i in range(count)
    ]
