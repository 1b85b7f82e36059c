"""Keys of late: a set that forgets by age and by number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice


class Recent:
    """Keys that were added within the last ``seconds``; of more than ``most`` the latest.

    Adding a key again renews it. Not thread-safe. ``clock`` in seconds, monotonic.
    """

    def __init__(
        self, seconds: float, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._added: dict[bytes, float] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._added)

    def __contains__(self, key: bytes) -> bool:
        added = self._added.get(key)
        return added is not None and self._clock() - added < self._seconds

    def add(self, keys: Iterable[bytes]) -> None:
        """Adds or renews keys, and forgets what is too old or too many."""
        now = self._clock()
        for key in keys:
            self._added.pop(key, None)
            self._added[key] = now
        surplus = list(islice(self._added, max(0, len(self._added) - self._most)))
        self.discard(surplus)
        while self._added:
            oldest = next(iter(self._added))
            if now - self._added[oldest] < self._seconds:
                break
            del self._added[oldest]

    def discard(self, keys: Iterable[bytes]) -> None:
        """Forgets keys; unknown ones are ignored."""
        for key in keys:
            self._added.pop(key, None)

    def clear(self) -> None:
        """Forgets all keys."""
        self._added.clear()
