"""Defines what a reader of a trace format is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from workloads.traces.lines import Lines, Malformed, Record

ChunkIds: TypeAlias = npt.NDArray[np.int64]


NO_CHUNKS: ChunkIds = np.empty(0, np.int64)


NO_CHUNKS.flags.writeable = False


@dataclass(frozen=True, slots=True)
class TraceSegment:
    """A part of a prompt that other prompts may have at another position: equal ``id``, equal
    tokens. ``kind`` is one of ``workloads.request.SEGMENT_KINDS``."""

    id: int
    tokens: int
    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class TraceRequest:
    """A request without its text.

    ``arrival_s`` is in seconds since the start of the trace. ``chunks`` names the prompt's full
    chunks of ``chunk_tokens`` tokens, in order, int64, shape [n] with n <= ``input_tokens //
    chunk_tokens``. Equal names mean that this chunk and everything before it are equal; what comes
    after the last named chunk is shared with nobody. ``content`` names chunks by their own tokens
    alone, at whatever position, and is None where the trace doesn't tell. ``tail`` is the trace's
    own name for the partial chunk at the end, where it has one. ``think_s`` is how long the client
    waited before it sent, ``parent`` the session that started this one; None is unknown.
    ``hit_tokens`` are prompt tokens that the recording server served from its caches, as far as it
    told.
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
    hit_tokens: int = 0


Tokenize: TypeAlias = Callable[[Any], Sequence[int]]
"""A function from a prompt (a string, or a list of OpenAI messages) to token ids, as the server
would make them."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for what a file may not say itself. ``chunk_tokens``: tokens per chunk; ``unit_s``:
    seconds per unit of its times (0.001 for milliseconds); None is the format's own. ``tokenize``
    is needed for formats that hold text. ``names`` are those that a file of no known format has for
    ``time``, ``input``, ``output``, ``session`` and ``chunks``."""

    chunk_tokens: int | None = None
    unit_s: float | None = None
    tokenize: Tokenize | None = None
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """One of a file's first lines: the text, and ``record`` if it is a JSON object."""

    line: str
    record: Record | None = None


class TraceReader(Protocol):
    """Reads one format. It keeps nothing: every call of ``read`` starts anew."""

    name: str
    holds: str
    """What a file of the format holds, for people."""
    shares: bool
    """Whether the format says which chunks are equal; otherwise it has lengths and arrivals only.
    """

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this is of the format."""

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Reads the requests in the order of the file. Lines that can't be used are counted in
        ``malformed`` and left out. Raises ``TraceError`` for a file that can't be opened."""


def each(
    lines: Lines, make: Callable[[int, Record], TraceRequest | None]
) -> Iterator[TraceRequest]:
    """Yields what ``make`` returns for each line that is a JSON object; where it raises
    ``ValueError``, the line is malformed. None leaves a line out that is no request."""
    for number, record in lines.records():
        try:
            request = make(number, record)
        except ValueError as error:
            lines.bad(number, error)
            continue
        if request is not None:
            yield request
