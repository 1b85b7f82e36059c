"""Finds segments in a prompt at any offset, by their boundaries or by a rolling hash (Rabin-Karp)
of their first chunk, and cuts them into chunks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from cache_core.keys import ChunkHasher

Hashes = NDArray[np.uint64]
# Odd, so that it has an inverse modulo 2 ** 64 and windows need no loop.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


def window_hashes(token_ids: NDArray[np.int32], length: int) -> Hashes:
    """Returns the hash of every window of ``length`` tokens, ``[n - length + 1]``, equal for equal
    tokens wherever they stand: ``sum(mix(token j) * base ** (first - j))`` modulo 2 ** 64."""
    n = len(token_ids)
    if n < length:
        return np.empty(0, dtype=np.uint64)
    mixed = token_ids.astype(np.uint32).astype(np.uint64) + np.uint64(1)
    # Neighbouring ids must differ in the high bits too (the finaliser of SplitMix64).
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    sums = np.zeros(n + 1, dtype=np.uint64)
    np.cumsum(mixed * _powers(_INVERSE, n), out=sums[1:])
    return (sums[length:] - sums[:-length]) * _powers(_BASE, n - length + 1)


class RollingIndex:
    """A map from hashes of segments' first chunks, of one length, to what tells them apart, such as
    their keys. A match here is a hint only: that decides. Forgets the oldest beyond ``most``."""

    def __init__(self, length: int, most: int = 1 << 20) -> None:
        self.length = length
        self._most = most
        self._keys: dict[int, bytes] = {}
        self._sorted: Hashes = np.empty(0, dtype=np.uint64)
        self._stale = False

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, tokens: NDArray[np.int32], key: bytes) -> None:
        """Records that a chunk of exactly ``length`` tokens is stored under ``key``."""
        value = int(window_hashes(tokens, self.length)[0])
        self._keys.pop(value, None)  # to the young end
        self._keys[value] = key
        while len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]
        self._stale = True

    def key(self, value: int) -> bytes:
        """Returns the content key of a hash that :meth:`candidates` found."""
        return self._keys[value]

    def candidates(self, token_ids: NDArray[np.int32]) -> tuple[NDArray[np.int64], Hashes]:
        """Returns the starts of windows whose hash is known, ascending, and those hashes."""
        if not self._keys or len(token_ids) < self.length:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
        if self._stale:
            self._sorted = np.sort(np.fromiter(self._keys, dtype=np.uint64, count=len(self._keys)))
            self._stale = False
        hashes = window_hashes(token_ids, self.length)
        near = np.searchsorted(self._sorted, hashes)
        known = self._sorted[np.minimum(near, len(self._sorted) - 1)] == hashes
        starts = np.flatnonzero(known)
        return starts, hashes[starts]


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


Bounds = tuple[int, int]
_TAIL_DOMAIN = b"lmcache.tail/1"
_AVERAGE_DOMAIN = b"lmcache.average/1"


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of a segment: tokens ``[start, stop)`` of a prompt, its 32-byte key, and ``segment``,
    where its segment starts. A segment's last chunk may be shorter than the others."""

    start: int
    stop: int
    key: bytes
    segment: int


def segment_keys(tokens: NDArray[np.int32], hasher: ChunkHasher) -> list[bytes]:
    """Returns the keys of a segment's chunks: each names all of the segment up to its own end,
    since a segment is encoded whole. What is left behind the last full chunk is a chunk too, with a
    slot of its own, under a key that says that it ends there."""
    size = hasher.chunk_tokens
    keys = list(hasher.keys(tokens).prefix)
    tail = tokens[len(keys) * size :]
    if len(tail):
        text = np.ascontiguousarray(tail, dtype=np.int32).tobytes()
        keys.append(hasher.beside(keys[-1] if keys else None, _TAIL_DOMAIN + text))
    return keys


def average_key(key: bytes, hasher: ChunkHasher) -> bytes:
    """Returns the key of a chunk's KV averaged over the contexts in which it was seen, of the chunk
    whose KV alone has ``key``."""
    return hasher.beside(key, _AVERAGE_DOMAIN)


class Matcher:
    """Cuts prompts into chunks of ``hasher.chunk_tokens`` tokens.

    Where a prompt's segments are known, chunks are cut from each segment's own start, so that the
    same passage gives the same chunks wherever it stands. Where they are not, segments are found by
    a rolling hash of the first chunk of those that were stored, left to right, each confirmed by
    its key, and go on as far as their chunks are known; what lies between is a segment of its own.
    """

    def __init__(self, hasher: ChunkHasher, most: int = 1 << 20) -> None:
        self.hasher = hasher
        self.index = RollingIndex(hasher.chunk_tokens, most)
        self._stored: OrderedDict[bytes, None] = OrderedDict()
        self._most = most

    def pieces(
        self,
        token_ids: NDArray[np.int32],
        segments: Sequence[Bounds] | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> list[Piece]:
        """Returns the chunks of tokens ``[first, last)``, in order. ``segments`` are (start, end)
        in the whole prompt; None: boundaries are not known."""
        last = len(token_ids) if last is None else last
        if segments is None:
            return self._search(token_ids, first, last)
        found: list[Piece] = []
        for start, end in segments:
            found += self._cut(token_ids, max(start, first), min(end, last))
        return found

    def stored(self, token_ids: NDArray[np.int32], pieces: Sequence[Piece]) -> None:
        """Records that these chunks of a prompt are in the cache: the rolling hash finds their
        segments from here on. It is this process's memory: a tier's chunks of an earlier one need
        segments."""
        for piece in pieces:
            self._stored.pop(piece.key, None)
            self._stored[piece.key] = None
            if piece.start == piece.segment and piece.stop - piece.start == self.index.length:
                self.index.add(token_ids[piece.start : piece.stop], piece.key)
        while len(self._stored) > self._most:
            self._stored.popitem(last=False)

    def _cut(self, token_ids: NDArray[np.int32], start: int, end: int) -> list[Piece]:
        size = self.hasher.chunk_tokens
        keys = segment_keys(token_ids[start:end], self.hasher) if end > start else []
        begins = range(start, start + len(keys) * size, size)
        return [Piece(a, min(a + size, end), k, start) for a, k in zip(begins, keys, strict=True)]

    def _search(self, token_ids: NDArray[np.int32], first: int, last: int) -> list[Piece]:
        size = self.hasher.chunk_tokens
        found: list[Piece] = []
        end = first
        starts, hashes = self.index.candidates(token_ids[first:last])
        for start, value in zip((starts + first).tolist(), hashes.tolist(), strict=True):
            if start < end:
                continue
            [key] = self.hasher.keys(token_ids[start : start + size]).prefix
            if key != self.index.key(value) or key not in self._stored:
                continue
            between = self._cut(token_ids, end, start)
            known = list(takewhile(self._is_stored, self._cut(token_ids, start, last)))
            found += between + known
            end = known[-1].stop
        return found + self._cut(token_ids, end, last)

    def _is_stored(self, piece: Piece) -> bool:
        return piece.key in self._stored
