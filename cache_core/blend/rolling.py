"""Which windows of a prompt could be stored chunks: Rabin-Karp over token ids, in numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Odd, so that it has an inverse modulo 2 ** 64 and windows need no loop.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


def window_hashes(token_ids: NDArray[np.int32], length: int) -> Hashes:
    """The hash of every window of ``length`` tokens, ``[n - length + 1]``, equal for equal tokens
    wherever they stand: ``sum(mix(token j) * base ** (first - j))`` modulo 2 ** 64."""
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
    """Hashes of stored chunks of one length, to content keys. A match here is a hint only: the
    key decides. Forgets the oldest chunks beyond ``most``."""

    def __init__(self, length: int, most: int = 1 << 20) -> None:
        self.length = length
        self._most = most
        self._keys: dict[int, bytes] = {}
        self._sorted: Hashes = np.empty(0, dtype=np.uint64)
        self._stale = False

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, tokens: NDArray[np.int32], key: bytes) -> None:
        """A chunk of exactly ``length`` tokens is stored under ``key``."""
        value = int(window_hashes(tokens, self.length)[0])
        self._keys.pop(value, None)  # to the young end
        self._keys[value] = key
        while len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]
        self._stale = True

    def discard(self, hashes: Iterable[int]) -> None:
        """These are not stored any more."""
        for value in hashes:
            self._stale |= self._keys.pop(value, None) is not None

    def key(self, value: int) -> bytes:
        """The content key of a hash that :meth:`candidates` found."""
        return self._keys[value]

    def candidates(self, token_ids: NDArray[np.int32]) -> tuple[NDArray[np.int64], Hashes]:
        """Starts of the windows whose hash is known, ascending, and those hashes."""
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
