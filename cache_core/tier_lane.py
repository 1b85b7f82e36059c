"""One tier's work: what waits to be done there, what is being done, and who is inside."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cache_core.place import Place
from cache_core.plan import ENGINE, Move
from cache_core.tiers.tier import Tier


@dataclass(slots=True, eq=False)
class Errand:
    """One plan on its way. ``finished`` is called once, with the number of chunks that a tier took
    from the engine, when none of its batches is ``reading`` the engine's memory any more; when
    nothing is ``left`` of it, all its moves are settled."""

    finished: Callable[[int], None]
    reading: int = 1
    left: int = 1
    taken: set[bytes] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Batch:
    """Chunks on their way into one tier: from the engine, from memory that is theirs alone
    (``memory``), or from tier ``source``. ``place`` has chunk i in row ``rows[i]``; what is in a
    tier lies there. ``onward`` are slower tiers that get them next; ``done`` is set when the batch
    has ended."""

    errand: Errand
    moves: Sequence[Move]
    rows: Sequence[int] = ()
    place: Place | None = None
    source: int = ENGINE
    memory: object = None
    onward: tuple[int, ...] = ()
    done: threading.Event | None = None

    @property
    def from_engine(self) -> bool:
        """Whether it needs the engine's memory."""
        return self.source == ENGINE and self.memory is None

    def part(self, first: int, last: int) -> Place | None:
        """Where the chunks from ``first`` up to ``last`` lie, of a batch that is in no tier."""
        if self.place is None or (not first and last == len(self.place)):
            return self.place
        return self.place.pick(self.rows[first:last])


@dataclass(slots=True, eq=False)
class Parting:
    """Chunks that leave a tier, all for the same slower one (which does not have those of
    ``unsettled`` yet) or for nowhere. Without an ``errand`` nobody waits for it any more."""

    moves: Sequence[Move]
    unsettled: Sequence[Move]
    errand: Errand | None


@dataclass(slots=True, eq=False)
class TierLane:
    """The state of one tier; its Carrier's lock guards it.

    ``most`` chunks may be queued at once. ``deadline`` is set while a call is in the tier that may
    never come back; ``stuck`` from when it was given up until it does come back.
    """

    index: int
    tier: Tier
    most: int
    in_memory: bool
    keeps_time: bool
    leaving: deque[Parting] = field(default_factory=deque)
    coming: deque[Batch] = field(default_factory=deque)
    queued: int = 0
    """Chunks in ``coming`` and in the batch that is being written."""
    most_queued: int = 0
    going: set[bytes] = field(default_factory=set)
    """Chunks that the tier may still hold, but not for long."""
    again: set[bytes] = field(default_factory=set)
    """Chunks whose discard or clean-up failed, or must wait for a read that was given up."""
    late: Counter[bytes] = field(default_factory=Counter)
    """Chunks that a read which was given up may still be reading."""
    writing: tuple[Batch, int] | None = None
    """The batch in hand, and its first chunk that is not settled."""
    parting: Parting | None = None
    """What is leaving right now."""
    deadline: float | None = None
    stuck: bool = False
    users: int = 0
    closing: bool = False
    closed: bool = False

    @property
    def busy(self) -> bool:
        """Whether something is queued or being done, and may yet end."""
        work = self.coming or self.leaving or self.writing or self.parting
        return bool(work) and not self.stuck

    def room(self, chunks: int) -> int:
        """How many of so many chunks the queue takes: none of a tier that is stuck or closes, and
        a whole batch, whatever its length, if nothing else is queued or the tier is memory, whose
        callers have waited (:meth:`Carrier.wait_for_room`)."""
        if self.stuck or self.closing:
            return 0
        if self.in_memory:
            return chunks
        return min(chunks, max(self.most - self.queued, 0 if self.queued else chunks))

    def queue(self, batch: Batch, source: TierLane | None = None) -> None:
        """One more batch to write; ``source`` is the lane of the tier that it reads from."""
        if source is not None:
            source.users += 1
        batch.errand.left += 1
        batch.errand.reading += batch.from_engine
        self.queued += len(batch.moves)
        self.most_queued = max(self.most_queued, self.queued)
        self.coming.append(batch)

    def give_up(self) -> tuple[list[Batch], list[Parting]]:
        """Empties the queues, and, if a call that is late is in the tier, what that is about.
        Returns batches that won't be written, and partings as they were: their chunks leave all
        the same, sometime, for nowhere."""
        batches, partings = list(self.coming), list(self.leaving)
        if self.deadline is not None:
            self.deadline, self.stuck = None, True
            if self.parting is not None:
                partings.insert(0, self.parting)
            if self.writing is not None:
                batch, first = self.writing
                batches.insert(0, replace(batch, moves=batch.moves[first:]))
            self.parting, self.writing = None, None
        self.coming.clear()
        self.queued -= sum(len(batch.moves) for batch in batches)
        given_up = [replace(parting) for parting in partings]
        for parting in partings:
            parting.unsettled, parting.errand = (), None
        return batches, given_up
