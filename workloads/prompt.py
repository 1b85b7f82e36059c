"""A prompt in the making: labelled parts, which prompts may share, and system prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workloads.generated import phrases
from workloads.request import Request, Segment, TokenIds
from workloads.tokens import PASSAGE_GAP, TokenReader

_SYSTEMS = phrases("systems")


def system_prompt(name: str, count: int, reader: TokenReader) -> Part:
    """Makes a system prompt of exactly ``count`` tokens, BOS included: the text of this name in
    ``workloads/data/systems.txt``, cut, or followed by notes from the corpus where it is too
    short."""
    return Part(
        "system", reader.read(count, _SYSTEMS[name] + PASSAGE_GAP + "Background:\n\n", first=True)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Tokens of one kind (see ``workloads.request.SEGMENT_KINDS``), int32, shape [n]."""

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
