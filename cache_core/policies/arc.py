"""Recent against frequent, in a balance that the misses adjust."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import ClassVar

from cache_core.use import Use

_RECENT, _FREQUENT, _FREQUENT_GHOST = range(3)  # where a key that waits for room came from


class ARC:
    """Adaptive Replacement Cache (Megiddo and Modha, FAST'03).

    ``recent`` (T1) has keys used once, ``frequent`` (T2) those used again, each with a list of
    ghosts (B1, B2) of what it evicted; a miss that a ghost remembers shifts the target length of
    ``recent``. New keys wait until the tier has made room for them, one after another. A key that
    comes from another tier and was used there more than once enters ``frequent``.
    """

    evicts: ClassVar[bool] = True

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._target = 0.0  # of recent; p in the paper
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._frequent: OrderedDict[bytes, None] = OrderedDict()
        self._recent_ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._frequent_ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: OrderedDict[bytes, int] = OrderedDict()

    def touch(self, key: bytes, use: Use) -> None:
        if key in self._recent:
            del self._recent[key]
            self._frequent[key] = None
        elif key in self._frequent:
            self._frequent.move_to_end(key)
        elif key not in self._waiting:
            self._waiting[key] = self._origin(key, use)
            self._settle()

    def _origin(self, key: bytes, use: Use) -> int:
        """Where a new key belongs, after what its ghost teaches."""
        recent, frequent = len(self._recent_ghosts), len(self._frequent_ghosts)
        if key in self._recent_ghosts and self._capacity is not None:
            self._target = min(self._target + max(1.0, frequent / recent), self._capacity)
            del self._recent_ghosts[key]
            return _FREQUENT
        if key in self._frequent_ghosts:
            self._target = max(self._target - max(1.0, recent / frequent), 0.0)
            del self._frequent_ghosts[key]
            return _FREQUENT_GHOST
        return _FREQUENT if use.times > 1 else _RECENT

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        length = len(self._recent)
        origin = next(iter(self._waiting.values()), _RECENT)
        lists = [self._frequent, self._recent]
        tie = origin == _FREQUENT_GHOST and length == self._target
        if length and (length > self._target or tie):
            lists.reverse()
        return next((key for key in chain(*lists) if not spared(key)), None)

    def evict(self, key: bytes) -> None:
        if key in self._recent:
            del self._recent[key]
            self._recent_ghosts[key] = None
        elif key in self._frequent:
            del self._frequent[key]
            self._frequent_ghosts[key] = None
        else:
            self._waiting.pop(key, None)
        self._settle()

    def drop(self, key: bytes) -> None:
        for held in (self._recent, self._frequent, self._waiting):
            held.pop(key, None)
        self._settle()

    def _settle(self) -> None:
        """Lets in who waits, as far as there is room, and forgets the ghosts that are too old."""
        room = self._capacity
        while self._waiting and (room is None or len(self._recent) + len(self._frequent) < room):
            key, origin = self._waiting.popitem(last=False)
            (self._recent if origin == _RECENT else self._frequent)[key] = None
            self._trim()

    def _trim(self) -> None:
        if self._capacity is None:
            return
        recent, ghosts = self._recent_ghosts, self._frequent_ghosts
        while recent and len(self._recent) + len(recent) > self._capacity:
            recent.popitem(last=False)
        held = len(self._recent) + len(self._frequent)
        while ghosts and held + len(recent) + len(ghosts) > 2 * self._capacity:
            ghosts.popitem(last=False)

    def __len__(self) -> int:
        return len(self._recent) + len(self._frequent) + len(self._waiting)

    def __contains__(self, key: bytes) -> bool:
        return key in self._recent or key in self._frequent or key in self._waiting

    def __iter__(self) -> Iterator[bytes]:
        recent, frequent = list(self._recent), list(self._frequent)
        over = next((n for n in range(len(recent)) if len(recent) - n <= self._target), len(recent))
        return chain(recent[:over], frequent, recent[over:], list(self._waiting))
