"""RAGPulse: requests of a RAG service, as parts with their token counts in side files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads.traces.fields import as_id, chained, named, seconds, text, value, whole
from workloads.traces.lines import Lines, Malformed, Record, TraceError
from workloads.traces.reader import ChunkIds, Head, ReadOptions, TraceRequest, TraceSegment, each

_CHUNK = 64


@dataclass(frozen=True, slots=True)
class _Kind:
    part: str
    file: str
    id: str
    kind: str


# In the order in which the service builds its prompts.
_PARTS = (
    _Kind("sys_prompt", "1_sys_prompt", "sys_prompt_id", "system"),
    _Kind("passages_ids", "2_passages", "passage_id", "passage"),
    _Kind("history", "3_history", "history_id", "history"),
    _Kind("web_search", "5_web_search", "web_search_id", "document"),
    _Kind("user_input", "4_user_input", "user_input_id", "question"),
)


class RagPulse:
    """Reads RAGPulse's traces: ``timestamp`` in s, lengths, ``session_id``, and ``hash_ids`` by
    part. The side files ``1_`` to ``5_`` lie beside the trace. What ``input_length`` has beyond its
    parts (a few tokens of the chat template) comes after them and counts as shared with nobody."""

    name = "ragpulse"
    holds = "hash_ids by part (sys_prompt, passages_ids, ...), with side files of token counts"
    shares = True

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this is of RAGPulse's format."""
        return head.record is not None and isinstance(head.record.get("hash_ids"), dict)

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests in the order of the file; unusable lines are counted in
        ``malformed``. Raises ``TraceError`` if a side file is missing."""
        chunk = options.chunk_tokens or _CHUNK
        lengths = {part.part: _lengths(path, part, malformed) for part in _PARTS}

        def make(number: int, record: Record) -> TraceRequest:
            segments = tuple(_segments(value(record, "hash_ids"), lengths))
            tokens = whole(record, "input_length")
            if sum(segment.tokens for segment in segments) > tokens:
                raise ValueError(f"input_length: its parts have more than {tokens} tokens")
            return TraceRequest(
                id=str(number),
                arrival_s=seconds(record, "timestamp", options.unit_s or 1.0),
                input_tokens=tokens,
                output_tokens=whole(record, "output_length"),
                chunk_tokens=chunk,
                chunks=prefix_chunks(segments, chunk),
                session=text(record, "session_id"),
                content=content_chunks(segments, chunk),
                segments=segments,
            )

        return each(Lines(path, malformed), make)


def prefix_chunks(segments: tuple[TraceSegment, ...], chunk_tokens: int) -> ChunkIds:
    """Returns the names of the full chunks of the segments in a row, int64, shape [n]: each by all
    that is in it and before it."""
    names: list[int] = []
    before, room = 0, chunk_tokens
    inside: list[int] = []
    for segment in segments:
        start = 0
        while start < segment.tokens:
            taken = min(room, segment.tokens - start)
            inside += (segment.id, start, taken)
            start, room = start + taken, room - taken
            if room == 0:
                before = chained(before, named(inside))
                names.append(before)
                inside, room = [], chunk_tokens
    return np.array(names, np.int64)


def content_chunks(segments: tuple[TraceSegment, ...], chunk_tokens: int) -> ChunkIds:
    """Returns the names of the full chunks of each segment on its own, int64, shape [n]: the same
    wherever the segment stands. The rest of a segment that fills no chunk has no name."""
    names = [
        named((segment.id, number, chunk_tokens))
        for segment in segments
        for number in range(segment.tokens // chunk_tokens)
    ]
    return np.array(names, np.int64)


def _lengths(path: Path, part: _Kind, malformed: Malformed) -> dict[int, int]:
    # As compressed as the trace itself, or not at all.
    names = [f"{part.file}.jsonl{suffix}" for suffix in ("", ".gz", ".zst")]
    found = next((path.parent / name for name in names if (path.parent / name).is_file()), None)
    if found is None:
        raise TraceError(
            f"{path}: RAGPulse's {part.file}.jsonl with the token counts is not beside it;"
            " put it into the same folder"
        )
    lengths = {}
    lines = Lines(found, malformed)
    for number, record in lines.records():
        try:
            lengths[as_id(value(record, part.id))] = whole(record, "token_length")
        except ValueError as error:
            lines.bad(number, error)
    return lengths


def _segments(parts: object, lengths: Mapping[str, Mapping[int, int]]) -> Iterator[TraceSegment]:
    if not isinstance(parts, dict):
        raise ValueError("hash_ids is no object of parts")
    for part in _PARTS:
        given = parts.get(part.part, [])
        if not isinstance(given, list):
            raise ValueError(f"hash_ids.{part.part} is no list")
        for name in map(as_id, given):
            if name not in lengths[part.part]:
                raise ValueError(f"hash_ids.{part.part}: {name} is not in {part.file}.jsonl")
            yield TraceSegment(name, lengths[part.part][name], part.kind)
