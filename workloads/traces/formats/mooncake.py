"""Mooncake's traces (FAST'25), and everything that has the same fields."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from workloads.traces.fields import full_chunks, ids, seconds, text, value, whole
from workloads.traces.lines import Lines, Malformed, Record
from workloads.traces.reader import Head, ReadOptions, TraceRequest, each


def is_hashed(record: Record | None) -> bool:
    """Returns whether a line has Mooncake's fields."""
    return record is not None and (
        isinstance(record.get("hash_ids"), list)
        and "input_length" in record
        and not {"timestamp", "delay"}.isdisjoint(record)
    )


class Mooncake:
    """Reads Mooncake's traces: ``timestamp`` in ms (or aiperf's ``delay`` after the session's
    request before), ``input_length``, ``output_length``,
    ``hash_ids`` of chained blocks of 512 tokens, of which the last may be partial. ``block_size``,
    where a line has it (as kvcache-simulator's traces do), is the block's length."""

    name = "mooncake"
    holds = "timestamp (ms), input_length, output_length, hash_ids of blocks (512 tokens)"
    shares = True
    chunk_tokens = 512
    unit_s = 0.001

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this is of Mooncake's format."""
        return is_hashed(head.record) and not _sixteen(head.record)

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of the file; unusable lines are counted in
        ``malformed``."""
        chunk = options.chunk_tokens or self.chunk_tokens
        unit = options.unit_s or self.unit_s
        clock: dict[str, float] = {}

        def make(number: int, record: Record) -> TraceRequest:
            tokens = whole(record, "input_length")
            size = whole(record, "block_size", 1) if "block_size" in record else chunk
            named = ids(value(record, "hash_ids"), "hash_ids")
            full, tail = full_chunks(named, tokens, size)
            if 0 < len(full) < tokens // size:
                raise ValueError(f"{len(named)} blocks of {size} tokens in a prompt of {tokens}")
            session = text(record, "session_id", "user")
            if "timestamp" in record or "delay" not in record:
                time = seconds(record, "timestamp", unit)
            else:
                time = clock.get(session or "", 0.0) + seconds(record, "delay", unit)
            clock[session or ""] = time
            return TraceRequest(
                id=text(record, "id", "request_id") or str(number),
                arrival_s=time,
                input_tokens=tokens,
                output_tokens=whole(record, "output_length") if "output_length" in record else 0,
                chunk_tokens=size,
                chunks=full,
                session=session,
                tail=tail,
            )

        return each(Lines(path, malformed), make)


class TimedTrace(Mooncake):
    """Reads what vLLM's ``bench serve --dataset-name timed_trace`` takes: Mooncake's fields with
    blocks of 16 tokens and seconds, unless the options say otherwise."""

    name = "timed-trace"
    holds = "timestamp (s), input_length, output_length, hash_ids of 16-token blocks"
    chunk_tokens = 16
    unit_s = 1.0

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this is vLLM's timed trace, which differs from
        Mooncake's in the number of blocks."""
        return is_hashed(head.record) and _sixteen(head.record)


def block_sizes(records: Iterable[Record]) -> tuple[int, int]:
    """Returns the least and the greatest length of a block with which all these prompts can be what
    their numbers of blocks say (the greatest is below the least if there is none)."""
    least, most = 1, sys.maxsize
    for record in records:
        tokens, blocks = record.get("input_length"), len(record["hash_ids"])
        if isinstance(tokens, int) and tokens > 0 and blocks:
            least = max(least, -(-tokens // blocks))
            if blocks > 1:
                most = min(most, (tokens - 1) // (blocks - 1))
    return least, most


def _sixteen(record: Record | None) -> bool:
    if record is None or "block_size" in record:
        return False
    tokens, blocks = record.get("input_length"), len(record.get("hash_ids", ()))
    return isinstance(tokens, int) and tokens > 16 and -(-tokens // 512) < blocks
