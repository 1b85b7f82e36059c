"""Runs one tier's queue and its thread: every change to the tier happens on it, in order. What
nobody has closed is closed at the end of the process."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from cache_core.execute import Executed, discard, write
from cache_core.io.timed_reads import Staged, staged_chunks
from cache_core.plan import ENGINE, Move
from cache_core.tiers.tier import Tier
from cache_core.transfer.chunks import ChunkBuffers


@dataclass(slots=True, eq=False)
class Errand:
    """One plan that is being carried out. ``finished`` is called once, with the number of chunks
    that a tier took from the engine, when none of its batches is ``reading`` the engine's memory
    any more; when nothing is ``left`` of it, all its moves are settled."""

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
    place: ChunkBuffers | None = None
    source: int = ENGINE
    memory: object = None
    onward: tuple[int, ...] = ()
    done: threading.Event | None = None

    @property
    def from_engine(self) -> bool:
        """Returns whether the batch needs the engine's memory."""
        return self.source == ENGINE and self.memory is None

    def part(self, first: int, last: int) -> ChunkBuffers | None:
        """Returns where chunks ``first`` up to ``last`` lie, of a batch that is in no tier."""
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
class TierQueue:
    """The queue and state of one tier; its PlanExecutor's lock guards it.

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
    """The number of chunks in ``coming`` and in the batch that is being written."""
    most_queued: int = 0
    going: set[bytes] = field(default_factory=set)
    """Chunks that the tier may still hold, but not for long."""
    again: set[bytes] = field(default_factory=set)
    """Chunks whose discard or clean-up failed, or must wait for a read that was given up."""
    late: Counter[bytes] = field(default_factory=Counter)
    """Chunks that a read which was given up may still be reading."""
    writing: tuple[Batch, int] | None = None
    """The batch that is being written, and the index of its first chunk that is not settled."""
    parting: Parting | None = None
    """The chunks that are leaving the tier right now."""
    deadline: float | None = None
    stuck: bool = False
    users: int = 0
    closing: bool = False
    closed: bool = False

    @property
    def busy(self) -> bool:
        """Returns whether something is queued or being done, and may yet end."""
        work = self.coming or self.leaving or self.writing or self.parting
        return bool(work) and not self.stuck

    def room(self, chunks: int) -> int:
        """Returns how many of so many chunks the queue takes: none of a tier that is stuck or
        closes, and a whole batch, whatever its length, if nothing else is queued or the tier is
        memory, whose callers have waited (:meth:`PlanExecutor.wait_for_room`)."""
        if self.stuck or self.closing:
            return 0
        if self.in_memory:
            return chunks
        return min(chunks, max(self.most - self.queued, 0 if self.queued else chunks))

    def queue(self, batch: Batch, source: TierQueue | None = None) -> None:
        """Queues a batch to write; ``source`` is the queue of the tier that it reads from."""
        if source is not None:
            source.users += 1
        batch.errand.left += 1
        batch.errand.reading += batch.from_engine
        self.queued += len(batch.moves)
        self.most_queued = max(self.most_queued, self.queued)
        self.coming.append(batch)

    def give_up(self) -> tuple[list[Batch], list[Parting]]:
        """Gives up the queued batches, and, if a call that is late is in the tier, what that is
        about. Returns batches that won't be written, and partings as they were: their chunks leave
        all the same, sometime, for nowhere."""
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


logger = logging.getLogger("lmcache")

_T = TypeVar("_T")


class Desk(Protocol):
    """The state and the calls that the threads of all tiers have in common."""

    workers: Sequence[TierQueue]
    changed: threading.Condition
    chunk_bytes: int
    timeout_s: float
    clock: Callable[[], float]

    def feed(
        self, moves: Sequence[Move], targets: tuple[int, ...], source: int, batch: Batch
    ) -> None:
        """Passes chunks on, from the tier ``source`` or from where the batch has them."""

    def tell(self, done: Executed) -> None:
        """Reports moves that are settled."""

    def end_batch(self, batch: Batch) -> None:
        """Ends a batch that is written or given up: it needs nothing any more."""

    def end(self, errand: Errand | None, reading: bool) -> None:
        """Ends a part of an errand; ``reading``: it needed the engine's memory."""


