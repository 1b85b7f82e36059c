"""Records requests without private data: which chunks they share, how long they are, when they
came.

The file has JSON lines. The first is a header, each other one a request, in the order in which they
finished. No text and no token id is in it, and none can be guessed from it: chunk names are keyed
hashes of prefix keys, under a secret that is drawn for each recording and never written.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

TRACE_SCHEMA = "lmcache.trace/1"
_NAME_BYTES = 8


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request that was served. ``arrival_s`` and ``ttft_s`` are in seconds, ``arrival_s`` on
    the clock of :class:`TraceWriter`'s caller; ``keys`` are the prefix keys of the prompt's full
    chunks, and ``hits`` maps a tier to the prompt tokens that it served, where that is known."""

    id: str
    arrival_s: float
    input_tokens: int
    output_tokens: int
    keys: Sequence[bytes]
    hits: Mapping[str, int] = field(default_factory=dict)
    session: str | None = None
    ttft_s: float | None = None
    error: str | None = None


class TraceWriter:
    """Appends requests to a new file; safe for several threads. What is written is on its way to
    the disk when :meth:`write` returns, so that a crash loses no finished request.

    ``start_s`` is what the recording's time 0 is on the caller's clock. Raises ``OSError`` if the
    file can't be made, ``FileExistsError`` if it is there: a recording is never overwritten.
    """

    def __init__(
        self, path: Path, chunk_tokens: int, source: str, model: str, start_s: float
    ) -> None:
        self._start_s = start_s
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._file = path.open("x", encoding="utf-8")
        header = {
            "schema": TRACE_SCHEMA,
            "chunk_tokens": chunk_tokens,
            "source": source,
            "model": model,
            "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        self._write(header)

    def name(self, key: bytes) -> str:
        """Returns a chunk's (or a session's) name in this recording: 16 hexadecimal digits."""
        return blake2b(key, digest_size=_NAME_BYTES, key=self._secret).hexdigest()

    def write(self, request: ServedRequest) -> None:
        """Appends one request. After :meth:`close` it is left out."""
        session = request.session
        line = {
            "id": request.id,
            "t": round(request.arrival_s - self._start_s, 6),
            "session": None if session is None else self.name(session.encode()),
            "input_tokens": request.input_tokens,
            "output_tokens": request.output_tokens,
            "chunks": [self.name(key) for key in request.keys],
            "hits": {tier: tokens for tier, tokens in request.hits.items() if tokens},
            "ttft_s": None if request.ttft_s is None else round(request.ttft_s, 6),
            "error": request.error,
        }
        self._write(line)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        with self._lock:
            self._file.close()

    def _write(self, line: Mapping[str, object]) -> None:
        text = json.dumps(line, separators=(",", ":")) + "\n"
        with self._lock:
            if not self._file.closed:
                self._file.write(text)
                self._file.flush()
