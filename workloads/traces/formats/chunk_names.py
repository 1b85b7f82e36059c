"""Reads traces that name the chunks of each prompt: Qwen-Bailian's chats of a production service,
linked turn by turn, and LMCache's log of look-ups (``--lookup-hash-log-dir``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workloads.traces.fields import full_chunks, ids, seconds, text, value, whole
from workloads.traces.lines import Lines, Malformed, Record
from workloads.traces.reader import Head, ReadOptions, TraceRequest, each

_CHUNK = 16  # Bailian's


class Bailian:
    """Reads Qwen-Bailian's traces: ``chat_id``, ``parent_chat_id`` (-1 for the first turn),
    ``turn``, ``timestamp`` in s, ``input_length``, ``output_length``, ``hash_ids`` of chained
    blocks of 16 tokens."""

    name = "bailian"
    holds = "chat_id, parent_chat_id, turn, timestamp (s), hash_ids of 16-token blocks"
    shares = True

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this is of Qwen-Bailian's format."""
        return head.record is not None and {"chat_id", "hash_ids"} <= head.record.keys()

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of the file; unusable lines are counted in
        ``malformed``. The session is the chat of the first turn; a turn whose parent is not in the
        file begins one."""
        chunk = options.chunk_tokens or _CHUNK
        roots: dict[str, str] = {}

        def make(number: int, record: Record) -> TraceRequest:
            chat = str(value(record, "chat_id"))
            tokens = whole(record, "input_length")
            full, tail = full_chunks(ids(value(record, "hash_ids"), "hash_ids"), tokens, chunk)
            request = TraceRequest(
                id=chat,
                arrival_s=seconds(record, "timestamp", options.unit_s or 1.0),
                input_tokens=tokens,
                output_tokens=whole(record, "output_length"),
                chunk_tokens=chunk,
                chunks=full,
                session=roots.get(text(record, "parent_chat_id") or "", chat),
                tail=tail,
            )
            roots[chat] = str(request.session)
            return request

        return each(Lines(path, malformed), make)


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
