"""Reads what a server answers as it passes: first token, usage, text to count."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_TEXTS = ("content", "reasoning", "reasoning_content", "refusal", "text")


class StreamedAnswer:
    """Reads a JSON body or a stream of server-sent events, in pieces of any size. Never raises
    on what it is fed: what can't be understood is left out.

    ``first_token_s`` is when the first piece with output came (streams only). ``prompt_tokens``,
    ``output_tokens`` and ``cached_tokens`` are what the server says, None if it doesn't.
    """

    def __init__(self) -> None:
        self.stream = False
        self.first_token_s: float | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.failed = False
        self.ended = False
        self._texts: dict[int, list[str]] = {}
        self._rest = bytearray()

    def feed(self, data: bytes, now_s: float) -> None:
        """Takes the next bytes of the body, which came at ``now_s``."""
        self._rest += data
        if not self.stream:
            return
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            self._line(bytes(line), now_s)

    def end(self, now_s: float) -> None:
        """Ends the body: no more bytes will come."""
        rest = bytes(self._rest)
        self._rest.clear()
        if self.stream:
            self._line(rest, now_s)
        else:
            self._object(rest, None)

    def texts(self, first: int, count: int) -> list[str]:
        """Returns the output of choices ``first`` to ``first + count - 1``, those that have any."""
        found = ("".join(self._texts.get(i, ())) for i in range(first, first + count))
        return [text for text in found if text]

    def _line(self, line: bytes, now_s: float) -> None:
        name, _, value = line.strip().partition(b":")
        value = value.strip()
        if name != b"data" or not value:
            return
        if value == b"[DONE]":
            self.ended = True
        else:
            self._object(value, now_s)

    def _object(self, data: bytes, now_s: float | None) -> None:
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(said, dict):
            return
        if said.get("error"):
            self.failed = True
        if isinstance(usage := said.get("usage"), dict):
            self._usage(usage)
        choices = said.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._choice(choice, now_s)

    def _usage(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
        self.output_tokens = _count(usage.get("completion_tokens"), self.output_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.cached_tokens = _count(details.get("cached_tokens"), self.cached_tokens)

    def _choice(self, choice: dict[str, Any], now_s: float | None) -> None:
        text = _text(choice)
        if not text:
            return
        if self.first_token_s is None:
            self.first_token_s = now_s
        index = choice.get("index")
        self._texts.setdefault(index if isinstance(index, int) else 0, []).append(text)


def _text(choice: dict[str, Any]) -> str:
    parts = []
    for said in (choice, choice.get("delta"), choice.get("message")):
        if not isinstance(said, dict):
            continue
        # Servers that have renamed `reasoning_content` send it under both names.
        names = [n for n in _TEXTS if n != "reasoning_content" or not said.get("reasoning")]
        parts += [said[name] for name in names if isinstance(said.get(name), str)]
        calls = said.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                found = (function.get("name"), function.get("arguments"))
                parts += [value for value in found if isinstance(value, str)]
    return "".join(parts)


def _count(value: object, otherwise: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else otherwise


@dataclass(slots=True)
class Exchange:
    """One request and its answer. ``number`` counts requests in the order of their arrival.
    ``error`` is a word of ours, never a server's message: those quote prompts. What is private
    stays out of ``repr``."""

    number: int
    arrival_s: float
    chat: bool
    body: bytes = field(repr=False)
    authorization: str | None = field(default=None, repr=False)
    session: str | None = field(default=None, repr=False)
    answer: StreamedAnswer = field(default_factory=StreamedAnswer, repr=False)
    error: str | None = None
