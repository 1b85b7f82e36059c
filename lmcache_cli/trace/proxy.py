"""The proxy: every request goes on as it came, every answer comes back as it was."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from lmcache_cli.trace.answer import Exchange
from lmcache_cli.trace.recorder import Recorder

_CHAT = {"/v1/completions": False, "/v1/chat/completions": True}
# Of one connection, not of the message: RFC 9110, section 7.6.1. `Expect` is answered here.
_HOP_BY_HOP = (
    hdrs.CONNECTION,
    hdrs.EXPECT,
    hdrs.KEEP_ALIVE,
    "Proxy-Connection",
    hdrs.TE,
    hdrs.TRAILER,
    hdrs.TRANSFER_ENCODING,
    hdrs.UPGRADE,
)
_FIELD_BYTES = 1 << 16
_BROKEN = (aiohttp.ClientError, OSError, TimeoutError)


def open_client() -> aiohttp.ClientSession:
    """Opens a client that adds, follows, keeps and unpacks nothing of its own."""
    return aiohttp.ClientSession(
        # uvicorn drops idle connections after 5 s; a request must not meet one that just dies.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
        skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT),
        max_line_size=_FIELD_BYTES,
        max_field_size=_FIELD_BYTES,
    )


class Proxy:
    """Forwards to ``url`` (scheme, host, no trailing slash) and tells ``recorder`` about
    completions. A client that leaves ends its request upstream too."""

    def __init__(self, client: aiohttp.ClientSession, url: str, recorder: Recorder) -> None:
        self._client = client
        self._url = url
        self._recorder = recorder
        self._number = 0
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        # aiohttp would log bad requests, bytes of them included.
        logging.getLogger("aiohttp").setLevel(logging.CRITICAL + 1)
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,
            max_line_size=_FIELD_BYTES,
            max_field_size=_FIELD_BYTES,
            shutdown_timeout=1.0,
        )

    async def start(self, listener: socket.socket) -> None:
        """Takes requests from ``listener``."""
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self, cut: asyncio.Event, grace_s: float) -> None:
        """Takes no new requests, lets open ones end for ``grace_s`` seconds or until ``cut``,
        then breaks them off; what came of them is recorded."""
        for site in list(self._runner.sites):
            await site.stop()
        waits = {asyncio.create_task(self._idle.wait()), asyncio.create_task(cut.wait())}
        await asyncio.wait(waits, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self._stopping = True
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        arrival_s = time.monotonic()
        # Appended to the server's address, anything else could name another host.
        if not request.raw_path.startswith("/"):
            return web.Response(status=400, text="lmcache trace record: not a path\n")
        chat = _CHAT.get(request.path) if request.method == hdrs.METH_POST else None
        self._open += 1
        self._idle.clear()
        try:
            if chat is None:
                return await self._forward(request, None)
            body = await request.read()
            self._number += 1
            exchange = Exchange(
                self._number,
                arrival_s,
                chat,
                body,
                request.headers.get(hdrs.AUTHORIZATION),
                request.headers.get("X-Session-Id"),
            )
            return await self._record(request, exchange)
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _record(self, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        try:
            return await self._forward(request, exchange)
        except asyncio.CancelledError:
            gone = "recording stopped" if self._stopping else "client disconnected"
            exchange.error = exchange.error or (None if exchange.answer.ended else gone)
            raise
        finally:
            exchange.answer.end(time.monotonic())
            if exchange.answer.failed and exchange.error is None:
                exchange.error = "error in the answer"
            self._recorder.finish(exchange)

    async def _forward(self, request: web.Request, exchange: Exchange | None) -> web.StreamResponse:
        headers = _passed_on(request.headers)
        headers.popall(hdrs.HOST, None)
        data: object = None
        if exchange is not None:
            # Its answer is read here, so it must come as it is.
            headers[hdrs.ACCEPT_ENCODING] = "identity"
            data = exchange.body
        elif request.can_read_body:
            data = request.content
        target = URL(self._url + request.raw_path, encoded=True)
        try:
            upstream = await self._client.request(
                request.method,
                target,
                headers=headers,
                data=data,
                allow_redirects=False,
                auto_decompress=False,
            )
        # ValueError: a header that is no text.
        except (*_BROKEN, ValueError):
            if exchange is not None:
                exchange.error = "upstream unreachable"
            return _bad_gateway(self._url)
        async with upstream:
            return await self._return(request, upstream, exchange)

    async def _return(
        self, request: web.Request, upstream: aiohttp.ClientResponse, exchange: Exchange | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=upstream.status, reason=upstream.reason, headers=_passed_on(upstream.headers)
        )
        if exchange is not None:
            exchange.answer.stream = upstream.content_type == "text/event-stream"
            if upstream.status >= 400:
                exchange.error = f"HTTP {upstream.status}"
        try:
            await response.prepare(request)
            pieces = upstream.content.iter_any()
            while True:
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    break
                except _BROKEN:
                    if exchange is not None:
                        exchange.error = "upstream failed"
                    # The client must see a broken answer, not one that merely ends early.
                    if request.transport is not None:
                        request.transport.close()
                    return response
                now_s = time.monotonic()
                await response.write(piece)
                if exchange is not None:
                    exchange.answer.feed(piece, now_s)
                    self._recorder.read(exchange)
            if exchange is not None:
                exchange.answer.ended = True
            await response.write_eof()
        except ConnectionError:
            if exchange is not None and not exchange.answer.ended:
                exchange.error = exchange.error or "client disconnected"
        return response


def _passed_on(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    named = [n.strip() for value in kept.getall(hdrs.CONNECTION, []) for n in value.split(",")]
    for name in (*_HOP_BY_HOP, *named):
        kept.popall(name, None)
    return kept


def _bad_gateway(url: str) -> web.Response:
    error: Mapping[str, object] = {
        "message": f"lmcache trace record: {url} can't be reached",
        "type": "upstream_unreachable",
        "code": 502,
    }
    return web.json_response({"error": error}, status=502)
