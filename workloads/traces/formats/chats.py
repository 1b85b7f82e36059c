"""OpenAI-style requests as JSON lines: text, which a tokenizer turns into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workloads.traces.fields import chained, named, seconds, text, value, whole
from workloads.traces.lines import Lines, Malformed, Record, TraceError
from workloads.traces.reader import ChunkIds, Head, ReadOptions, Tokenize, TraceRequest, each

_CHUNK = 16
_TIMES = ("timestamp", "arrival_s", "created", "created_at")
_LENGTHS = ("output_tokens", "output_length", "max_completion_tokens", "max_tokens")


class Chats:
    """Reads OpenAI-style requests: ``messages`` or ``prompt`` (text or token ids), at the top or in
    ``body`` as in batch files. Times, sessions (``session_id``, ``user``) and output lengths are
    read where a line has them. If the last message is the assistant's, it is the answer."""

    name = "openai-chat"
    holds = "OpenAI requests: messages or prompt, as text (needs a tokenizer)"
    shares = True

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this holds OpenAI-style requests."""
        record = head.record or {}
        body = record.get("body")
        inner = body if isinstance(body, dict) else record
        return "messages" in inner or "prompt" in inner

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

        def make(number: int, record: Record) -> TraceRequest:
            body = record.get("body", record)
            if not isinstance(body, dict):
                raise ValueError("body is no object")
            prompt, answer = _split(body)
            tokens = _tokens(tokenize, prompt)
            both = body | record
            field = next((name for name in _TIMES if name in both), None)
            time = seconds(both, field, options.unit_s or 1.0) if field else 0.0
            if not start:
                start.append(time)
            length = next((whole(both, name) for name in _LENGTHS if name in both), 0)
            return TraceRequest(
                id=text(record, "custom_id", "id", "request_id") or str(number),
                arrival_s=time - start[0],
                input_tokens=len(tokens),
                output_tokens=length if answer is None else len(_tokens(tokenize, answer)),
                chunk_tokens=chunk,
                chunks=token_chunks(tokens, chunk),
                session=text(both, "session_id", "conversation_id", "user"),
            )

        return each(Lines(path, malformed), make)


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
    if "messages" not in body:
        prompt = value(body, "prompt")
        if not isinstance(prompt, str | list) or not prompt:
            raise ValueError("prompt is neither text nor token ids")
        return prompt, None
    messages = body["messages"]
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
