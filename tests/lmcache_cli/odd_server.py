"""A small HTTP server that misbehaves on request: ``python odd_server.py PORT [tokenize]``.

The header ``X-Behave`` names what a completion does; every other path is answered with what came.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

EVENT = b'data: {"choices": [{"index": 0, "text": "word"}]}\n\n'


class Odd(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tokenizes = False

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"data": [{"id": "odd"}]})
        else:
            self._echo(b"")

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/tokenize":
            self._tokenize(body)
        elif self.path == "/v1/completions" and "X-Behave" in self.headers:
            getattr(self, f"_{self.headers['X-Behave']}")(body)
        else:
            self._echo(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_PUT = do_DELETE = do_POST

    def _tokenize(self, body: bytes) -> None:
        asked = json.loads(body)
        if self.tokenizes and isinstance(asked.get("prompt"), str):
            self._send(200, {"tokens": list(asked["prompt"].encode())})
        else:
            self._send(404, {})

    def _echo(self, body: bytes) -> None:
        said = [self.command, self.path, self.headers.items(), body.decode("latin-1")]
        self._send(200, said, {"X-Answer": "kept"})

    def _refuse(self, body: bytes) -> None:
        # Real servers quote the prompt in their errors.
        self._send(500, {"error": {"message": body.decode()}})

    def _garbage(self, body: bytes) -> None:
        self._raw(b"\xff\xfe{not json")

    def _die(self, body: bytes) -> None:
        self._begin_stream()
        os._exit(1)

    def _break_off(self, body: bytes) -> None:
        self._begin_stream()
        self.close_connection = True

    def _fail_late(self, body: bytes) -> None:
        self._begin_stream()
        self._chunk(b'data: {"error": {"message": "out of memory"}}\n\n')
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _split(self, body: bytes) -> None:
        """Events in pieces that end in the middle of a character; usage at the end."""
        usage = {"prompt_tokens": 40, "completion_tokens": 7}
        events = 'data: {"choices": [{"index": 0, "text": "wörd"}]}\r\n\r\n'.encode()
        events += f"data: {json.dumps({'choices': [], 'usage': usage})}\r\n\r\n".encode()
        self._begin_stream(b"")
        for byte in events + b"data: [DONE]\r\n\r\n":
            self._chunk(bytes([byte]))
        self._chunk(b"")

    def _endless(self, body: bytes) -> None:
        print("asked", flush=True)
        with contextlib.suppress(OSError):
            self._begin_stream()
            while True:
                time.sleep(0.02)
                self._chunk(EVENT)
        print("left", flush=True)

    def _silent(self, body: bytes) -> None:
        print("asked", flush=True)
        self.connection.recv(1)
        print("left", flush=True)
        self.close_connection = True

    def _begin_stream(self, first: bytes = EVENT) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if first:
            self._chunk(first)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _send(self, status: int, said: object, headers: dict[str, str] | None = None) -> None:
        self._raw(json.dumps(said).encode(), status, headers or {})

    def _raw(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    Odd.tokenizes = "tokenize" in sys.argv[2:]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Odd).serve_forever()
