"""Traces that have lengths and arrivals only, as CSV: Azure's and BurstGPT."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from workloads.traces.fields import seconds, text, whole
from workloads.traces.lines import Lines, Malformed, Record
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
        return {self.time, self.input, self.output} <= set(_cells(head.line))

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of the file; unusable lines are counted in
        ``malformed``."""
        lines = Lines(path, malformed)
        header: list[str] = []
        start: float | None = None
        for number, line in lines:
            if not header:
                header = _cells(line)
                continue
            try:
                record = self._row(header, _cells(line))
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

    def _row(self, header: list[str], cells: list[str]) -> Record:
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} cells under a header of {len(header)}")
        return dict(zip(header, cells, strict=True))


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


def _cells(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except (csv.Error, StopIteration):
        return []
