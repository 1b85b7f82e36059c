"""Three queues: what is used only once passes quickly through a small one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import ClassVar

from cache_core.use import Use

_SMALL_SHARE = 0.1
_MOST_FREQUENT = 3  # uses are counted in two bits


class S3FIFO:
    """S3-FIFO (Yang et al., SOSP'23): first in, first out, in a small and a main queue.

    A new key enters ``small`` (a tenth of the capacity), or ``main`` if a ghost remembers it: one
    that ``small`` evicted lately, as many as ``main`` has room for. At the end of ``small``, what
    was used more than once since goes on to ``main``, the rest is evicted. At the end of ``main``,
    what was used goes round again with one use less. Where a key's move makes ``main`` too long,
    its end is the one victim that is asked for (in the paper: one more). New keys wait until the
    tier has made room for them. A key that was used in another tier more than once enters ``main``.
    """

    evicts: ClassVar[bool] = True

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._small_size = max(1, int((capacity or 0) * _SMALL_SHARE))
        self._main_size = max(0, (capacity or 0) - self._small_size)
        self._small: OrderedDict[bytes, int] = OrderedDict()  # key -> uses since it came
        self._main: OrderedDict[bytes, int] = OrderedDict()
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: OrderedDict[bytes, bool] = OrderedDict()  # key -> whether main takes it

    def touch(self, key: bytes, use: Use) -> None:
        for queue in (self._small, self._main):
            if key in queue:
                queue[key] = min(queue[key] + 1, _MOST_FREQUENT)
                return
        if key not in self._waiting:
            self._waiting[key] = use.times > 1 or key in self._ghosts
            self._ghosts.pop(key, None)
            self._settle()

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        sources = [self._from_main, self._from_small]
        if len(self._small) >= self._small_size:
            sources.reverse()
        key = sources[0](spared)
        return sources[1](spared) if key is None else key

    def _from_small(self, spared: Callable[[bytes], bool]) -> bytes | None:
        promoted: list[bytes] = []
        found: bytes | None = None
        for key, uses in self._small.items():
            if spared(key):
                continue
            if uses <= 1:
                found = key
                break
            promoted.append(key)
            if len(self._main) + len(promoted) > self._main_size:
                break
        for key in promoted:
            del self._small[key]
            self._main[key] = 0
        return self._from_main(spared) if found is None and promoted else found

    def _from_main(self, spared: Callable[[bytes], bool]) -> bytes | None:
        """A spared key at the end goes round as it is."""
        for _ in range((_MOST_FREQUENT + 1) * len(self._main)):
            key = next(iter(self._main))
            if not spared(key):
                if not self._main[key]:
                    return key
                self._main[key] -= 1
            self._main.move_to_end(key)
        return None

    def evict(self, key: bytes) -> None:
        if key in self._small:
            self._ghosts[key] = None
            if len(self._ghosts) > self._main_size:
                self._ghosts.popitem(last=False)
        self.drop(key)

    def drop(self, key: bytes) -> None:
        for held in (self._small, self._main, self._waiting):
            held.pop(key, None)
        self._settle()

    def _settle(self) -> None:
        """Lets in who waits, as far as there is room."""
        room = self._capacity
        while self._waiting and (room is None or len(self._small) + len(self._main) < room):
            key, known = self._waiting.popitem(last=False)
            (self._main if known else self._small)[key] = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._main) + len(self._waiting)

    def __contains__(self, key: bytes) -> bool:
        return key in self._small or key in self._main or key in self._waiting

    def __iter__(self) -> Iterator[bytes]:
        later = S3FIFO(self._capacity)
        later._small, later._main = self._small.copy(), self._main.copy()
        while (key := later.victim(lambda key: False)) is not None:
            later.drop(key)
            yield key
        yield from list(self._waiting)
