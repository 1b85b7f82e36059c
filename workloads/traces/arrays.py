"""A whole trace as arrays, for curves over capacities and for queues."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from workloads.traces.lines import TraceError
from workloads.traces.reader import ChunkIds, TraceRequest

Names = Literal["prefix", "content"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TraceArrays:
    """Requests in the order of arrival; n of them, with r chunks in all.

    ``chunk_ids`` is int64 [r], and request i has ``chunk_ids[offsets[i]:offsets[i + 1]]``, in the
    order of the prompt; ``offsets`` is int64 [n + 1]. ``arrival_s`` is float64 [n], from 0 on and
    never falling; ``input_tokens`` and ``output_tokens`` are int64 [n]. ``session`` is int64 [n],
    an index into ``session_names``, or -1. ``chunk_tokens`` is 0 for a trace that has lengths only.
    """

    chunk_ids: ChunkIds
    offsets: Ints
    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    session: Ints
    session_names: tuple[str, ...]
    chunk_tokens: int

    def __len__(self) -> int:
        return len(self.arrival_s)

    def chunks(self, request: int) -> ChunkIds:
        """Returns a request's chunks, int64 [n], a view."""
        return self.chunk_ids[self.offsets[request] : self.offsets[request + 1]]

    def longer_chunks(self, times: int) -> TraceArrays:
        """Returns the same trace in chunks of ``times`` as many tokens: with prefix names, the name
        of the last part names the whole. Raises ``ValueError`` below 1."""
        if times < 1:
            raise ValueError(f"times: {times} is too small; it must be at least 1")
        counts = np.diff(self.offsets)
        offsets = _offsets(counts // times)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts // times)
        taken = np.repeat(self.offsets[:-1], counts // times) + (within + 1) * times - 1
        return replace(
            self,
            chunk_ids=self.chunk_ids[taken],
            offsets=offsets,
            chunk_tokens=self.chunk_tokens * times,
        )


def load_arrays(
    requests: Iterable[TraceRequest], *, names: Names = "prefix", tails: bool = False
) -> TraceArrays:
    """Loads all requests, sorted by arrival (equal times keep the file's order). What is in memory
    is 8 bytes per chunk and 50 per request, twice while it sorts.

    ``names="content"`` takes the names of chunks at any position where the trace has them, which is
    RAGPulse; of others, prefix names: there, what comes after a difference counts as different.
    ``tails=True`` adds the partial chunk at the end under the trace's own name, as simulators that
    count blocks do; caches of full chunks never hit it. Raises ``TraceError`` if the requests are
    in chunks of different lengths.
    """
    chunk_ids, counts, sessions = array("q"), array("q"), array("q")
    arrivals, inputs, outputs = array("d"), array("q"), array("q")
    codes: dict[str, int] = {}
    chunk_tokens = 0
    for request in requests:
        if request.chunk_tokens != chunk_tokens:
            if len(counts):
                raise TraceError(
                    f"request {request.id} is in chunks of {request.chunk_tokens} tokens, others"
                    f" of {chunk_tokens}; split the trace"
                )
            chunk_tokens = request.chunk_tokens
        named = request.chunks
        if names == "content" and request.content is not None:
            named = request.content
        chunk_ids.frombytes(np.ascontiguousarray(named, np.int64).tobytes())
        tail = tails and request.tail is not None
        if tail and request.tail is not None:
            chunk_ids.append(request.tail)
        counts.append(len(named) + tail)
        arrivals.append(request.arrival_s)
        inputs.append(request.input_tokens)
        outputs.append(request.output_tokens)
        name = request.session
        sessions.append(-1 if name is None else codes.setdefault(name, len(codes)))
    return _sorted(
        TraceArrays(
            np.frombuffer(chunk_ids, np.int64) if len(chunk_ids) else np.empty(0, np.int64),
            _offsets(np.array(counts, np.int64)),
            np.array(arrivals, np.float64),
            np.array(inputs, np.int64),
            np.array(outputs, np.int64),
            np.array(sessions, np.int64),
            tuple(codes),
            chunk_tokens,
        )
    )


def _sorted(arrays: TraceArrays) -> TraceArrays:
    times = arrays.arrival_s
    if not len(times):
        return arrays
    times = times - times.min()
    order = np.argsort(times, kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return replace(arrays, arrival_s=times)
    counts = np.diff(arrays.offsets)[order]
    offsets = _offsets(counts)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    return replace(
        arrays,
        chunk_ids=arrays.chunk_ids[np.repeat(arrays.offsets[:-1][order], counts) + within],
        offsets=offsets,
        arrival_s=times[order],
        input_tokens=arrays.input_tokens[order],
        output_tokens=arrays.output_tokens[order],
        session=arrays.session[order],
    )


def _offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
