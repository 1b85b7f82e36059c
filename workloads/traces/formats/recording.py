"""Reads our own recordings, ``lmcache.trace/1`` (see docs/traces.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workloads.traces.fields import full_chunks, ids, seconds, text, value, whole
from workloads.traces.lines import Lines, Malformed, Record
from workloads.traces.reader import Head, ReadOptions, TraceRequest, each

RECORDING_SCHEMA = "lmcache.trace/1"


class Recording:
    """Reads our own recordings: a header line with ``schema`` and ``chunk_tokens``, then a request
    per line. What its client or server broke off is a request too, since its prompt was looked up.
    """

    name = "lmcache"
    holds = f"a recording of ours ({RECORDING_SCHEMA})"
    shares = True

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this is a recording of ours, of any version, so
        that other versions are refused by name."""
        schema = head.record.get("schema") if head.record is not None else None
        return isinstance(schema, str) and schema.startswith("lmcache.trace/")

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of finishing; unusable lines are counted in
        ``malformed``."""
        chunk: list[int] = []

        def make(number: int, record: Record) -> TraceRequest | None:
            if "schema" in record:
                if record["schema"] != RECORDING_SCHEMA:
                    raise ValueError(f"schema {record['schema']!r} is not {RECORDING_SCHEMA}")
                chunk[:] = [whole(record, "chunk_tokens", 1)]
                return None
            if not chunk:
                raise ValueError("a request before the header with schema and chunk_tokens")
            tokens = whole(record, "input_tokens")
            full, tail = full_chunks(ids(value(record, "chunks"), "chunks"), tokens, chunk[0])
            return TraceRequest(
                id=text(record, "id") or str(number),
                arrival_s=seconds(record, "t"),
                input_tokens=tokens,
                output_tokens=whole(record, "output_tokens"),
                chunk_tokens=chunk[0],
                chunks=full,
                session=text(record, "session"),
                tail=tail,
                hit_tokens=min(tokens, _hits(record)),
            )

        return each(Lines(path, malformed), make)


def _hits(record: Record) -> int:
    hits = record.get("hits")
    if not isinstance(hits, dict):
        return 0
    return sum(whole(hits, tier) for tier in hits)
