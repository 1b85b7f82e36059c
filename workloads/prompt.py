"""A prompt in the making: labelled parts, which prompts may share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workloads.request import Request, Segment, TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Tokens of one kind (see ``workloads.request.KINDS``), int32, shape [n]."""

    kind: str
    ids: TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What a workload makes; when it is sent and how much is generated is settled later."""

    id: str
    session: str
    parts: tuple[Part, ...]

    def request(self, arrival_s: float, max_tokens: int, answers: tuple[str, ...] = ()) -> Request:
        """The parts in one read-only array. Empty parts leave no segment."""
        segments = []
        end = 0
        for part in self.parts:
            start, end = end, end + len(part.ids)
            if end > start:
                segments.append(Segment(start, end, part.kind))
        ids = np.concatenate([part.ids for part in self.parts])
        ids.flags.writeable = False
        return Request(self.id, self.session, arrival_s, ids, tuple(segments), max_tokens, answers)
