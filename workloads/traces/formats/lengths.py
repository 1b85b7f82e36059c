"""Traces that have lengths and arrivals only, as CSV: Azure's and BurstGPT; and a user's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from workloads.traces.fields import full_chunks, ids, seconds, text, value, whole
from workloads.traces.lines import Lines, Malformed, Record, TraceError
from workloads.traces.reader import Head, ReadOptions, TraceRequest


class _Csv:
    """Reads CSV files with a header. Nothing is shared between requests, as far as they tell."""

    name: str
    shares = False
    time: str
    input: str
    output: str
    session: str = ""

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this has the columns of the format."""
        return {self.time, self.input, self.output} <= set(_cells(head.line, _comma(head.line)))

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of the file; unusable lines are counted in
        ``malformed``."""
        lines = Lines(path, malformed)
        header: list[str] = []
        comma = ","
        start: float | None = None
        for number, line in lines:
            if not header:
                comma = _comma(line)
                header = _cells(line, comma)
                continue
            try:
                record = _row(header, _cells(line, comma))
                time = seconds(record, self.time, options.unit_s or 1.0)
                start = time if start is None else start
                request = TraceRequest(
                    id=str(number),
                    arrival_s=time - start,
                    input_tokens=whole(record, self.input),
                    output_tokens=whole(record, self.output),
                    session=text(record, self.session),
                )
            except ValueError as error:
                lines.bad(number, error)
                continue
            yield request


class Azure(_Csv):
    """Reads Azure's LLM inference traces of 2023 and 2024."""

    name = "azure"
    holds = "CSV of TIMESTAMP, ContextTokens, GeneratedTokens: lengths and arrivals only"
    time, input, output = "TIMESTAMP", "ContextTokens", "GeneratedTokens"


class BurstGpt(_Csv):
    """Reads BurstGPT's traces. Failed requests, which generated nothing, count as requests."""

    name = "burstgpt"
    holds = "CSV of Timestamp, Request tokens, Response tokens: lengths and arrivals only"
    time, input, output = "Timestamp", "Request tokens", "Response tokens"
    session = "Session ID"


NEEDED, MORE = ("time", "input"), ("output", "session", "chunks")
"""What a request must have, and what it may have, by the names that ``--map`` gives."""


class Mapped:
    """Reads a user's own CSV with a header, or JSON lines, by the fields that ``options.names``
    gives for ``time`` (s, or a date), ``input``, ``output``, ``session`` and ``chunks`` (a list;
    in CSV with blanks between them). Raises ``TraceError`` for names that are not enough."""

    name = "mapped"
    holds = "a user's own fields, as mapped"

    def __init__(self, path: Path, options: ReadOptions) -> None:
        names = options.names
        lacking = [name for name in NEEDED if name not in names]
        unknown = [name for name in names if name not in (*NEEDED, *MORE)]
        if lacking or unknown:
            what = f"{unknown[0]!r} is no field" if unknown else f"{lacking[0]} is missing"
            raise TraceError(f"--map: {what}; {MAPPING}")
        self.shares = "chunks" in names
        if self.shares and options.chunk_tokens is None:
            raise TraceError("--map: chunks need their length; add --chunk-tokens")

    def looks_like(self, head: Head) -> bool:
        """Returns False: a user says that a file is of this kind."""
        return False

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of the file; unusable lines are counted in
        ``malformed``."""
        names, chunk = options.names, options.chunk_tokens or 0
        lines = Lines(path, malformed)
        header: list[str] = []
        comma = ","
        start: list[float] = []
        for number, line in lines:
            if not header and not line.startswith("{"):
                if malformed.count and not malformed.good:  # the first line was the header
                    raise TraceError(f"{malformed.examples[0]}; write it as UTF-8")
                comma = _comma(line)
                header = _cells(line, comma)
                _need(path, names.values(), header)
                continue
            try:
                record = _row(header, _cells(line, comma)) if header else _object(line)
                if not header and not start:
                    _need(path, (names[name] for name in NEEDED), record)
                time = seconds(record, names["time"], options.unit_s or 1.0)
                start = start or [time]
                tokens = whole(record, names["input"])
                chunks = value(record, names["chunks"]) if self.shares else []
                named = ids(chunks.split() if isinstance(chunks, str) else chunks, "chunks")
                full, tail = full_chunks(named, tokens, chunk or 1)
                request = TraceRequest(
                    id=str(number),
                    arrival_s=time - start[0],
                    input_tokens=tokens,
                    output_tokens=whole(record, names["output"]) if "output" in names else 0,
                    chunk_tokens=chunk if self.shares else 0,
                    chunks=full,
                    session=text(record, names["session"]) if "session" in names else None,
                    tail=tail,
                )
            except ValueError as error:
                lines.bad(number, error)
                continue
            yield request


MAPPING = (
    "name its fields: --map time=FIELD,input=FIELD, and where it has them output=FIELD,"
    "session=FIELD,chunks=FIELD (of lmcache trace info, and of trace convert, whose OUT the others"
    " read)"
)


def _need(path: Path, wanted: Iterable[str], there: Iterable[str]) -> None:
    known = list(there)
    for field in wanted:
        if field not in known:
            raise TraceError(f"{path}: has no {field!r}; its fields are {', '.join(known)}")


def _row(header: list[str], cells: list[str]) -> Record:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells under a header of {len(header)}")
    return dict(zip(header, cells, strict=True))


def _object(line: str) -> Record:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("no object")
    return record


def _comma(header: str) -> str:
    """Returns what stands between the cells of a header: a comma, or as spreadsheets write it a
    semicolon or a tab."""
    return max(",;\t", key=header.count)


def _cells(line: str, comma: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=comma))]
    except (csv.Error, StopIteration):
        return []
