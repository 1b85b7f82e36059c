"""Sends one streamed request to ``/v1/completions`` and notes what came, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_ERROR_CHARS = 300


@dataclass(slots=True)
class Completion:
    """The answer to one completion request. Times are in seconds of ``time.perf_counter``.

    ``token_s`` has one time per token where the server names its tokens (``ids``), else one per
    event that carried text. ``cached_tokens`` are the prompt's that the server says it had.
    ``error`` is None if all went well; ``lost`` tells that the server itself is the trouble: it
    can't be reached, is silent, or hung up.
    """

    sent_s: float
    finished_s: float = 0.0
    token_s: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    ended: bool = False
    error: str | None = None
    lost: bool = False
    status: int = 0


async def complete(
    http: aiohttp.ClientSession, url: str, body: bytes, request_id: str, secret: str
) -> Completion:
    """Sends a JSON ``body`` and reads the stream to its end. Never raises for what a server can
    do: a failure is in the answer. ``secret`` is blotted out of what the server says."""
    headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
    answer = Completion(time.perf_counter())
    try:
        async with http.post(url, data=body, headers=headers, allow_redirects=False) as response:
            answer.status = response.status
            if response.status != 200:
                text = (await response.content.read(1 << 16)).decode(errors="replace")
                answer.error = f"HTTP {response.status}: {_said(text)}"
            elif response.content_type != "text/event-stream":
                answer.error = f"the answer is {response.content_type}, not an event stream"
            else:
                await _read(response.content, answer)
    except TimeoutError as error:
        kind = "no connection" if isinstance(error, aiohttp.ConnectionTimeoutError) else "silence"
        answer.error, answer.lost = f"{kind} until the time limit (--request-timeout)", True
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
        answer.error = f"the connection failed or broke off: {error or type(error).__name__}"
        answer.lost = True
    except aiohttp.ClientError as error:
        answer.error = f"no proper HTTP: {error or type(error).__name__}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        answer.error = f"an event that is no completion: {type(error).__name__}: {error}"
    answer.finished_s = answer.token_s[-1] if answer.ended else time.perf_counter()
    if answer.error is not None:
        answer.error = scrubbed(answer.error, secret)
        answer.finished_s = time.perf_counter()
    return answer


def scrubbed(text: str, secret: str) -> str:
    """Returns the text on one line of bounded length, without the secret."""
    if secret:
        text = text.replace(secret, "***")
    line = " ".join(text.split())
    return line if len(line) <= _ERROR_CHARS else line[:_ERROR_CHARS] + "..."


async def _read(content: aiohttp.StreamReader, answer: Completion) -> None:
    done = False
    async for data in _events(content):
        now = time.perf_counter()
        if data == b"[DONE]":
            done = True
            break
        _take(json.loads(data), now, answer)
        if answer.error is not None:
            return
    if not (done or answer.ended):
        answer.error = f"the stream broke off after {len(answer.token_s)} tokens"
        answer.lost = True
    elif not answer.token_s:
        answer.error = "the stream ended without a token"
    else:
        answer.ended = True


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yields the ``data`` of each event. (A reader by lines would refuse the long ones: the first
    event of vLLM repeats the prompt.)"""
    rest = b""
    while chunk := await content.readany():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


def _take(event: dict[str, Any], now: float, answer: Completion) -> None:
    if event.get("error"):
        answer.error = f"the server stopped: {_said(json.dumps(event))}"
        return
    for choice in event.get("choices") or ():
        ids, text = choice.get("token_ids"), choice.get("text") or ""
        answer.text += text
        if ids:
            answer.ids += [int(token) for token in ids]
            answer.token_s += [now] * len(ids)
        elif text:
            answer.token_s.append(now)
        if choice.get("finish_reason"):
            answer.ended = True
    if usage := event.get("usage"):
        answer.prompt_tokens = int(usage["prompt_tokens"])
        answer.output_tokens = int(usage["completion_tokens"])
        details = usage.get("prompt_tokens_details") or {}
        answer.cached_tokens = int(details.get("cached_tokens") or 0)


def _said(text: str) -> str:
    """Returns the message in an error document, or the text itself if it is none."""
    try:
        found = json.loads(text)
        error = found.get("error", found)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return text or "(nothing)"


async def ask_json(
    http: aiohttp.ClientSession, url: str, body: object = None, limit_s: float = 30.0
) -> tuple[int, Any]:
    """Sends a GET, or a POST of a JSON ``body``, and returns (status, document), the document None
    if it is no JSON. Raises ``aiohttp.ClientError``, ``OSError`` or ``TimeoutError`` if there is no
    answer."""
    method = "GET" if body is None else "POST"
    limit = aiohttp.ClientTimeout(total=limit_s)
    async with (
        asyncio.timeout(limit_s),
        http.request(method, url, json=body, timeout=limit, allow_redirects=False) as response,
    ):
        try:
            return response.status, json.loads(await response.read())
        except ValueError:
            return response.status, None
