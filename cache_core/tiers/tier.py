"""Defines what every tier can do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

from cache_core.transfer.chunks import ChunkBuffers

NAMES = ("device", "cpu", "disk", "remote")


class TierError(Exception):
    """A tier can't be opened or has broken; the text says what and where."""


class Read(IntEnum):
    """The outcome of one chunk's read. It is true only if it is ``HERE``; a plain False of a tier
    that somebody else wrote means ``GONE``, a plain True ``HERE``."""

    GONE = 0
    """The chunk is not held, or damaged: it will never be read, and may be forgotten."""
    HERE = 1
    """The chunk has been copied, whole and right."""
    LATER = 2
    """The chunk could not be read now (a server or a disk that does not answer, too many open
    files): it is a miss for this request, and stays where it is for the next."""

    def __bool__(self) -> bool:
        return self is Read.HERE

    @classmethod
    def of(cls, held: Iterable[bool]) -> list[Read]:
        """Returns ``HERE`` for each True and ``GONE`` for each False."""
        return [cls.HERE if ok else cls.GONE for ok in held]


@runtime_checkable
class Tier(Protocol):
    """A bounded map from key to one chunk's bytes.

    ``write`` and ``discard`` are called by one thread at a time; ``read`` and ``contains`` by any
    thread at any time, for keys that nobody discards meanwhile (the Ledger's pins see to that).
    All take lists and answer per key: a failure of one chunk is a False, never an exception.

    A tier that derives from this one has what it does not say itself. Callers guard against calls
    that never come back (a hung mount, somebody's own tier) with threads and memory of their own.
    """

    name: str
    capacity: int | None
    """The number of chunks that the tier can hold; None is unbounded."""
    shared: bool = False
    """Whether other processes fill it too: ``contains`` then answers for all of them, and may take
    a round trip."""
    in_memory: bool = False
    """Whether it is no more than memory, so that its :meth:`place` can be copied from at once."""

    keeps_time: bool = False
    """Whether its calls always come back, within a time that it keeps itself."""
    counters: Any = None
    """Counts of its own, a dataclass of numbers; None if it has none."""

    def recovered(self) -> list[bytes]:
        """Returns what the tier holds from an earlier process, least recently stored first:
        nothing, unless its chunks outlive one."""
        return []

    def __len__(self) -> int:
        """Returns the number of chunks that are held."""

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Returns which of the keys can be read. Changes nothing."""

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        """Copies chunks to ``place`` (same order); without one, only looks. Changes nothing."""

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        """Copies chunks from ``place``. Returns False for no space, or if the write failed; then
        the key is not held. Writing a held key overwrites it."""

    def discard(self, keys: Sequence[bytes]) -> None:
        """Frees chunks. Unknown keys are ignored."""

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        """Returns buffers of held chunks, to be read without a copy; None if not in memory."""

    def close(self) -> None:
        """Frees everything of this process. A closed tier answers nothing any more."""


class TierInUse(TierError):
    """Another process has the tier open; the text names that one."""


def fitting(keys: Sequence[bytes], held: Sequence[bool], room: int) -> list[int]:
    """Returns the rows of ``keys`` that a tier has space for, which has ``room`` for chunks that it
    does not hold."""
    fresh: set[bytes] = set()
    rows = []
    for row, (key, here) in enumerate(zip(keys, held, strict=True)):
        if not here and key not in fresh:
            if len(fresh) >= room:
                continue
            fresh.add(key)
        rows.append(row)
    return rows
