"""Remembers what each stored chunk was seen to lack: one number per token, by the chunk's key.

The numbers are kept in the process that chooses, beside its Ledger and not in the tiers: rows are
chosen before a byte is loaded, and a chunk that leaves its tiers and comes back is still known.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

SELECTION = "seen"
"""The name of the rule by which tokens are computed again, in reports and certificates."""
LEAST_SEEN = 2.0
"""How often a passage must have been seen before it is reused, each time counted by
:func:`sighting_worth`: a context may happen to have nothing of what a token would take."""
_FULL_CONTEXT = 2
_MOST_TOKENS = 1 << 24
_LEARNING_SHARE, _LEARNING_TOKENS = 8, 4096
SEEN_FILE = "seen.npz"
"""The name of the file in which a table is kept beside a disk tier's chunks."""
_KEY_BYTES = 32


def sighting_worth(before: int, length: int) -> float:
    """Returns what a sighting counts of a segment of ``length`` tokens behind ``before`` that it
    was not encoded behind: 1 behind twice its own length or more, less behind less."""
    return min(1.0, before / (_FULL_CONTEXT * length))


def learning_tokens(cpu_tokens: int) -> int:
    """Returns how many tokens may be learnt at a time, whose KV in contexts is summed up in memory,
    beside a cpu tier of ``cpu_tokens``."""
    return max(_LEARNING_TOKENS, cpu_tokens // _LEARNING_SHARE)


class SeenTable:
    """What the tokens of chunks deviated by in the contexts in which they were computed: of each
    the largest, since a token that took something from one context may take it from the next.

    Keeps at most ``most_tokens`` numbers of 4 bytes: the chunks that were neither asked for nor
    seen for longest are forgotten. Of those that were not seen often enough, whose KV is summed up
    elsewhere, it keeps ``learning`` tokens. One that is not known is computed and seen again, which
    costs time, not quality."""

    def __init__(
        self,
        least: float = LEAST_SEEN,
        most_tokens: int = _MOST_TOKENS,
        learning: int = _MOST_TOKENS,
    ) -> None:
        self.least = least
        self._most, self._tokens = most_tokens, 0
        self._known: OrderedDict[bytes, tuple[float, NDArray[np.float32]]] = OrderedDict()
        self.learning, self._learnt = learning, 0
        self._new: OrderedDict[bytes, int] = OrderedDict()
        """The tokens of chunks that were not seen often enough, those seen last at the end."""

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def add(self, key: bytes, deviations: NDArray[np.float32], counts: float) -> list[bytes]:
        """Takes in one sighting of a chunk, the deviation of each of its tokens, ``[tokens]``, and
        what it ``counts``, by :func:`sighting_worth`: at 0 there was nothing to see. One of another
        length begins anew. Returns the chunks that were being learnt and are forgotten for it."""
        if counts <= 0:
            return []
        before, most = self._known.get(key, (0.0, deviations))
        self._forget(key)
        if len(most) != len(deviations):
            before, most = 0.0, deviations
        return self._put(key, before + counts, np.maximum(most, deviations))

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """Returns the largest deviations of the chunk's tokens, ``[tokens]``; None before it was
        seen often enough."""
        found = self._known.get(key)
        if found is None or found[0] < self.least:
            return None
        self._known.move_to_end(key)
        return found[1]

    def completes(self, key: bytes, counts: float) -> bool:
        """Returns whether a chunk is seen often enough with one more sighting that ``counts``."""
        before, _ = self._known.get(key, (0.0, None))
        return counts > 0 and before + counts >= self.least

    def begin_anew(self, keys: Iterable[bytes]) -> None:
        """Forgets those chunks that are known: their averages are gone, and a new one must have as
        many contexts as the first."""
        for key in keys:
            if self.get(key) is not None:
                self._forget(key)

    def clear(self) -> None:
        """Forgets all chunks."""
        self._known.clear()
        self._new.clear()
        self._tokens = self._learnt = 0

    def save(self, folder: Path) -> None:
        """Writes what is known well enough into ``folder``, whole or not at all, for chunks that
        outlive the process there. Raises ``OSError``."""
        known = {k: found for k, found in self._known.items() if k not in self._new}
        numbers = [most for _, most in known.values()]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            keys=np.frombuffer(b"".join(known), dtype=np.uint8),
            counts=np.array([count for count, _ in known.values()], dtype=np.float64),
            lengths=np.array([len(most) for most in numbers], dtype=np.int64),
            numbers=np.concatenate([np.zeros(0, dtype=np.float32), *numbers]),
        )
        beside = folder / f".{SEEN_FILE}.{os.getpid()}.tmp"
        beside.write_bytes(buffer.getvalue())
        os.replace(beside, folder / SEEN_FILE)

    def load(self, folder: Path) -> None:
        """Takes in what :meth:`save` left in ``folder``. A file that is missing or damaged gives
        nothing: its chunks are seen again."""
        try:
            with np.load(folder / SEEN_FILE, allow_pickle=False) as kept:
                keys, counts, lengths, numbers = (
                    kept[name] for name in ("keys", "counts", "lengths", "numbers")
                )
            if len(keys) != _KEY_BYTES * len(counts) or sum(lengths) != len(numbers):
                return
            parts = np.split(numbers.astype(np.float32), np.cumsum(lengths)[:-1])
            for row, part in enumerate(parts if len(lengths) else ()):
                key = keys[_KEY_BYTES * row : _KEY_BYTES * (row + 1)].tobytes()
                # A copy: a part of one array would keep all of it.
                self._put(key, float(counts[row]), part.copy())
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return

    def _put(self, key: bytes, count: float, most: NDArray[np.float32]) -> list[bytes]:
        self._known[key] = (count, most)
        self._tokens += len(most)
        if count < self.least:
            self._new[key] = len(most)
            self._learnt += len(most)
        gone = []
        while self._learnt > self.learning and len(self._new) > 1:
            gone.append(next(iter(self._new)))
            self._forget(gone[-1])
        while self._tokens > self._most and len(self._known) > 1:
            oldest = next(iter(self._known))
            gone += [oldest] * (oldest in self._new)
            self._forget(oldest)
        return gone

    def _forget(self, key: bytes) -> None:
        _, most = self._known.pop(key, (0.0, ()))
        self._tokens -= len(most)
        self._learnt -= self._new.pop(key, 0)
