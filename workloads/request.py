"""One request to a serving engine, as tokens, and the labelled parts that prompts are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

TokenIds: TypeAlias = npt.NDArray[np.int32]

SEGMENT_KINDS = ("system", "document", "passage", "history", "question", "tool", "padding")
"""The kinds of a prompt's segments."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens [start, end) of a prompt and what they are, one of ``SEGMENT_KINDS``."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A prompt and when to send it.

    ``arrival_s`` is in seconds since the start of the run; in a closed loop it is 0 and the order
    of the list is the order of sending. ``token_ids`` is a read-only int32 array of shape [n].
    ``segments`` tile it, in order and without gaps. ``max_tokens`` is how many tokens to generate.
    ``answers`` are the right ones, where they are known.
    """

    id: str
    session: str
    arrival_s: float
    token_ids: TokenIds
    segments: tuple[Segment, ...]
    max_tokens: int
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Tokens of one kind (see ``SEGMENT_KINDS``), int32, shape [n]."""

    kind: str
    ids: TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that a workload makes; when it is sent and how much is generated is set later."""

    id: str
    session: str
    parts: tuple[Part, ...]

    def request(self, arrival_s: float, max_tokens: int, answers: tuple[str, ...] = ()) -> Request:
        """Makes a request of the parts in one read-only array. Empty parts leave no segment."""
        segments = []
        end = 0
        for part in self.parts:
            start, end = end, end + len(part.ids)
            if end > start:
                segments.append(Segment(start, end, part.kind))
        ids = np.concatenate([part.ids for part in self.parts])
        ids.flags.writeable = False
        return Request(self.id, self.session, arrival_s, ids, tuple(segments), max_tokens, answers)
