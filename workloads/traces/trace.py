"""A trace file: what it is, and its requests one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workloads.traces.formats.bailian import Bailian
from workloads.traces.formats.chats import Chats
from workloads.traces.formats.lengths import Azure, BurstGpt
from workloads.traces.formats.lookup import LookupLog
from workloads.traces.formats.mooncake import Mooncake, TimedTrace
from workloads.traces.formats.ragpulse import RagPulse
from workloads.traces.formats.recording import Recording
from workloads.traces.formats.weka import Weka
from workloads.traces.lines import Lines, Malformed, TraceError, opened
from workloads.traces.reader import Head, ReadOptions, TraceReader, TraceRequest

# The first that a file looks like is its format: what asks for more comes before.
_READERS: tuple[TraceReader, ...] = (
    Recording(),
    LookupLog(),
    RagPulse(),
    Bailian(),
    Weka(),
    TimedTrace(),
    Mooncake(),
    Azure(),
    BurstGpt(),
    Chats(),
)
FORMATS: dict[str, TraceReader] = {reader.name: reader for reader in _READERS}
_TRIES = 20
_LINE = 1 << 26


@dataclass(slots=True)
class Trace:
    """A trace in ``path``, read as ``reader``'s format. ``malformed`` counts what the latest pass
    could not use."""

    path: Path
    reader: TraceReader
    options: ReadOptions
    malformed: Malformed = field(default_factory=Malformed)

    @property
    def format(self) -> str:
        """Returns the name of the trace's format, one of ``FORMATS``."""
        return self.reader.name

    def requests(self) -> Iterator[TraceRequest]:
        """Yields all requests in the order of the file, which needn't be that of arrival; in memory
        is one at a time (of ``weka``, a session). Raises ``TraceError`` if no line is a request."""
        self.malformed.count = 0
        self.malformed.examples.clear()
        any_request = False
        for request in self.reader.read(self.path, self.options, self.malformed):
            any_request = True
            yield request
        if not any_request:
            raise TraceError(self._nothing())

    def _nothing(self) -> str:
        found = detect(self.path)
        if found is not None and found.name != self.format:
            return (
                f"{self.path}: no request of format {self.format}; it looks like {found.name}"
                f" ({found.holds}); give --format {found.name}"
            )
        first = f": {self.malformed.examples[0]}" if self.malformed.examples else ""
        return f"{self.path}: holds no request of format {self.format}{first}"


def open_trace(path: Path, format: str | None = None, options: ReadOptions | None = None) -> Trace:
    """Opens the trace in a file (or, for ``weka`` and ``ragpulse``, a folder), in ``format`` or in
    the one that it looks like. Raises ``TraceError``, one line, if it can't be opened or is no
    known format."""
    path = _file_of(path)
    options = options or ReadOptions()
    if format is not None:
        if format not in FORMATS:
            raise TraceError(f"format {format!r} is not known; use one of {', '.join(FORMATS)}")
        if not path.exists():
            raise TraceError(f"{path}: no such file; name a trace")
        return Trace(path, FORMATS[format], options)
    reader = detect(path)
    if reader is None:
        raise TraceError(
            f"{path}: {appearance(path)}, which is no known trace; give --format, one of"
            f" {', '.join(FORMATS)}"
        )
    return Trace(path, reader, options)


def detect(path: Path) -> TraceReader | None:
    """Returns the format that one of a file's first lines looks like; None if there is none."""
    if path.is_dir():
        files = sorted(path.glob("*.json*"))
        found = detect(files[0]) if files else None
        return found if found is not None and found.name == "weka" else None
    # Its first lines may be malformed.
    for head in _heads(path):
        for reader in _READERS:
            if reader.looks_like(head):
                return reader
    session = Lines(path, Malformed()).whole()
    weka = FORMATS["weka"]
    return weka if session is not None and weka.looks_like(Head("{", session)) else None


def appearance(path: Path) -> str:
    """Says what a file looks like, for people who gave the wrong one."""
    if path.is_dir():
        return "a folder without agent sessions"
    with opened(path) as file:
        try:
            start = file.read(4096)
        except (OSError, EOFError):
            return "a damaged compressed file"
    if not start:
        return "an empty file"
    if b"\0" in start:
        return "a binary file" + (" (Parquet)" if start.startswith(b"PAR1") else "")
    head = next(iter(_heads(path)), None)
    if head is None:
        return "a file that is not UTF-8"
    if head.record is not None:
        return f"JSON with the fields {', '.join(list(head.record)[:8]) or '(none)'}"
    shown = head.line if len(head.line) <= 60 else head.line[:57] + "..."
    return f"text that begins {shown!r}"


def _heads(path: Path) -> Iterator[Head]:
    for tried, (_, line) in enumerate(Lines(path, Malformed())):
        if tried == _TRIES:
            return
        try:
            record = json.loads(line) if line.startswith("{") and len(line) < _LINE else None
        except (ValueError, RecursionError):
            record = None
        yield Head(line, record if isinstance(record, dict) else None)


def _file_of(path: Path) -> Path:
    """Returns the file of a trace: RAGPulse's folder stands for its trace."""
    trace = path / "0_trace.jsonl"
    return trace if trace.is_file() else path
