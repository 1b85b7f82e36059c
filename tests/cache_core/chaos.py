"""A tier made unreliable, reproducibly: what does a cache do on a failing disk or network?"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from cache_core.tiers.tier import Read, Tier
from cache_core.tiers.wrappers import Wrapper
from cache_core.transfer.chunks import ChunkBuffers


class Chaos(Wrapper):
    """``tier`` with faults, drawn per chunk and call from ``seed``.

    ``failed_reads`` and ``failed_writes`` are probabilities that a chunk's I/O fails this time
    (``LATER`` of a read, False of a write), ``lost`` that a held chunk is found to be gone for good
    when it is read, ``slow`` that a call takes ``slow_s`` longer. ``injected`` counts them.
    """

    def __init__(
        self,
        tier: Tier,
        seed: int,
        *,
        failed_reads: float = 0.0,
        failed_writes: float = 0.0,
        lost: float = 0.0,
        slow: float = 0.0,
        slow_s: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for share in (failed_reads, failed_writes, lost, slow):
            if not 0 <= share <= 1:
                raise ValueError(f"{share} is no probability")
        super().__init__(tier)
        self.injected: Counter[str] = Counter()
        self._shares = {
            "failed reads": failed_reads,
            "failed writes": failed_writes,
            "lost": lost,
            "slow": slow,
        }
        self._slow_s = slow_s
        self._sleep = sleep
        self._random = random.Random(seed)
        self._gone: set[bytes] = set()
        self._lock = threading.Lock()

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        self._dawdle()
        found = self._tier.contains(keys)
        return [ok and key not in self._gone for key, ok in zip(keys, found, strict=True)]

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        self._dawdle()
        answers = [self._readable(key) for key in keys]
        rows = [row for row, answer in enumerate(answers) if answer]
        chosen = [keys[row] for row in rows]
        found = self._tier.read(chosen, None if place is None else place.pick(rows))
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
        return answers

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        self._dawdle()
        bad = {key for key in dict.fromkeys(keys) if self._fails("failed writes")}
        self._tier.discard(sorted(bad))  # a failed overwrite leaves nothing
        rows = [row for row, key in enumerate(keys) if key not in bad]
        chosen = [keys[row] for row in rows]
        stored = self._tier.write(chosen, None if place is None else place.pick(rows))
        with self._lock:
            self._gone.difference_update(keys)
        answers = [False] * len(keys)
        for row, ok in zip(rows, stored, strict=True):
            answers[row] = ok
        return answers

    def discard(self, keys: Sequence[bytes]) -> None:
        self._tier.discard(keys)
        with self._lock:
            self._gone.difference_update(keys)

    def _readable(self, key: bytes) -> Read:
        if self._draw("lost"):
            with self._lock:
                self._gone.add(key)
        if key in self._gone:
            return Read.GONE
        return Read.LATER if self._fails("failed reads") else Read.HERE

    def _fails(self, what: str) -> bool:
        """Whether this chunk's I/O fails: the error is raised and caught as in a real tier."""
        with suppress(OSError):
            if self._draw(what):
                raise OSError(errno.EIO, f"injected into the {self.name} tier")
            return False
        return True

    def _draw(self, what: str) -> bool:
        with self._lock:
            drawn = self._random.random() < self._shares[what]
            self.injected[what] += drawn
            return drawn

    def _dawdle(self) -> None:
        if self._draw("slow"):
            self._sleep(self._slow_s)
