"""A tier that fails as often as a simulation's settings say."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.vllm_sim.settings import Settings
from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers


class Unreliable:
    """``tier``, some of whose reads fail and leave garbage where the chunk should be, and some of
    whose writes do."""

    def __init__(self, tier: Tier, seed: int, settings: Settings, chunk_bytes: int) -> None:
        self._tier, self._share, self._unwritten = tier, settings.unread, settings.unwritten
        self._random = random.Random(seed)
        self.lost = 0
        self._garbage = np.full(chunk_bytes // 4, 777, dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tier, name)

    def __len__(self) -> int:
        return len(self._tier)

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        answers = list(self._tier.read(keys, place))
        for row in range(len(answers)):
            if answers[row] and self._random.random() < self._share:
                self.lost += 1
                answers[row] = Read.GONE if self._random.random() < 0.8 else Read.LATER
                if place is not None:
                    address = np.array([self._garbage.ctypes.data], dtype=np.uint64)
                    place.pick([row]).copy_from(address)
        return answers

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        rows = [row for row in range(len(keys)) if self._random.random() >= self._unwritten]
        good = [False] * len(keys)
        if place is not None and rows:
            written = self._tier.write([keys[row] for row in rows], place.pick(rows))
            for row, ok in zip(rows, written, strict=True):
                good[row] = ok
        # Written or not, what is not held may not be what it was before.
        self._tier.discard([key for key, ok in zip(keys, good, strict=True) if not ok])
        return good
