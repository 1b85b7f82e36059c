"""Finding chunks in a prompt at any offset, by segment boundaries or by their tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core.blend.rolling import RollingIndex
from cache_core.keys import ChunkHasher

Bounds = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """The chunk of tokens ``[start, stop)`` of a prompt and its 32-byte content key."""

    start: int
    stop: int
    key: bytes


class Matcher:
    """Cuts prompts into content chunks of ``hasher.chunk_tokens`` tokens.

    Where a prompt's segments are known, chunks are cut from each segment's own start, so that the
    same passage gives the same chunks wherever it stands; a segment's partial tail is no chunk.
    Where they are not, stored chunks are found by a rolling hash, left to right without overlap,
    each confirmed by its content key; what lies between is cut from its own start.
    """

    def __init__(self, hasher: ChunkHasher) -> None:
        self.hasher = hasher
        self.index = RollingIndex(hasher.chunk_tokens)

    def pieces(
        self,
        token_ids: NDArray[np.int32],
        segments: Sequence[Bounds] | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> list[Piece]:
        """The chunks of tokens ``[first, last)``, in order. ``segments`` are (start, end) in the
        whole prompt; None: boundaries are not known."""
        last = len(token_ids) if last is None else last
        if segments is None:
            return self._search(token_ids, first, last)
        found: list[Piece] = []
        for start, end in segments:
            found += self._cut(token_ids, max(start, first), min(end, last))
        return found

    def stored(self, token_ids: NDArray[np.int32], pieces: Sequence[Piece]) -> None:
        """These chunks of a prompt are in the cache now: the rolling hash finds them from here
        on. It is this process's memory: a tier's chunks of an earlier one need segments."""
        for piece in pieces:
            self.index.add(token_ids[piece.start : piece.stop], piece.key)

    def _cut(self, token_ids: NDArray[np.int32], start: int, end: int) -> list[Piece]:
        size = self.hasher.chunk_tokens
        if end - start < size:
            return []
        keys = self.hasher.keys(token_ids[start:end], content=True).content
        return [Piece(start + i * size, start + (i + 1) * size, k) for i, k in enumerate(keys)]

    def _search(self, token_ids: NDArray[np.int32], first: int, last: int) -> list[Piece]:
        size = self.hasher.chunk_tokens
        found: list[Piece] = []
        end = first
        starts, hashes = self.index.candidates(token_ids[first:last])
        for start, value in zip((starts + first).tolist(), hashes.tolist(), strict=True):
            if start < end:
                continue
            [key] = self.hasher.keys(token_ids[start : start + size], content=True).content
            if key != self.index.key(value):
                continue
            found += self._cut(token_ids, end, start)
            end = start + size
            found.append(Piece(start, end, key))
        return found + self._cut(token_ids, end, last)
