"""Sums up a trace: lengths, arrivals, and the most that a cache could serve of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from workloads.traces.arrays import TraceArrays, load_arrays
from workloads.traces.reader import ChunkIds, TraceRequest
from workloads.traces.trace import Trace

TRACE_INFO_SCHEMA = "lmcache.trace-info/1"


def summary(trace: Trace) -> dict[str, Any]:
    """Sums up a trace as plain values, JSON-ready. Ceilings are shares of all prompt tokens that a
    cache without limits, empty at first, would serve: by prefix, and at any position, where the
    trace names content (null if not). Rates are null for a trace without lengths, sharing or times.
    """
    content = Watched()
    arrays = load_arrays(content.watch(trace.requests()))
    tokens = int(arrays.input_tokens.sum())
    duration = float(arrays.arrival_s[-1])
    shares = trace.reader.shares
    return {
        "schema": TRACE_INFO_SCHEMA,
        "file": str(trace.path),
        "format": trace.format,
        "holds": trace.reader.holds,
        "requests": len(arrays),
        "duration_s": duration,
        "arrival_rate_per_s": (len(arrays) - 1) / duration if duration > 0 else None,
        "sessions": len(arrays.session_names),
        "input_tokens": tokens,
        "output_tokens": int(arrays.output_tokens.sum()),
        "input_length": _percentiles(arrays.input_tokens),
        "output_length": _percentiles(arrays.output_tokens),
        "chunk_tokens": arrays.chunk_tokens or None,
        "chunks": len(arrays.chunk_ids) if shares else None,
        "unique_chunks": len(np.unique(arrays.chunk_ids)) if shares else None,
        "ceiling_prefix": ceiling(arrays) if shares else None,
        "ceiling_any_position": content.ceiling(tokens) if shares else None,
        "malformed": {"count": trace.malformed.count, "examples": list(trace.malformed.examples)},
        "malformed_share": trace.malformed.share,
        "guess": trace.guess or None,
    }


def ceiling(arrays: TraceArrays) -> float:
    """Returns the share of prompt tokens that a prefix cache without limits would serve, 0..1."""
    tokens = int(arrays.input_tokens.sum())
    return float(first_hits(arrays).sum()) * arrays.chunk_tokens / tokens if tokens else 0.0


def first_hits(arrays: TraceArrays) -> npt.NDArray[np.int64]:
    """Returns how many leading chunks of each request an earlier one had too, int64 [requests]."""
    owner = np.repeat(np.arange(len(arrays)), np.diff(arrays.offsets))
    _, first, inverse = np.unique(arrays.chunk_ids, return_index=True, return_inverse=True)
    # Within one request, a chunk is not served by its own first occurrence.
    seen_before = owner[first][inverse] < owner
    misses = np.flatnonzero(~seen_before)
    at = np.searchsorted(misses, arrays.offsets[:-1])
    ends = np.append(misses, len(arrays.chunk_ids))[at]
    hits: npt.NDArray[np.int64] = np.minimum(ends, arrays.offsets[1:]) - arrays.offsets[:-1]
    return hits


class Watched:
    """Counts hits while requests go by: those at any position, whose sum no order changes, since of
    a chunk's requests all but the earliest hit, and those that the recording server reported."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._hit_tokens = self._reported = 0
        self._known = False

    def watch(self, requests: Any) -> Any:
        """Yields the same requests, and counts their hits."""
        for request in requests:
            self._note(request)
            yield request

    def ceiling(self, tokens: int) -> float | None:
        """Returns the hits' share of ``tokens``; None if no request named content."""
        return self._hit_tokens / tokens if self._known and tokens else None

    def reported(self, tokens: int) -> float | None:
        """Returns the share of ``tokens`` that the recording server served from its caches; None if
        it told of no hit."""
        return self._reported / tokens if self._reported and tokens else None

    def _note(self, request: TraceRequest) -> None:
        self._reported += request.hit_tokens
        if request.content is None:
            return
        self._known = True
        names = request.content.tolist()
        self._hit_tokens += sum(name in self._seen for name in names) * request.chunk_tokens
        self._seen.update(names)


def _percentiles(lengths: ChunkIds) -> dict[str, float]:
    values = {f"p{p}": float(np.percentile(lengths, p)) for p in (50, 90, 99)}
    return {"mean": float(lengths.mean()), **values, "max": float(lengths.max())}
