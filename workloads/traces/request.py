"""One request of a trace: how long it was, when it came, and which of its chunks others had too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

ChunkIds: TypeAlias = npt.NDArray[np.int64]

NO_CHUNKS: ChunkIds = np.empty(0, np.int64)
NO_CHUNKS.flags.writeable = False


@dataclass(frozen=True, slots=True)
class TraceSegment:
    """A part of a prompt that other prompts may have at another position: equal ``id``, equal
    tokens. ``kind`` is one of ``workloads.request.KINDS``."""

    id: int
    tokens: int
    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class TraceRequest:
    """A request without its text.

    ``arrival_s`` is in seconds since the start of the trace. ``chunks`` names the prompt's full
    chunks of ``chunk_tokens`` tokens, in order, int64, shape [n] with n <= ``input_tokens //
    chunk_tokens``. Equal names mean that this chunk and everything before it are equal; what is
    behind the last named chunk is shared with nobody. ``content`` names chunks by their own tokens
    alone, at whatever position, and is None where the trace doesn't tell. ``tail`` is the trace's
    own name for the partial chunk at the end, where it has one. ``think_s`` is how long the client
    waited before it sent, ``parent`` the session that started this one; None is unknown.
    """

    id: str
    arrival_s: float
    input_tokens: int
    output_tokens: int
    chunk_tokens: int = 0
    chunks: ChunkIds = field(default_factory=lambda: NO_CHUNKS)
    session: str | None = None
    content: ChunkIds | None = None
    segments: tuple[TraceSegment, ...] = ()
    tail: int | None = None
    think_s: float | None = None
    parent: str | None = None
