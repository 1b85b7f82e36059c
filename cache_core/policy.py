"""Orders over keys: which one goes when a tier is full. A policy knows no bytes and no tiers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol


class Policy(Protocol):
    """The order of one tier. It holds exactly the keys that were touched and not dropped."""

    def touch(self, key: bytes) -> None:
        """The key was used, or is new: it enters the order, or moves in it."""

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        """The key to evict next that is not ``spared``; None if all are. Changes nothing."""

    def drop(self, key: bytes) -> None:
        """The key has left the tier. Unknown keys are ignored."""

    def __len__(self) -> int: ...

    def __contains__(self, key: bytes) -> bool: ...

    def __iter__(self) -> Iterator[bytes]:
        """Keys, the next victim first."""


class LRU:
    """Least recently used goes first."""

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()

    def touch(self, key: bytes) -> None:
        self._order[key] = None
        self._order.move_to_end(key)

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        for key in self._order:
            if not spared(key):
                return key
        return None

    def drop(self, key: bytes) -> None:
        self._order.pop(key, None)

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: bytes) -> bool:
        return key in self._order

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._order)


POLICIES: dict[str, Callable[[], Policy]] = {"lru": LRU}


def make_policy(name: str) -> Policy:
    """A fresh order by name. Raises ``ValueError`` naming the known ones."""
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is not known; use one of {', '.join(POLICIES)}")
    return POLICIES[name]()
