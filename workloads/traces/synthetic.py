"""Makes synthetic traces: as many requests as one likes that share as a given trace's do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workloads.draw import Draw
from workloads.request import Request
from workloads.traces.arrays import Ints, TraceArrays, load_arrays
from workloads.traces.formats.chats import token_chunks
from workloads.traces.reader import TraceRequest
from workloads.traces.summary import first_hits

_WINDOW = 64


def like(arrays: TraceArrays, requests: int, seed: int) -> TraceArrays:
    """Makes ``requests`` new requests in the manner of ``arrays``.

    Each draws an example: a request of the trace with its lengths, the time since the one before,
    how many of its chunks were seen before, and how many requests ago the last of these was used.
    It takes as many chunks from a synthetic request about as long ago that has them, and its other
    chunks are new. So the lengths, the pace, the depth of sharing and its age are the trace's; what
    is lost are rhythms over more than one request. The same seed gives the same trace.
    """
    draw = Draw("synthetic", seed)
    hits, ages = first_hits(arrays), _ages(arrays)
    counts = np.diff(arrays.offsets)
    gaps = np.diff(arrays.arrival_s, prepend=0.0)
    made: list[TraceRequest] = []
    fresh, time, sessions = 0, 0.0, 0
    for number in range(requests):
        i = draw.below(len(arrays))
        time += float(gaps[i]) if number else 0.0
        shared, session = np.empty(0, np.int64), ""
        wanted, age = int(hits[i]), int(ages[i])
        if wanted and made:
            parent = _parent(made, age, wanted, draw)
            shared = parent.chunks[:wanted]
            # A prompt that goes on where most of another ended is the same session's next turn.
            if 2 * len(shared) > len(parent.chunks) and arrays.session[i] >= 0:
                session = parent.session or ""
        new = int(counts[i]) - len(shared)
        chunks = np.concatenate([shared, np.arange(fresh, fresh + new, dtype=np.int64)])
        fresh += new
        if not session and arrays.session[i] >= 0:
            session, sessions = f"s{sessions}", sessions + 1
        made.append(
            TraceRequest(
                id=str(number),
                arrival_s=time,
                input_tokens=int(arrays.input_tokens[i]),
                output_tokens=int(arrays.output_tokens[i]),
                chunk_tokens=arrays.chunk_tokens,
                chunks=chunks,
                session=session or None,
            )
        )
    return load_arrays(made)


def of_requests(requests: Sequence[Request], chunk_tokens: int) -> TraceArrays:
    """Returns the trace that serving these requests would leave."""
    return load_arrays(
        TraceRequest(
            id=request.id,
            arrival_s=request.arrival_s,
            input_tokens=len(request.token_ids),
            output_tokens=request.max_tokens,
            chunk_tokens=chunk_tokens,
            chunks=token_chunks(request.token_ids.tolist(), chunk_tokens),
            session=request.session,
        )
        for request in requests
    )


def _ages(arrays: TraceArrays) -> Ints:
    """Returns how many requests ago the last of a request's leading seen chunks was used, int64
    [n]; 0 where none was seen."""
    ages = np.zeros(len(arrays), np.int64)
    last: dict[int, int] = {}
    for i, hit in enumerate(first_hits(arrays).tolist()):
        names = arrays.chunks(i).tolist()
        if hit:
            ages[i] = i - last[names[hit - 1]]
        last.update(dict.fromkeys(names, i))
    return ages


def _parent(made: Sequence[TraceRequest], age: int, wanted: int, draw: Draw) -> TraceRequest:
    """Chooses a request about ``age`` requests ago: the nearest that has ``wanted`` chunks; if
    there is none, the one of the most chunks that was looked at."""
    at = len(made) - age if age <= len(made) else draw.below(len(made))
    best = made[at]
    for step in range(_WINDOW):
        for place in (at - step, at + step):
            if 0 <= place < len(made):
                if len(made[place].chunks) >= wanted:
                    return made[place]
                if len(made[place].chunks) > len(best.chunks):
                    best = made[place]
    return best