class TierWorker(threading.Thread):
    """A thread that works off a tier's queue: first what leaves, then what comes. It is a daemon: a
    tier that hangs must not hold up the end of the process."""

    def __init__(self, worker: TierQueue, desk: Desk) -> None:
        super().__init__(name=f"lmcache-{worker.tier.name}", daemon=True)
        self._worker, self._desk, self._changed = worker, desk, desk.changed
        self._step = staged_chunks(desk.chunk_bytes)
        self._room: Staged | None = None

    def run(self) -> None:
        """Works until the queue closes; then closes the tier, when nobody is inside."""
        worker = self._worker
        while True:
            with self._changed:
                self._changed.wait_for(lambda: worker.leaving or worker.coming or worker.closing)
                if worker.leaving:
                    worker.parting = worker.leaving.popleft()
                elif worker.coming:
                    worker.writing = (worker.coming.popleft(), 0)
                else:
                    self._changed.wait_for(lambda: not worker.users)
                    break
                parting, writing = worker.parting, worker.writing
            if parting is not None:
                self._part(parting)
            elif writing is not None:
                self._write(writing[0])
            with self._changed:
                worker.parting, worker.writing = None, None
                self._changed.notify_all()
        close(worker, self._changed)

    def _write(self, batch: Batch) -> None:
        worker = self._worker
        if worker.again:
            self._discard(())  # they may take the space that this batch needs
            if self._given_up():
                return  # the engine's memory has other chunks now
        # Whatever may never come back reads from memory of our own.
        direct = worker.keeps_time or worker.in_memory or batch.memory is not None
        step = len(batch.moves) if worker.in_memory else self._step
        for at in range(0, len(batch.moves), step):
            moves = batch.moves[at : at + step]
            keys = [move.key for move in moves]
            began = self._desk.clock()
            good, stuck = [False] * len(keys), set[bytes]()
            try:
                place = self._bytes_of(batch, at, at + len(moves), direct)
            except Exception:  # the engine's memory, or that of the tier that it is in
                logger.exception("copying %d chunks for %s failed", len(keys), worker.tier.name)
            else:
                written = self._timed(lambda: write(worker.tier, keys, lambda: place, stuck))  # noqa: B023
                if written is None:
                    # Given up, and everybody knows. If it did write, nobody may find it.
                    self._discard(keys)
                    return
                good = written
            there = {key for key, ok in zip(keys, good, strict=True) if ok}
            with self._changed:
                worker.writing = (batch, at + len(moves))
                worker.queued -= len(moves)
                worker.going -= there
                worker.again -= there
                worker.going |= stuck
                worker.again |= stuck
                if batch.from_engine:
                    batch.errand.taken |= there
            self._desk.tell(Executed(moves, good, self._desk.clock() - began))
            if batch.onward:
                rest = [move for move in moves if move.key not in there]
                here = [move for move in moves if move.key in there]
                self._desk.feed(here, batch.onward, worker.index, batch)
                self._desk.feed(rest, batch.onward, batch.source, batch)
        self._desk.end_batch(batch)

    def _given_up(self) -> bool:
        """Returns whether the batch in hand is settled, and what it reads from given back."""
        with self._changed:
            return self._worker.writing is None

    def _bytes_of(self, batch: Batch, first: int, last: int, direct: bool) -> ChunkBuffers | None:
        """Returns where the tier can read the chunks for as long as it likes; memory, at once."""
        if batch.source == ENGINE:
            place = batch.part(first, last)
        else:
            keys = [move.key for move in batch.moves[first:last]]
            place = self._desk.workers[batch.source].tier.place(keys)
        if place is None or direct:
            return place
        if self._room is None or self._room.chunks < len(place):
            self._room = Staged(len(place), self._desk.chunk_bytes)
        return self._room.copy(place)

    def _part(self, parting: Parting) -> None:
        if parting.unsettled and parting.errand is not None:
            self._demote(parting, parting.errand)
        self._discard([move.key for move in parting.moves])
        with self._changed:
            errand, parting.errand = parting.errand, None
        self._desk.end(errand, False)

    def _demote(self, parting: Parting, errand: Errand) -> None:
        """Copies chunks out for a slower tier, which drops what it has no space for."""
        worker = self._worker
        below = self._desk.workers[parting.unsettled[0].target]
        done = threading.Event()
        with self._changed:
            room = below.room(len(parting.unsettled))
            moves, refused = parting.unsettled[:room], parting.unsettled[room:]
            direct = below.in_memory and worker.in_memory
            parting.unsettled = () if direct else moves
            if moves and direct:
                below.queue(Batch(errand, moves, source=worker.index, done=done), worker)
                self._changed.notify_all()
        self._refuse(refused)
        if moves and direct:
            done.wait()
        elif moves:
            batch = self._timed(lambda: self._copied_out(errand, moves))
            with self._changed:
                # Given up, they are settled already.
                moves, parting.unsettled = parting.unsettled, ()
                if moves and batch is not None and below.room(1):
                    below.queue(batch)
                    moves = ()
                    self._changed.notify_all()
            self._refuse(moves)

    def _copied_out(self, errand: Errand, moves: Sequence[Move]) -> Batch | None:
        tier = self._worker.tier
        try:
            place = tier.place([move.key for move in moves])
            if place is None:
                return Batch(errand, moves, memory=self)
            room = Staged(len(moves), self._desk.chunk_bytes)
            return Batch(errand, moves, range(len(moves)), room.copy(place), memory=room)
        except Exception:  # no memory, or a chunk that can't be read
            logger.exception("copying %d chunks out of %s failed", len(moves), tier.name)
            return None

    def _discard(self, keys: Sequence[bytes]) -> None:
        worker = self._worker
        with self._changed:
            worker.again.update(keys)
            ready = [key for key in worker.again if key not in worker.late]
            worker.again.difference_update(ready)
        if not ready:
            return
        done = self._timed(lambda: discard(worker.tier, ready))
        with self._changed:
            if done is False:
                worker.again.update(ready)  # it may have them still: with the next ones
            else:
                worker.going.difference_update(ready)

    def _timed(self, call: Callable[[], _T]) -> _T | None:
        """Makes a call and returns what it does; None if it was given up meanwhile."""
        worker = self._worker
        if worker.keeps_time:
            return call()
        with self._changed:
            worker.deadline = time.monotonic() + self._desk.timeout_s
            self._changed.notify_all()
        try:
            result = call()
        finally:
            with self._changed:
                worker.deadline = None
                late, worker.stuck = worker.stuck, False
        if late:
            logger.warning("the %s tier answers again", worker.tier.name)
        return None if late else result

    def _refuse(self, moves: Sequence[Move]) -> None:
        if moves:
            self._desk.tell(Executed(moves, [False] * len(moves), 0.0, dropped=True))


def close(worker: TierQueue, changed: threading.Condition) -> None:
    """Closes the tier of a queue that nobody uses any more."""
    try:
        worker.tier.close()
    except Exception:
        logger.exception("closing the %s tier failed", worker.tier.name)
    with changed:
        worker.closed = True
        changed.notify_all()


EXIT_TIMEOUT_S = 5.0


class Closable(Protocol):
    """An object that can be closed within a given time."""

    def close(self, timeout_s: float) -> None: ...


def at_exit(thing: Closable) -> Callable[[], None]:
    """Closes ``thing``, if it still exists then, within ``EXIT_TIMEOUT_S`` seconds when the
    interpreter ends, but not in a forked child. Returns what calls that off."""
    call = partial(_close, weakref.ref(thing), os.getpid())
    atexit.register(call)
    return partial(atexit.unregister, call)


def _close(thing: weakref.ref[Closable], process: int) -> None:
    here = thing()
    if here is not None and process == os.getpid():
        here.close(EXIT_TIMEOUT_S)
