"""Weka's kv-cache-tester: a coding agent's session per file, with sub-agents inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from workloads.traces.fields import full_chunks, ids, seconds, text, value, whole
from workloads.traces.lines import Lines, Malformed, Record
from workloads.traces.reader import Head, ReadOptions, TraceRequest

_SUBAGENT = "subagent"
# Ids are counted from 1 in each session; sessions are kept apart above these bits.
_ID_BITS = 32


class Weka:
    """Reads Weka's traces, a JSON object per session: ``block_size``, ``hash_id_scope``, and
    ``requests`` with ``t`` in s, ``in``, ``out``, ``hash_ids`` of chained blocks, ``think_time``;
    an entry of the type ``subagent`` has ``requests`` of its own. Give a file, a folder of them
    (sessions start together), or JSON lines."""

    name = "weka"
    holds = "an agent's session: block_size and requests with t, in, out, hash_ids, think_time"
    shares = True

    def looks_like(self, head: Head) -> bool:
        """Returns whether a file that begins like this is of Weka's format."""
        record = head.record
        return record is not None and isinstance(record.get("requests"), list)

    def read(
        self, path: Path, options: ReadOptions, malformed: Malformed
    ) -> Iterator[TraceRequest]:
        """Yields the requests session by session, in the order of arrival within each; unusable
        lines and entries are counted in ``malformed``."""
        number = 0
        for file in sorted(path.glob("*.json*")) if path.is_dir() else [path]:
            lines = Lines(file, malformed)
            only = lines.whole()
            for line, session in lines.records() if only is None else [(1, only)]:
                yield from _session(lines, line, session, number, options)
                number += 1


def _session(
    lines: Lines, line: int, session: Record, number: int, options: ReadOptions
) -> Iterator[TraceRequest]:
    try:
        name = text(session, "id") or f"{lines.path.stem}:{line}"
        chunk = options.chunk_tokens or whole(session, "block_size", 1)
        shared = session.get("hash_id_scope", "local") != "local"
        entries = value(session, "requests")
        if not isinstance(entries, list):
            raise ValueError("requests is no list")
    except ValueError as error:
        lines.bad(line, error)
        return
    scope = 0 if shared else (number + 1) << _ID_BITS
    found = list(_requests(lines, line, entries, name, None, 0.0, chunk, scope, options))
    yield from sorted(found, key=lambda request: request.arrival_s)


def _requests(
    lines: Lines,
    line: int,
    entries: list[object],
    name: str,
    parent: str | None,
    start_s: float,
    chunk: int,
    scope: int,
    options: ReadOptions,
) -> Iterator[TraceRequest]:
    unit = options.unit_s or 1.0
    for index, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise ValueError("no object")
            time = start_s + seconds(entry, "t", unit)
            if entry.get("type") == _SUBAGENT:
                inner = value(entry, "requests")
                if not isinstance(inner, list):
                    raise ValueError("requests is no list")
                child = f"{name}/{text(entry, 'agent_id', 'id') or index}"
                begins = 0.0 if _absolute(inner, time / unit) else time
                yield from _requests(lines, line, inner, child, name, begins, chunk, scope, options)
                continue
            tokens = whole(entry, "in")
            named = ids(entry.get("hash_ids", []), "hash_ids")
            if len(named) and not scope <= scope + int(named.max()) < scope + (1 << _ID_BITS):
                raise ValueError("hash_ids: not below 2**32")
            full, tail = full_chunks(named + np.int64(scope), tokens, chunk)
            yield TraceRequest(
                id=f"{name}#{index}",
                arrival_s=time,
                input_tokens=tokens,
                output_tokens=whole(entry, "out"),
                chunk_tokens=chunk,
                chunks=full,
                session=name,
                tail=tail,
                think_s=seconds(entry, "think_time") if "think_time" in entry else None,
                parent=parent,
            )
        except ValueError as error:
            lines.bad(line, f"requests[{index}] of {name}: {error}")


def _absolute(inner: list[object], marker: float) -> bool:
    """Returns whether a sub-agent's times count from the start of the session. Raw traces count
    from the marker, published ones from the start: one before its marker can only be the former."""
    times = [entry["t"] for entry in inner if isinstance(entry, dict) and "t" in entry]
    numbers = [time for time in times if isinstance(time, int | float)]
    return bool(numbers) and min(numbers) >= marker > 0
