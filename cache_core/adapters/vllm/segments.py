"""Where a prompt's parts begin that may stand anywhere: told by the client, or found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_core.blend.rolling import RollingIndex
from cache_core.keys import ChunkHasher

PARAMETER = "lmcache"
FIND = "find"
"""Instead of segments: look for known ones."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens ``start`` .. ``stop`` of a prompt, and keys of its full chunks, encoded alone."""

    start: int
    stop: int
    keys: tuple[bytes, ...]


def alone(hasher: ChunkHasher) -> ChunkHasher:
    """Keys of chunks that were encoded without what stands before their segment: behind a BOS,
    which is dropped. Within a segment, a chunk's key names all of the segment up to it."""
    extra = {**hasher.namespace.extra, "encoded": "alone behind bos"}
    return ChunkHasher(replace(hasher.namespace, extra=extra))


class Segments:
    """Finds the segments of prompts. Remembers the first chunk of each segment that it was told of,
    and looks for those where it is told nothing."""

    def __init__(self, chunk_tokens: int) -> None:
        self._size = chunk_tokens
        self._known = RollingIndex(chunk_tokens)

    def of(self, prompt: Sequence[int], told: object, hasher: ChunkHasher) -> list[Segment]:
        """``told`` is what the client says: ``[[start, stop], ...]``, or :data:`FIND`.
        Raises ``ValueError`` for bounds that are none."""
        tokens = np.asarray(prompt, dtype=np.int32)
        searched = told == FIND
        bounds = self._search(tokens) if searched else _checked(told, len(tokens))
        found = []
        for start, stop in bounds:
            keys = hasher.keys(tokens[start:stop]).prefix
            if keys:
                found.append(Segment(start, stop, tuple(keys)))
                if not searched:
                    first = tokens[start : start + self._size]
                    self._known.add(first, first.tobytes())
        return found

    def _search(self, tokens: NDArray[np.int32]) -> list[tuple[int, int]]:
        starts: list[int] = []
        candidates, hashes = self._known.candidates(tokens)
        for at, value in zip(candidates.tolist(), hashes.tolist(), strict=True):
            far = not starts or at >= starts[-1] + self._size
            if far and self._known.key(value) == tokens[at : at + self._size].tobytes():
                starts.append(at)
        return list(zip(starts, [*starts[1:], len(tokens)], strict=True)) if starts else []


def settings_of(request: Any) -> Mapping[str, Any]:
    """What the client set under ``kv_transfer_params`` for us; empty if nothing."""
    given = request.kv_transfer_params
    ours = given.get(PARAMETER) if isinstance(given, Mapping) else None
    return ours if isinstance(ours, Mapping) else {}


def _checked(told: object, length: int) -> list[tuple[int, int]]:
    if not isinstance(told, list | tuple):
        raise ValueError(f"segments are {told!r}; they must be [[start, stop], ...]")
    bounds: list[tuple[int, int]] = []
    for pair in told:
        whole = isinstance(pair, list | tuple) and len(pair) == 2
        if not whole or not all(type(n) is int for n in pair):
            raise ValueError(f"a segment is {pair!r}; it must be [start, stop]")
        start, stop = pair
        if not (bounds[-1][1] if bounds else 0) <= start <= stop <= length:
            raise ValueError(
                f"segment [{start}, {stop}] lies outside the prompt of {length} tokens, or"
                " overlaps the one before"
            )
        bounds.append((start, stop))
    return bounds
