"""The workload ``trace``: a trace's requests, with invented tokens that share as they did."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads.prompt import Part, Prompt
from workloads.request import Request, TokenIds
from workloads.synthesis import ChunkTokens
from workloads.traces.reader import ReadOptions
from workloads.traces.request import TraceRequest
from workloads.traces.trace import open_trace


@dataclass(frozen=True, slots=True)
class Replay:
    """What to replay. ``requests``: the first so many by arrival, None for all. ``speed_up``
    divides the times, ``scale`` multiplies all lengths; ``seed`` decides the tokens. Raises
    ``ValueError``, one line, for a value out of range."""

    path: Path
    format: str | None = None
    requests: int | None = None
    speed_up: float = 1.0
    scale: float = 1.0
    seed: int = 0
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.speed_up < float("inf"):
            raise ValueError(f"speed-up: {self.speed_up} must be a finite number above 0")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale: {self.scale} must be above 0 and at most 1")
        if self.requests is not None and self.requests < 1:
            raise ValueError(f"requests: {self.requests} is too small; it must be at least 1")


def replay(
    plan: Replay,
    encode: Callable[[str], Sequence[int]],
    bos: int | None,
    warn: Callable[[str], None] | None = None,
) -> list[Request]:
    """The trace's requests in the order of arrival, from time 0 on.

    A prompt is its chunks (or, where the trace tells them, its segments) as tokens, then as many
    tokens that no other prompt has as its length asks for. With ``scale``, a chunk of c tokens has
    round(c x scale), at least 1, and the rest of the prompt and the output shrink alike. ``bos``,
    if given, comes before all that. ``warn`` is told of malformed lines. The same arguments give
    the same requests. Raises ``TraceError`` if the trace can't be read and ``ValueError`` if chunks
    get too short to differ.
    """
    trace = open_trace(plan.path, plan.format, ReadOptions(chunk_tokens=plan.chunk_tokens))
    numbered = enumerate(trace.requests())
    # In memory are those that are replayed; ties keep the file's order.
    if plan.requests is None:
        chosen = sorted(numbered, key=_arrival)
    else:
        chosen = heapq.nsmallest(plan.requests, numbered, key=_arrival)
    bad = trace.malformed
    if bad.count and warn is not None:
        warn(f"{bad.count} malformed lines of the trace were left out; {bad.examples[0]}")
    tokens = ChunkTokens.from_text(encode, plan.seed)
    start = chosen[0][1].arrival_s
    first = () if bos is None else (Part("padding", np.array([bos], np.int32)),)
    requests = []
    for number, request in chosen:
        prompt = Prompt(
            request.id if request.id else str(number),
            request.session or f"r{number}",
            (*first, *_parts(request, number, plan.scale, tokens)),
        )
        time = (request.arrival_s - start) / plan.speed_up
        requests.append(prompt.request(time, max(1, round(request.output_tokens * plan.scale))))
    return _with_own_ids(requests)


def _parts(request: TraceRequest, number: int, scale: float, tokens: ChunkTokens) -> list[Part]:
    parts = []
    if request.segments:
        for segment in request.segments:
            length = max(1, round(segment.tokens * scale)) if segment.tokens else 0
            parts.append(Part(segment.kind, tokens.segment(segment.id, length)))
        rest = request.input_tokens - sum(segment.tokens for segment in request.segments)
    else:
        length = max(1, round(request.chunk_tokens * scale))
        named: list[TokenIds] = [tokens.chunk(name, length) for name in request.chunks.tolist()]
        if named:
            parts.append(Part("history", np.concatenate(named)))
        rest = request.input_tokens - len(request.chunks) * request.chunk_tokens
    shrunk = round(rest * scale)
    if not shrunk and not parts:
        shrunk = 1
    parts.append(Part("question", tokens.unique(number, shrunk)))
    return parts


def _with_own_ids(requests: list[Request]) -> list[Request]:
    """A trace may use an id twice, a bench may not."""
    if len({request.id for request in requests}) == len(requests):
        return requests
    return [
        Request(f"{i}:{r.id}", r.session, r.arrival_s, r.token_ids, r.segments, r.max_tokens)
        for i, r in enumerate(requests)
    ]


def _arrival(numbered: tuple[int, TraceRequest]) -> tuple[float, int]:
    return numbered[1].arrival_s, numbered[0]
