"""A trace file: what it is, and its requests one by one."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

from workloads.traces.fields import MILLENNIA_S
from workloads.traces.formats.chats import Chats
from workloads.traces.formats.chunk_names import Bailian, LookupLog
from workloads.traces.formats.lengths import MAPPING, Azure, BurstGpt, Mapped
from workloads.traces.formats.mooncake import Mooncake, TimedTrace, block_sizes, is_hashed
from workloads.traces.formats.ragpulse import RagPulse
from workloads.traces.formats.recording import Recording
from workloads.traces.formats.weka import Weka
from workloads.traces.lines import Lines, Malformed, Record, TraceError, opened
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
    guess: str = ""
    """What was guessed of the file's blocks and times, and how to say it; empty: nothing."""

    @property
    def format(self) -> str:
        """Returns the name of the trace's format, one of ``FORMATS``."""
        return self.reader.name

    def requests(self) -> Iterator[TraceRequest]:
        """Yields all requests in the order of the file, which needn't be that of arrival; in memory
        is one at a time (of ``weka``, a session). Raises ``TraceError`` if no line is a request,
        or, at the end, if more than a tenth of all could not be used: that is no trace to size by.
        """
        self.malformed.count = self.malformed.good = 0
        self.malformed.examples.clear()
        for request in self.reader.read(self.path, self.options, self.malformed):
            self.malformed.good += 1
            yield request
        if not self.malformed.good:
            raise TraceError(self._nothing())
        if self.malformed.share > _MOST_MALFORMED:
            raise TraceError(
                f"{self.path}: {self.malformed.told()}, too many for a trace of format"
                f" {self.format}: {self.malformed.examples[0]}; mend them, or give the right"
                " --format, --chunk-tokens or --map"
            )

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
    if options.names:
        if format is not None:
            raise TraceError("--map is for files of no known format; leave --format out")
        return Trace(path, Mapped(path, options), options)
    if format is not None:
        if format not in FORMATS:
            raise TraceError(f"format {format!r} is not known; use one of {', '.join(FORMATS)}")
        if not path.exists():
            raise TraceError(f"{path}: no such file; name a trace")
        return _guessed(Trace(path, FORMATS[format], options), named=True)
    reader = detect(path)
    if reader is None:
        found = appearance(path)
        how = f"; {MAPPING}; or give --format, one of {', '.join(FORMATS)}"
        how = how if found.startswith(("JSON", "text")) else ""
        raise TraceError(f"{path}: {found}, which is no known trace{how}")
    return _guessed(Trace(path, reader, options))


def _guessed(trace: Trace, named: bool = False) -> Trace:
    """Finds the length of blocks and the unit of times that the first lines allow, and says that
    they are guesses; of a format that was ``named`` only where they are not as it has them."""
    reader, options = trace.reader, trace.options
    if not isinstance(reader, Mooncake) or trace.path.is_dir():
        return trace
    records = [head.record for head in _heads(trace.path) if is_hashed(head.record)]
    if any(record and "block_size" in record for record in records):
        return trace
    least, most = block_sizes(record for record in records if record)
    size = options.chunk_tokens or reader.chunk_tokens
    guesses = []
    odd = options.chunk_tokens is None and not least <= size <= most
    if odd:
        # Not as this format has them: those of the others, or the power of two that fits.
        powers = [1 << bits for bits in range(3, 13)]
        size = next((power for power in powers if least <= power <= most), size)
        if size == TimedTrace.chunk_tokens and not named:
            reader = FORMATS["timed-trace"]
        elif size != reader.chunk_tokens:
            reader = reader if named else FORMATS["mooncake"]
            options = replace(options, chunk_tokens=size)
    assert isinstance(reader, Mooncake)
    if trace.options.chunk_tokens is None and (odd or not named):
        guesses.append(f"blocks of {size} tokens (else --chunk-tokens)")
    if options.unit_s is None:
        unit = _unit(records, reader.unit_s)
        if unit != reader.unit_s or not named:
            guesses.append(f"times in {_UNITS[unit]} (else --time-unit)")
        options = replace(options, unit_s=unit)
    return Trace(trace.path, reader, options, guess=" and ".join(guesses))


def _unit(records: Iterable[Record | None], usual: float) -> float:
    """Returns the unit of times in seconds: the usual one, unless by it the trace would begin weeks
    after its own start, which seconds since 1970 explain, or millennia after it."""
    times = []
    for record in records:
        if not record or isinstance(record.get("timestamp", True), bool):
            continue
        with suppress(TypeError, ValueError, OverflowError):  # a malformed line, or a date
            times.append(float(record["timestamp"]))
    first = min(filter(isfinite, times), default=0.0)
    if _EPOCH[0] <= first < _EPOCH[1]:
        return 1.0
    units = (unit for unit in _UNITS if unit <= usual and first * unit < MILLENNIA_S)
    return next(units, usual)


_UNITS = {1.0: "s", 1e-3: "ms", 1e-6: "µs", 1e-9: "ns"}
_EPOCH = 1e9, 4.2e9
"""The seconds since 1970 that clocks show in this century."""
_MOST_MALFORMED = 0.1


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
    if not start.strip():
        return "an empty file"
    if b"\0" in start:
        return "a binary file" + (" (Parquet)" if start.startswith(b"PAR1") else "")
    head = next(iter(_heads(path)), None)
    if head is None:
        return "an empty list" if start.lstrip().startswith(b"[") else "a file that is not UTF-8"
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
    """Returns the file of a trace: RAGPulse's folder stands for its trace, and what can be read
    only once, a pipe or ``-`` for stdin, is copied."""
    if str(path) == "-" or path.is_fifo():
        return _copied(path)
    trace = path / "0_trace.jsonl"
    return trace if trace.is_file() else path


@cache
def _copied(path: Path) -> Path:
    folder = TemporaryDirectory(prefix="lmcache-trace-")
    atexit.register(folder.cleanup)
    copy = Path(folder.name) / "stdin"
    source = sys.stdin.buffer if str(path) == "-" else path.open("rb")
    with source, copy.open("wb") as file:
        shutil.copyfileobj(source, file)
    return copy
