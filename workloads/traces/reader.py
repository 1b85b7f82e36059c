"""What a reader of a trace format is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from workloads.traces.lines import Lines, Malformed, Record
from workloads.traces.request import TraceRequest

Tokenize: TypeAlias = Callable[[Any], Sequence[int]]
"""A prompt (a string, or a list of OpenAI messages) to token ids, as the server would."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a file may not say itself. ``chunk_tokens``: tokens per chunk; ``unit_s``: seconds per
    unit of its times (0.001 for milliseconds); None is the format's own. ``tokenize`` is needed for
    formats that hold text."""

    chunk_tokens: int | None = None
    unit_s: float | None = None
    tokenize: Tokenize | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """One of a file's first lines: the text, and ``record`` if it is a JSON object."""

    line: str
    record: Record | None = None


class TraceReader(Protocol):
    """Reads one format. It keeps nothing: every call of ``read`` starts anew."""

    name: str
    holds: str
    """What a file of it holds, for people."""
    shares: bool
    """Whether it says which chunks are equal; otherwise it has lengths and arrivals only."""

    def looks_like(self, head: Head) -> bool:
        """Whether a file that begins like this is of the format."""

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """The requests in the order of the file. Lines that can't be used are counted in
        ``malformed`` and left out. Raises ``TraceError`` for a file that can't be opened."""


def each(
    lines: Lines, make: Callable[[int, Record], TraceRequest | None]
) -> Iterator[TraceRequest]:
    """``make`` of each line that is a JSON object; where it raises ``ValueError``, the line is
    malformed. None leaves a line out that is no request."""
    for number, record in lines.records():
        try:
            request = make(number, record)
        except ValueError as error:
            lines.bad(number, error)
            continue
        if request is not None:
            yield request
