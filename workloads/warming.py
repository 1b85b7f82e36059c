"""Requests that make caches warm: the parts of others, in another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workloads.request import Request, Segment, TokenIds


def warming(requests: Sequence[Request]) -> list[Request]:
    """Requests that show every part between the first and the last segment of ``requests`` once.

    Each begins with the first request's first segment and ends with its last one, and has as many
    parts between as it has. Parts come in reverse order of their first use, so that hardly one
    stands where, and behind what, it stands in ``requests``. One token is generated. Requests of
    fewer than three segments give nothing.
    """
    parts: dict[bytes, tuple[str, TokenIds]] = {}
    for request in requests:
        for segment in request.segments[1:-1]:
            ids = request.token_ids[segment.start : segment.end]
            parts.setdefault(ids.tobytes(), (segment.kind, ids))
    if not parts:
        return []
    model = next(request for request in requests if len(request.segments) > 2)
    ends = [(s.kind, model.token_ids[s.start : s.end]) for s in model.segments]
    between = len(model.segments) - 2
    waiting = list(reversed(parts.values()))
    return [
        _request(f"warm{i // between}", [ends[0], *waiting[i : i + between], ends[-1]])
        for i in range(0, len(waiting), between)
    ]


def _request(name: str, parts: Sequence[tuple[str, TokenIds]]) -> Request:
    segments = []
    end = 0
    for kind, ids in parts:
        start, end = end, end + len(ids)
        segments.append(Segment(start, end, kind))
    tokens = np.concatenate([ids for _, ids in parts])
    tokens.flags.writeable = False
    return Request(name, name, 0.0, tokens, tuple(segments), 1)
