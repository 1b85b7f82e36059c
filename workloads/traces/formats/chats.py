"""Requests and talks as JSON lines: text, which a tokenizer turns into chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workloads.traces.fields import chained, named, seconds, text, whole
from workloads.traces.lines import Lines, Malformed, Record, TraceError
from workloads.traces.reader import ChunkIds, Head, ReadOptions, Tokenize, TraceRequest

_CHUNK = 16
_TIMES = ("timestamp", "arrival_s", "created", "created_at", "start_time", "session_timestamp")
_LENGTHS = ("output_tokens", "output_length", "max_completion_tokens", "max_tokens")
_GAPS = ("delay", "pre_gap")
_TEXTS = ("messages", "prompt", "text_input", "text", "texts", "input")
_TALKS = ("turns", "conversations", "conversation")
_MILLISECONDS = ("text_input", "text", "texts", "turns")
"""What aiperf calls its prompts; its times are in milliseconds."""
_SAID = ("value", "content", "text", "texts")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}


class Chats:
    """Reads requests as text. OpenAI's: ``messages`` or ``prompt`` (text or token ids), at the top,
    in ``body`` as in batch files, or in ``request`` as inference-perf writes them; LMCache's agent
    traces (``input``, ``pre_gap`` in s); aiperf's (``text_input`` or ``turns``, times and ``delay``
    in ms); talks of ShareGPT (``conversations``) and LMSYS (``conversation``), which are a request
    per turn of the user's. Times, sessions (``session_id``, ``user``) and output lengths are read
    where a line has them; a delay counts from the session's request before. If the last message is
    the assistant's, it is the answer."""

    name = "openai-chat"
    holds = "prompts as text (needs a tokenizer): of OpenAI, LMCache's agents, aiperf, ShareGPT"
    shares = True

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this holds requests as text."""
        try:
            inner = _body(head.record or {})
        except ValueError:
            return False
        return any(isinstance(inner.get(name), str | list) for name in (*_TEXTS, *_TALKS))

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of the file; unusable lines are counted in
        ``malformed``. Raises ``TraceError`` without a tokenizer."""
        if options.tokenize is None:
            raise TraceError(f"{path}: holds text; name the model's tokenizer (--tokenizer)")
        tokenize = options.tokenize
        chunk = options.chunk_tokens or _CHUNK
        start: list[float] = []
        clock: dict[str, float] = {}

        def request(name: str, both: Record, of: Record, unit: float) -> TraceRequest:
            prompt, answer = _split(both)
            tokens = _tokens(tokenize, prompt)
            session = text(both, "session_id", "conversation_id", "user", *of)
            time = _time(both, session or "", clock, unit)
            if not start:
                start.append(time)
            length = next((whole(both, key) for key in _LENGTHS if both.get(key) is not None), 0)
            return TraceRequest(
                id=name,
                arrival_s=time - start[0],
                input_tokens=len(tokens),
                output_tokens=length if answer is None else len(_tokens(tokenize, answer)),
                chunk_tokens=chunk,
                chunks=token_chunks(tokens, chunk),
                session=session,
            )

        lines = Lines(path, malformed)
        for number, record in lines.records():
            try:
                body = _body(record)
                both = body | record
                name = text(record, "custom_id", "id", "request_id") or str(number)
                aiperf = any(key in body for key in _MILLISECONDS)
                unit = options.unit_s or (0.001 if aiperf else 1.0)
                talk = next((key for key in _TALKS if isinstance(body.get(key), list)), None)
                if talk is None:
                    made = [request(name, both, {}, unit)]
                else:
                    first = {key: both[key] for key in both if key != talk} | {"own": name}
                    # A line's own time is that of its first turn.
                    later = {key: first[key] for key in first if key not in _TIMES}
                    made = [
                        request(f"{name}.{i}", (later if i else first) | turn, {"own": name}, unit)
                        for i, turn in enumerate(_turns(body[talk]))
                    ]
            except ValueError as error:
                lines.bad(number, error)
                continue
            yield from made
            malformed.good -= len(made) - 1  # lines are counted, not turns


def _body(record: Record) -> Record:
    inner = record.get("body", record.get("request", record))
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except ValueError:
            raise ValueError("request is no JSON") from None
    if not isinstance(inner, dict):
        raise ValueError("body is no object")
    return inner


def _time(both: Record, session: str, clock: dict[str, float], unit: float) -> float:
    """Returns when a request came, in seconds on the clock of the file."""
    field = next((name for name in _TIMES if both.get(name) is not None), None)
    gap = next((name for name in _GAPS if both.get(name) is not None), None)
    if field:
        time = seconds(both, field, unit)
    else:
        time = clock.get(session, 0.0) + (seconds(both, gap, unit) if gap else 0.0)
    clock[session] = time
    return time


def _turns(entries: list[Any]) -> list[Record]:
    """Returns a request per turn of the user's: all messages before it, its text, and the answer
    that follows, where the talk has it."""
    turns: list[Record] = []
    said: list[Record] = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError("a turn is no object")
        role = str(entry.get("role") or entry.get("from") or "user")
        content = next((entry[name] for name in _SAID if name in entry), None)
        if isinstance(content, list):
            content = " ".join(map(str, content))
        if not isinstance(content, str):
            raise ValueError("a turn has no text")
        message = {"role": _ROLES.get(role, role), "content": content}
        if message["role"] == "assistant" and turns:
            turns[-1]["messages"].append(message)
        said.append(message)
        if message["role"] != "user":
            continue
        if len(said) > 1 and said[-2]["role"] == "user":  # templates want turns to alternate
            said.insert(-1, {"role": "assistant", "content": ""})
        turns.append(entry | {"messages": list(said)})
    if not turns:
        raise ValueError("no turn is the user's")
    return turns


def token_chunks(tokens: Sequence[int], chunk_tokens: int) -> ChunkIds:
    """Returns the names of the full chunks of a prompt, int64, shape [n]."""
    ids = list(tokens)
    names = np.empty(len(ids) // chunk_tokens, np.int64)
    before = 0
    for i in range(len(names)):
        before = chained(before, named(ids[i * chunk_tokens : (i + 1) * chunk_tokens]))
        names[i] = before
    return names


def _split(body: Record) -> tuple[Any, str | None]:
    """Splits a request's body into (prompt, answer or None)."""
    messages = body.get("messages")
    if messages is None:
        prompt = next((body[name] for name in _TEXTS if body.get(name) is not None), None)
        if not isinstance(prompt, str | list) or not prompt:
            raise ValueError("prompt is neither text nor token ids")
        if isinstance(prompt, list) and all(isinstance(part, str) for part in prompt):
            return " ".join(prompt), None
        if not (isinstance(prompt, list) and isinstance(prompt[0], dict)):
            return prompt, None
        messages = prompt
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages is no list of messages")
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            raise ValueError("a message has no role")
    last = messages[-1]
    if last["role"] == "assistant" and len(messages) > 1 and isinstance(last.get("content"), str):
        return messages[:-1], last["content"]
    return messages, None


def _tokens(tokenize: Tokenize, prompt: Any) -> Sequence[int]:
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return prompt
    try:
        return tokenize(prompt)
    # A chat template refuses in its own words, by whatever its author chose to raise.
    except Exception as error:
        raise ValueError(f"can't be tokenized ({error})") from error
