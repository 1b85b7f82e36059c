"""Runs ``lmcache trace record``: from the flags to a finished file."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from rich.console import Console

from cache_core.trace_writer import TraceWriter
from lmcache_cli.errors import EXIT_FAILED, MissingError, UserError, ending_signals
from lmcache_cli.trace.prompt import AskedPrompt, LocalTokens, ServerTokens, TokenSource
from lmcache_cli.trace.proxy import Proxy, open_client
from lmcache_cli.trace.recorder import Recorder, counts_text, live_count

_PROBE_S = 10.0
# How long open requests may go on after the first Ctrl-C.
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """The flags of ``lmcache trace record``. ``duration_s`` and ``requests``: when to stop by
    itself; None is never."""

    out: Path
    url: str | None
    listen: str
    tokenizer: str | None
    chunk_tokens: int
    duration_s: float | None
    requests: int | None
    quiet: bool
    kv_events: str | None = None
    """Where a vLLM server publishes its KV events, in place of ``url`` and the proxy."""


def run_recording(options: RecordOptions) -> int:
    """Records until it is stopped; returns the exit code. What was recorded is in the file however
    it ends.

    Raises ``UserError`` for flags that can't work, ``MissingError`` if the server or a tokenizer is
    missing.
    """
    if (options.url is None) == (options.kv_events is None):
        raise UserError(
            "give --url (a proxy in front of a server) or --kv-events (what a vLLM server"
            " publishes), one of them"
        )
    if options.out.exists():
        raise UserError(f"{options.out} is there already; name a new file, or remove it first")
    if not options.out.parent.is_dir():
        raise UserError(f"{options.out.parent} is no folder; make it, or name another file")
    if options.kv_events is not None:
        return _events(options, options.kv_events)
    url, (host, port) = _server_url(options.url or ""), _address(options.listen)
    local = LocalTokens(options.tokenizer) if options.tokenizer else None
    return asyncio.run(_record(options, url, host, port, local))


def _events(options: RecordOptions, endpoint: str) -> int:
    for name in ("zmq", "msgspec"):
        if find_spec(name) is None:
            raise MissingError(f"--kv-events needs {name}; pip install 'lmcache-bench[kv-events]'")
    from lmcache_cli.trace.kv_events import record_events

    def open_writer(block_tokens: int, start_s: float) -> TraceWriter:
        return _writer(replace(options, chunk_tokens=block_tokens), "", start_s, "kv-events")

    return asyncio.run(
        record_events(open_writer, endpoint, options.duration_s, options.requests, options.quiet)
    )


async def _record(
    options: RecordOptions, url: str, host: str, port: int, local: LocalTokens | None
) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    async with open_client() as client:
        key = os.environ.get("OPENAI_API_KEY")
        authorization = f"Bearer {key}" if key else None
        model = await _model(client, url, authorization)
        # The file last: a start that fails leaves none behind.
        with _listener(host, port) as listener:
            sources = await _sources(client, url, model, authorization, local, console)
            writer = _writer(options, model, time.monotonic())
            recorder = Recorder(writer, options.chunk_tokens, sources, options.requests)
            try:
                await _until_stopped(
                    options, Proxy(client, url, recorder), recorder, listener, url, console
                )
            finally:
                with contextlib.suppress(OSError):
                    writer.close()
    counts = recorder.counts
    if recorder.trouble is not None:
        console.print(
            f"lmcache: {options.out} can't be written ({recorder.trouble.strerror}) after"
            f" {counts_text(counts)}; make room, and record into another file",
            markup=False,
        )
        return EXIT_FAILED
    console.print(f"{options.out}: {counts_text(counts)}", markup=False)
    if counts.unnamed:
        console.print(
            f"without chunks, because not turned into tokens: {counts.unnamed:,};"
            " name the server's own tokenizer with --tokenizer"
        )
    if counts.differing:
        console.print(
            f"prompts with another length than the server counted: {counts.differing:,};"
            " is --tokenizer the server's own?"
        )
    return 0


async def _until_stopped(
    options: RecordOptions,
    proxy: Proxy,
    recorder: Recorder,
    listener: socket.socket,
    url: str,
    console: Console,
) -> None:
    stop, cut = asyncio.Event(), asyncio.Event()

    def interrupted() -> None:
        (cut if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in ending_signals():
        loop.add_signal_handler(number, interrupted)
    try:
        await proxy.start(listener)
        here = _netloc(*listener.getsockname()[:2])
        if not options.quiet:
            console.print(f"recording http://{here} -> {url}; Ctrl-C ends it", markup=False)
        with live_count(console, recorder.counts, options.quiet):
            waits = [asyncio.create_task(event.wait()) for event in (stop, recorder.full)]
            await asyncio.wait(
                waits, timeout=options.duration_s, return_when=asyncio.FIRST_COMPLETED
            )
            for wait in waits:
                wait.cancel()
            stop.set()
            await proxy.stop(cut, _GRACE_S)
            await recorder.drain()
    finally:
        for number in ending_signals():
            loop.remove_signal_handler(number)


async def _model(client: aiohttp.ClientSession, url: str, authorization: str | None) -> str:
    """Returns the first model that the server lists, or an empty string."""
    headers = {"Authorization": authorization} if authorization else {}
    timeout = aiohttp.ClientTimeout(total=_PROBE_S)
    try:
        async with client.get(f"{url}/v1/models", headers=headers, timeout=timeout) as answer:
            said = await answer.json(content_type=None)
    except ValueError as error:
        if isinstance(error, aiohttp.InvalidURL):
            raise UserError(f"--url: {url} is no address of a server") from None
        return ""
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise MissingError(
            f"--url: {url} can't be reached ({reason}); start the server, or name where it is"
        ) from None
    models = said.get("data") if isinstance(said, dict) else None
    first = models[0] if isinstance(models, list) and models else None
    name = first.get("id") if isinstance(first, dict) else None
    return name if isinstance(name, str) else ""


async def _sources(
    client: aiohttp.ClientSession,
    url: str,
    model: str,
    authorization: str | None,
    local: LocalTokens | None,
    console: Console,
) -> Sequence[TokenSource]:
    server = ServerTokens(client, url)
    text = AskedPrompt("text", "one two three")
    chat = AskedPrompt("chat", [{"role": "user", "content": "one two three"}])
    takes_text = await server.token_ids(model, text, authorization)
    if takes_text is None:
        if local is None:
            raise MissingError(
                f"{url} has no /tokenize that answers; give --tokenizer FOLDER_OR_ID, the"
                " tokenizer of its model"
            )
        return [local]
    if local is not None:
        return [server, local]
    if await server.token_ids(model, chat, authorization) is None:
        console.print(
            f"{url}/tokenize takes no messages, so chats will have no chunks;"
            " if this server serves chats, give --tokenizer FOLDER_OR_ID",
            markup=False,
        )
    return [server]


def _writer(
    options: RecordOptions, model: str, start_s: float, source: str = "proxy"
) -> TraceWriter:
    try:
        return TraceWriter(options.out, options.chunk_tokens, source, model, start_s)
    except FileExistsError:
        raise UserError(
            f"{options.out} is there already; name a new file, or remove it first"
        ) from None
    except OSError as error:
        raise UserError(
            f"{options.out} can't be written ({error.strerror}); name another file"
        ) from None


def _server_url(text: str) -> str:
    """Returns the server's URL without the /v1 that clients want at the end: /tokenize is beside
    it."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UserError(f"--url: {text!r} is no address; write it like http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise UserError("--url: leave name and password out; clients send their own key")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def _address(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        raise UserError(f"--listen: {text!r} is no address; write it like 127.0.0.1:8100")
    # Whoever reaches the proxy reaches the server behind it.
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise UserError(f"--listen: {host} is no loopback address; use 127.0.0.1, ::1 or localhost")
    return host, port


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            f"--listen: {host}:{port} can't be had ({reason}); name another port"
        ) from None


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
