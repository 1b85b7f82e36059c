"""Writes exchanges as lines of a trace, away from the requests' own way, and counts them as they
come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.trace_writer import ServedRequest, TraceWriter
from lmcache_cli.trace.answer import Exchange
from lmcache_cli.trace.prompt import AskedPrompt, AskedPrompts, TokenSource, read_body


@dataclass(slots=True)
class Counts:
    """What was recorded so far: ``shared_tokens`` are prompt tokens in chunks that came before,
    ``unnamed`` the requests whose prompt could not be turned into tokens, ``differing`` those for
    which the server counted other prompt tokens than were hashed."""

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    shared_tokens: int = 0
    unnamed: int = 0
    differing: int = 0

    @property
    def sharing(self) -> float:
        """Returns the share of the prompt tokens in chunks that came before, 0 to 1."""
        return self.shared_tokens / self.input_tokens if self.input_tokens else 0.0

    def saw(self, one: ServedRequest, names: set[bytes], chunk_tokens: int) -> None:
        """Counts a request; ``names`` are those of the chunks that came before, and get its."""
        self.requests += 1
        self.input_tokens += one.input_tokens
        self.output_tokens += one.output_tokens
        self.shared_tokens += chunk_tokens * sum(key in names for key in one.keys)
        names.update(one.keys)


class Recorder:
    """Writes a line per prompt. ``sources`` are asked for tokens in turn. Sets ``full`` when
    ``limit`` requests are written, or when the file can't be written: see ``trouble``."""

    def __init__(
        self,
        writer: TraceWriter,
        chunk_tokens: int,
        sources: Sequence[TokenSource],
        limit: int | None = None,
    ) -> None:
        self.counts = Counts()
        self.full = asyncio.Event()
        self.trouble: OSError | None = None
        self._writer = writer
        # Only sharing matters here, not the shape of the KV.
        self._layout = KVLayout(1, 1, 1, "int8", chunk_tokens)
        self._sources = sources
        self._limit = limit
        self._seen: set[bytes] = set()
        self._reading: dict[
            int, asyncio.Task[tuple[AskedPrompts, list[list[int] | None]] | None]
        ] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def read(self, exchange: Exchange) -> None:
        """Starts to turn the prompt into tokens. Worth calling once the answer has begun: earlier
        it would delay the first token, at the end the server may be gone."""
        if exchange.number not in self._reading:
            self._reading[exchange.number] = asyncio.create_task(self._read(exchange))

    def finish(self, exchange: Exchange) -> None:
        """Ends the exchange: it is written as soon as its tokens are known."""
        self.read(exchange)
        task = asyncio.create_task(self._write(exchange))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def drain(self) -> None:
        """Waits until everything that was finished is written."""
        while self._writing:
            await asyncio.wait(self._writing)

    async def _read(self, exchange: Exchange) -> tuple[AskedPrompts, list[list[int] | None]] | None:
        try:
            asked = read_body(exchange.body, exchange.chat)
        except (ValueError, RecursionError):
            return None
        finally:
            exchange.body = b""
        key = exchange.authorization
        return asked, [await self._ids(asked.model, prompt, key) for prompt in asked.prompts]

    async def _ids(
        self, model: str, prompt: AskedPrompt, authorization: str | None
    ) -> list[int] | None:
        if isinstance(prompt.content, list) and prompt.kind == "tokens":
            ids: list[int] | None = prompt.content  # type: ignore[assignment]
        else:
            for source in self._sources:
                if (ids := await source.token_ids(model, prompt, authorization)) is not None:
                    break
            else:
                return None
        return ids if ids is None or prompt.keep_last is None else ids[-prompt.keep_last :]

    async def _write(self, exchange: Exchange) -> None:
        read = await self._reading[exchange.number]
        del self._reading[exchange.number]
        lines = [self._unread(exchange)] if read is None else await self._lines(exchange, *read)
        if self.trouble is not None or (self._limit and self.counts.requests >= self._limit):
            return
        try:
            for line in lines:
                self._writer.write(line)
        except OSError as error:
            self.trouble = error
            self.full.set()
            return
        self._count(exchange, lines)
        if self._limit and self.counts.requests >= self._limit:
            self.full.set()

    def _unread(self, exchange: Exchange) -> ServedRequest:
        said = exchange.answer
        return ServedRequest(
            str(exchange.number),
            exchange.arrival_s,
            said.prompt_tokens or 0,
            said.output_tokens or 0,
            [],
            session=_plain(exchange.session),
            ttft_s=_since(exchange),
            error=exchange.error or "prompt not understood",
        )

    async def _lines(
        self, exchange: Exchange, asked: AskedPrompts, tokens: Sequence[list[int] | None]
    ) -> list[ServedRequest]:
        lines = []
        alone = len(tokens) == 1
        said = exchange.answer
        for place, (prompt, ids) in enumerate(zip(asked.prompts, tokens, strict=True)):
            # The server's usage is of all prompts together, so it says nothing about one of many.
            length = said.prompt_tokens if alone else None
            output = said.output_tokens if alone else None
            keys = self._keys(asked.model, prompt, ids or ())
            if ids is not None and length is not None and length != len(ids):
                self.counts.differing += 1
                keys = keys[: length // self._layout.chunk_tokens]
            if output is None:
                texts = said.texts(place * asked.choices, asked.choices)
                output = await self._lengths(asked.model, texts, exchange.authorization)
            cached = said.cached_tokens if alone else None
            prompt_tokens = len(ids or ()) if length is None else length
            lines.append(
                ServedRequest(
                    str(exchange.number) if alone else f"{exchange.number}.{place}",
                    exchange.arrival_s,
                    prompt_tokens,
                    output,
                    keys,
                    # Which tier they came from, a server doesn't say.
                    {"cached": cached} if cached and cached <= prompt_tokens else {},
                    _plain(exchange.session or asked.user),
                    _since(exchange),
                    exchange.error or (None if ids is not None else "prompt not tokenized"),
                )
            )
        return lines

    def _keys(self, model: str, prompt: AskedPrompt, ids: Sequence[int]) -> list[bytes]:
        namespace = Namespace(self._layout, model, salt=prompt.salt)
        try:
            return ChunkHasher(namespace).keys(ids).prefix if ids else []
        except (OverflowError, ValueError):
            # Token ids that no server takes; it has said so itself.
            return []

    async def _lengths(self, model: str, texts: list[str], authorization: str | None) -> int:
        total = 0
        for text in texts:
            prompt = AskedPrompt("text", text, {"add_special_tokens": False})
            total += len(await self._ids(model, prompt, authorization) or ())
        return total

    def _count(self, exchange: Exchange, lines: Sequence[ServedRequest]) -> None:
        counts = self.counts
        counts.requests += 1
        counts.failed += exchange.error is not None
        counts.unnamed += exchange.error is None and any(line.error for line in lines)
        for line in lines:
            counts.input_tokens += line.input_tokens
            counts.output_tokens += line.output_tokens
            # Eight bytes of each key are enough to count, and a recording may be long.
            short = [key[:8] for key in line.keys]
            known = sum(key in self._seen for key in short)
            counts.shared_tokens += known * self._layout.chunk_tokens
            self._seen.update(short)


def _plain(session: str | None) -> str | None:
    # What came as bytes that are no UTF-8 must not stop the line.
    return session and session.encode("utf-8", "backslashreplace").decode()


def _since(exchange: Exchange) -> float | None:
    first = exchange.answer.first_token_s
    return None if first is None else first - exchange.arrival_s


def counts_text(counts: Counts) -> str:
    """Formats ``12 requests (1 failed), 3,456 prompt and 78 output tokens, 61% seen before``: of
    the prompt tokens."""
    failed = f" ({counts.failed:,} failed)" if counts.failed else ""
    return (
        f"{counts.requests:,} request{'' if counts.requests == 1 else 's'}{failed},"
        f" {counts.input_tokens:,} prompt and {counts.output_tokens:,} output tokens,"
        f" {counts.sharing:.0%} seen before"
    )


def live_count(console: Console, counts: Counts, quiet: bool) -> AbstractContextManager[object]:
    """Shows a line of the counts, redrawn on a terminal; nothing when ``quiet`` or elsewhere."""
    if quiet or not console.is_terminal:
        return nullcontext()
    return Live(
        console=console,
        get_renderable=lambda: Text(counts_text(counts)),
        refresh_per_second=2,
        transient=True,
    )
