"""Writes traces as files: our own format and Mooncake's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from workloads.traces.arrays import TraceArrays
from workloads.traces.formats.recording import RECORDING_SCHEMA
from workloads.traces.lines import TraceError

_MOONCAKE_CHUNK = 512


def _ours(arrays: TraceArrays, source: str) -> Iterator[dict[str, object]]:
    yield {
        "schema": RECORDING_SCHEMA,
        "chunk_tokens": arrays.chunk_tokens or 1,
        "source": source,
        "model": "",
        "started": "",
    }
    for i in range(len(arrays)):
        session = int(arrays.session[i])
        yield {
            "id": str(i + 1),
            "t": round(float(arrays.arrival_s[i]), 6),
            "session": None if session < 0 else arrays.session_names[session],
            "input_tokens": int(arrays.input_tokens[i]),
            "output_tokens": int(arrays.output_tokens[i]),
            "chunks": [f"{name % (1 << 64):016x}" for name in arrays.chunks(i).tolist()],
            "hits": {},
            "ttft_s": None,
            "error": None,
        }


def _mooncake(arrays: TraceArrays, source: str) -> Iterator[dict[str, object]]:
    """Yields the lines of Mooncake's format. Ids are numbers from 0 in the order of first use, and
    every block of a prompt has one: those that no other prompt has, the partial one at the end too,
    are new."""
    names: dict[int, int] = {}
    fresh = 0
    size = arrays.chunk_tokens or _MOONCAKE_CHUNK
    for i in range(len(arrays)):
        ids = []
        for name in arrays.chunks(i).tolist():
            known = names.get(name)
            if known is None:
                known = names[name] = fresh
                fresh += 1
            ids.append(known)
        tokens = int(arrays.input_tokens[i])
        more = max(0, -(-tokens // size) - len(ids))
        ids += range(fresh, fresh + more)
        fresh += more
        line: dict[str, object] = {
            "timestamp": round(float(arrays.arrival_s[i]) * 1000),
            "input_length": tokens,
            "output_length": int(arrays.output_tokens[i]),
            "hash_ids": ids,
        }
        if size != _MOONCAKE_CHUNK:
            line["block_size"] = size
        session = int(arrays.session[i])
        if session >= 0:
            line["session_id"] = arrays.session_names[session]
        yield line


WRITERS: dict[str, Callable[[TraceArrays, str], Iterator[dict[str, object]]]] = {
    "lmcache": _ours,
    "mooncake": _mooncake,
}
"""The writers of formats by name."""


def write_trace(path: Path, arrays: TraceArrays, format: str, source: str) -> None:
    """Writes a trace to a new file, whole or not at all, or for ``-`` to stdout, in one of
    ``WRITERS``; ``source`` says where it is from. Raises ``TraceError`` if the format is not known,
    or the file is there or can't be made."""
    if format not in WRITERS:
        raise TraceError(f"format {format!r} can't be written; use one of {', '.join(WRITERS)}")
    if str(path) == "-":
        for line in WRITERS[format](arrays, source):
            print(json.dumps(line, separators=(",", ":")))
        return
    if path.exists():
        raise TraceError(f"{path} is there already; remove it, or name another")
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for line in WRITERS[format](arrays, source):
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
        part.rename(path)
    except OSError as error:
        reason = error.strerror or error
        raise TraceError(f"{path} can't be written: {reason}; name another") from error
    finally:
        part.unlink(missing_ok=True)
