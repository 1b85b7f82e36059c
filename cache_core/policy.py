"""The orders that a tier can have, by name: which chunk goes when it is full.

What each of them is stands beside its code: csrc/order_lists.cpp and csrc/order_ranks.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache_core import _native


@dataclass(frozen=True, slots=True)
class PolicyMaker:
    """Makes the order of a tier: least recently used first for ``lru``, and so on.

    ``future`` is what Belady's policy knows. One that never evicts makes the Ledger take the tier
    as unbounded, whatever its capacity: the ceiling for every other policy. A tier of real bytes
    has a limit of its own and refuses what is over it, so that is for tiers without bytes.
    """

    name: str
    evicts: bool = True
    future: _native.Future | None = None


LRU = PolicyMaker("lru")

# Those that need no knowledge of the future; `belady` makes the one that does.
POLICIES: dict[str, PolicyMaker] = {
    "lru": LRU,
    "lfu-aging": PolicyMaker("lfu-aging"),
    "gdsf": PolicyMaker("gdsf"),
    "s3-fifo": PolicyMaker("s3-fifo"),
    "arc": PolicyMaker("arc"),
    "unbounded": PolicyMaker("unbounded", evicts=False),
}


def belady(requests: Sequence[Sequence[bytes]]) -> PolicyMaker:
    """What is needed last goes first: the bound that knows the future. For a Ledger that will
    admit exactly these requests, in this order."""
    return PolicyMaker("belady", future=_native.Future(requests))
