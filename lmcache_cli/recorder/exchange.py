"""One request and its answer, as far as the recording needs them."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmcache_cli.recorder.answer import Answer


@dataclass(slots=True)
class Exchange:
    """``number`` counts requests in the order of their arrival. ``error`` is a word of ours, never
    a server's message: those quote prompts. What is private stays out of ``repr``."""

    number: int
    arrival_s: float
    chat: bool
    body: bytes = field(repr=False)
    authorization: str | None = field(default=None, repr=False)
    session: str | None = field(default=None, repr=False)
    answer: Answer = field(default_factory=Answer, repr=False)
    error: str | None = None
