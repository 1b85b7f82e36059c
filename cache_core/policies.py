"""Chooses which chunk goes when a tier is full (orders, by name), and which new ones may enter it
(admission: saves writes on a medium that wears, for some hits).

What each order is stands beside its code, in csrc/ledger/.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

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
    """Makes the order in which what is needed last goes first: the bound that knows the future. It
    is for a Ledger that will admit exactly these requests, in this order."""
    return PolicyMaker("belady", future=_native.Future(requests))


ADMISSIONS = ("none", "second-touch", "bytes-per-day")
_DAY_S = 86_400.0


class Admission(Protocol):
    """Decides which new chunks may enter one tier. Refusing a chunk never hides others: where not
    all of a request's new chunks may enter, those nearer to the prompt's start come first."""

    def select(self, keys: Sequence[bytes], times: Sequence[int]) -> list[bool]:
        """Returns which of these chunks may enter, first chunk of the prompt first; ``times`` says
        how many requests have used each since any tier took it, this one included. May remember
        them."""

    def entered(self, chunks: int) -> None:
        """Records that so many of the selected chunks are being written; others left at once."""


class SecondTouch:
    """Lets in what a second request uses, while it is held or within the last ``keys`` that were
    refused (about 150 bytes of memory each)."""

    def __init__(self, keys: int = 1 << 17) -> None:
        if keys < 1:
            raise ValueError(f"second-touch: can't remember {keys} keys; it must be at least 1")
        self._most = keys
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def select(self, keys: Sequence[bytes], times: Sequence[int]) -> list[bool]:
        selected = [n > 1 or key in self._seen for key, n in zip(keys, times, strict=True)]
        # The last chunk first, so that the start of a prefix is remembered longest.
        for key, enters in zip(reversed(keys), reversed(selected), strict=True):
            self._seen.pop(key, None)
            if not enters:
                self._seen[key] = None
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return selected

    def entered(self, chunks: int) -> None:
        pass


class BytesPerDay:
    """Lets in what a budget of writes allows: a bucket that fills at ``bytes_per_day``, holds at
    most ``burst_s`` seconds' worth (or one chunk, if that is more) and starts full. ``clock`` is in
    seconds. A write that fails later has been paid for: it may have worn the medium."""

    def __init__(
        self,
        bytes_per_day: float,
        chunk_bytes: int,
        clock: Callable[[], float],
        burst_s: float = 3600.0,
    ) -> None:
        if bytes_per_day <= 0 or chunk_bytes <= 0 or burst_s <= 0:
            raise ValueError("bytes-per-day: the budget, the chunk and the burst must be over 0")
        self._rate = bytes_per_day / _DAY_S
        self._chunk_bytes = chunk_bytes
        self._clock = clock
        self._most = max(self._rate * burst_s, float(chunk_bytes))
        self._level = self._most
        self._at = clock()

    def select(self, keys: Sequence[bytes], times: Sequence[int]) -> list[bool]:
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        most = int(self._level // self._chunk_bytes)
        return [place < most for place in range(len(keys))]

    def entered(self, chunks: int) -> None:
        self._level -= chunks * self._chunk_bytes


def make_admission(
    name: str, bytes_per_day: float, chunk_bytes: int, clock: Callable[[], float]
) -> Admission | None:
    """Makes an admission by name; None for "none". The numbers matter to "bytes-per-day" only.
    Raises ``ValueError`` naming the known ones, or for a budget that is no budget."""
    if name == "none":
        return None
    if name == "second-touch":
        return SecondTouch()
    if name == "bytes-per-day":
        return BytesPerDay(bytes_per_day, chunk_bytes, clock)
    raise ValueError(f"admission {name!r} is not known; use one of {', '.join(ADMISSIONS)}")
