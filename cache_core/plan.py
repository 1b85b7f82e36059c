"""Defines what a Ledger answers, and what came of it: hits and moves, loads and stores. Frozen, for
other processes too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cache_core import _native

Placement = Literal["write_on_insertion", "write_on_eviction"]
PLACEMENTS: tuple[Placement, ...] = ("write_on_insertion", "write_on_eviction")

ENGINE = -1
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Hit:
    """A prompt's leading chunks that are held, and the fastest tier of each. ``probes`` are tiers
    out of order that this hit alone may try."""

    keys: tuple[bytes, ...]
    tiers: tuple[int, ...]
    probes: frozenset[int] = field(default=frozenset(), compare=False)

    def __len__(self) -> int:
        return len(self.keys)


class Move(NamedTuple):
    """The way of one chunk: from ENGINE or a tier, to a tier or NOWHERE. ``index`` is its position
    in the admitted prompt (where the engine has it), -1 for a chunk that came down from a tier."""

    key: bytes
    source: int
    target: int
    index: int  # type: ignore[assignment]  # not the tuple's method, which nobody needs


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves in the order that never needs more space than a tier has: first what leaves, then
    demotions from the slowest tier up, then what the engine brings."""

    moves: tuple[Move, ...]

    def __reduce__(self) -> tuple[Callable[[bytes], Plan], tuple[bytes]]:
        # It goes to other processes, with a million moves when everything is forgotten: as so many
        # tuples it would take half a minute.
        return _unpacked, (_native.pack_moves(self.moves),)

    def shifted(self, by: int) -> Plan:
        """Returns the plan with ``by`` less as the index of each chunk of the engine's."""
        return Plan(
            tuple(m._replace(index=m.index - by) if m.index >= 0 else m for m in self.moves)
        )

    @property
    def without_engine(self) -> Plan:
        """Returns the moves that need nothing of the engine."""
        return Plan(tuple(move for move in self.moves if move.index < 0))

    @property
    def from_engine(self) -> bool:
        """Returns whether anything is read from the engine's memory."""
        return any(m.source == ENGINE and m.target != NOWHERE for m in self.moves)


def _unpacked(packed: bytes) -> Plan:
    return Plan(tuple(_native.unpack_moves(packed, Move)))


@dataclass(slots=True)
class TierCounters:
    """Counts of what one tier has done since the cache was made or its ``reset_counters()``. Times
    are of the calls, in seconds. ``promised_chunks`` were the tier's part of loaded hits, of which
    it gave ``read_chunks``. ``dropped_chunks`` were not written because too much was queued for the
    tier or it did not come back; ``suspensions`` count how often it was left out of look-ups for a
    while because it could not be read."""

    promised_chunks: int = 0
    read_chunks: int = 0
    read_s: float = 0.0
    written_chunks: int = 0
    write_s: float = 0.0
    evicted_chunks: int = 0
    failures: int = 0
    dropped_chunks: int = 0
    suspensions: int = 0


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """The outcome of a load. ``chunks`` leading chunks were loaded; ``by_tier`` splits them."""

    chunks: int
    by_tier: dict[str, int]
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """The outcome of a store: chunks and bytes that the engine gave, and seconds spent."""

    chunks: int
    bytes: int
    seconds: float
