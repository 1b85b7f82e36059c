"""Reads LMCache's log of look-ups (``--lookup-hash-log-dir``): the chunks of every prompt it was
asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workloads.traces.fields import full_chunks, ids, seconds, text, value, whole
from workloads.traces.lines import Lines, Malformed, Record
from workloads.traces.reader import Head, ReadOptions, TraceRequest, each


class LookupLog:
    """Reads LMCache's log of look-ups: ``timestamp`` (s or a date), ``chunk_size``, ``seq_len``,
    ``chunk_hashes`` of chained chunks. Answers are not in it: their length is 0. A log is one
    model's; look-ups of another model than the first differ by their hashes only."""

    name = "lmcache-lookup"
    holds = "timestamp, chunk_size, seq_len, chunk_hashes; no output lengths"
    shares = True

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this is LMCache's log of look-ups."""
        return head.record is not None and {"chunk_hashes", "seq_len"} <= head.record.keys()

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of the file; unusable lines are counted in
        ``malformed``. Time 0 is the first line's."""
        start: list[float] = []

        def make(number: int, record: Record) -> TraceRequest:
            tokens = whole(record, "seq_len")
            chunk = options.chunk_tokens or whole(record, "chunk_size", 1)
            named = ids(value(record, "chunk_hashes"), "chunk_hashes")
            full, tail = full_chunks(named, tokens, chunk)
            time = seconds(record, "timestamp", options.unit_s or 1.0)
            if not start:
                start.append(time)
            return TraceRequest(
                id=text(record, "request_id", "req_id") or str(number),
                arrival_s=time - start[0],
                input_tokens=tokens,
                output_tokens=0,
                chunk_tokens=chunk,
                chunks=full,
                tail=tail,
            )

        return each(Lines(path, malformed), make)
