"""Orders over keys: which one goes when a tier is full. A policy knows no bytes and no tiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol, TypeAlias

from cache_core.policies.arc import ARC
from cache_core.policies.gdsf import GDSF
from cache_core.policies.lfu import LFUAging
from cache_core.policies.lru import LRU
from cache_core.policies.s3fifo import S3FIFO
from cache_core.policies.unbounded import Unbounded
from cache_core.use import Use

__all__ = ["LRU", "POLICIES", "Policy", "PolicyMaker", "Use", "make_policy"]


class Policy(Protocol):
    """The order of one tier. It holds exactly the keys that were touched and have not left.

    A request's keys are touched one after another, its last chunk first; only then does the tier
    ask for victims until it fits, so that for a moment a policy holds more than the capacity it
    was made with.
    """

    evicts: ClassVar[bool]
    """False: the tier's capacity is to be ignored, and no victim is ever asked for."""

    def touch(self, key: bytes, use: Use) -> None:
        """The key was used, or came down from another tier: it enters the order, or moves in it."""

    def victim(self, spared: Callable[[bytes], bool]) -> bytes | None:
        """The key to evict next that is not ``spared``; None if there is none, and then what came
        last has to go. May move keys within the order, but none in or out."""

    def evict(self, key: bytes) -> None:
        """The key has left to make room: a policy with ghosts remembers it."""

    def drop(self, key: bytes) -> None:
        """The key has left for another reason (a failed write, a move to another tier). Unknown
        keys are ignored."""

    def __len__(self) -> int: ...

    def __contains__(self, key: bytes) -> bool: ...

    def __iter__(self) -> Iterator[bytes]:
        """Keys, the next victim first, as if nothing were used or spared any more."""


PolicyMaker: TypeAlias = Callable[[int | None], Policy]
"""Makes the order of a tier of that many chunks (None: without a bound)."""

# Those that need no knowledge of the future; `policies.belady` makes the one that does.
POLICIES: dict[str, PolicyMaker] = {
    "lru": LRU,
    "lfu-aging": LFUAging,
    "gdsf": GDSF,
    "s3-fifo": S3FIFO,
    "arc": ARC,
    "unbounded": Unbounded,
}


def make_policy(name: str, capacity: int | None = None) -> Policy:
    """A fresh order by name, for a tier of ``capacity`` chunks. Raises ``ValueError`` naming the
    known ones."""
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is not known; use one of {', '.join(POLICIES)}")
    return POLICIES[name](capacity)
