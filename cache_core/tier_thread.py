"""The thread of one tier: every change to the tier happens on it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from cache_core.carry import Carried, discard, write
from cache_core.place import Place
from cache_core.plan import ENGINE, Move
from cache_core.staged import Staged, staged_chunks
from cache_core.tier_lane import Batch, Errand, Parting, TierLane

logger = logging.getLogger("lmcache")

T = TypeVar("T")


class Desk(Protocol):
    """What the threads of all tiers have in common."""

    lanes: Sequence[TierLane]
    changed: threading.Condition
    chunk_bytes: int
    timeout_s: float
    clock: Callable[[], float]

    def feed(
        self, moves: Sequence[Move], targets: tuple[int, ...], source: int, batch: Batch
    ) -> None:
        """Gives chunks of a batch on, from the tier ``source`` or from where the batch has them."""

    def tell(self, done: Carried) -> None:
        """Moves are settled."""

    def end_batch(self, batch: Batch) -> None:
        """A batch is written or given up: it needs nothing any more."""

    def end(self, errand: Errand | None, reading: bool) -> None:
        """A part of an errand has ended; ``reading``: it needed the engine's memory."""


class TierThread(threading.Thread):
    """Works off a lane: first what leaves, then what comes. A daemon: a tier that hangs must not
    hold up the end of the process."""

    def __init__(self, lane: TierLane, desk: Desk) -> None:
        super().__init__(name=f"lmcache-{lane.tier.name}", daemon=True)
        self._lane, self._desk, self._changed = lane, desk, desk.changed
        self._step = staged_chunks(desk.chunk_bytes)
        self._room: Staged | None = None

    def run(self) -> None:
        """Until the lane closes; then closes the tier, when nobody is inside."""
        lane = self._lane
        while True:
            with self._changed:
                self._changed.wait_for(lambda: lane.leaving or lane.coming or lane.closing)
                if lane.leaving:
                    lane.parting = lane.leaving.popleft()
                elif lane.coming:
                    lane.writing = (lane.coming.popleft(), 0)
                else:
                    self._changed.wait_for(lambda: not lane.users)
                    break
                parting, writing = lane.parting, lane.writing
            if parting is not None:
                self._part(parting)
            elif writing is not None:
                self._write(writing[0])
            with self._changed:
                lane.parting, lane.writing = None, None
                self._changed.notify_all()
        close(lane, self._changed)

    def _write(self, batch: Batch) -> None:
        lane = self._lane
        if lane.again:
            self._discard(())  # it may be what there is no room for
            if self._given_up():
                return  # the engine's memory has other chunks now
        # Whatever may never come back reads from memory of our own.
        direct = lane.keeps_time or lane.in_memory or batch.memory is not None
        step = len(batch.moves) if lane.in_memory else self._step
        for at in range(0, len(batch.moves), step):
            moves = batch.moves[at : at + step]
            keys = [move.key for move in moves]
            began = self._desk.clock()
            good, stuck = [False] * len(keys), set[bytes]()
            try:
                place = self._bytes_of(batch, at, at + len(moves), direct)
            except Exception:  # the engine's memory, or that of the tier that it is in
                logger.exception("copying %d chunks for %s failed", len(keys), lane.tier.name)
            else:
                written = self._timed(lambda: write(lane.tier, keys, lambda: place, stuck))  # noqa: B023
                if written is None:
                    # Given up, and everybody knows. If it did write, nobody may find it.
                    self._discard(keys)
                    return
                good = written
            there = {key for key, ok in zip(keys, good, strict=True) if ok}
            with self._changed:
                lane.writing = (batch, at + len(moves))
                lane.queued -= len(moves)
                lane.going -= there
                lane.again -= there
                lane.going |= stuck
                lane.again |= stuck
                if batch.from_engine:
                    batch.errand.taken |= there
            self._desk.tell(Carried(moves, good, self._desk.clock() - began))
            if batch.onward:
                rest = [move for move in moves if move.key not in there]
                here = [move for move in moves if move.key in there]
                self._desk.feed(here, batch.onward, lane.index, batch)
                self._desk.feed(rest, batch.onward, batch.source, batch)
        self._desk.end_batch(batch)

    def _given_up(self) -> bool:
        """Whether the batch in hand is settled already, and what it reads from given back."""
        with self._changed:
            return self._lane.writing is None

    def _bytes_of(self, batch: Batch, first: int, last: int, direct: bool) -> Place | None:
        """Where the tier can read the chunks for as long as it likes; or, if memory, at once."""
        if batch.source == ENGINE:
            place = batch.part(first, last)
        else:
            keys = [move.key for move in batch.moves[first:last]]
            place = self._desk.lanes[batch.source].tier.place(keys)
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
        """Copies chunks out for a slower tier, which drops what it has no room for."""
        lane = self._lane
        below = self._desk.lanes[parting.unsettled[0].target]
        done = threading.Event()
        with self._changed:
            room = below.room(len(parting.unsettled))
            moves, refused = parting.unsettled[:room], parting.unsettled[room:]
            direct = below.in_memory and lane.in_memory
            parting.unsettled = () if direct else moves
            if moves and direct:
                below.queue(Batch(errand, moves, source=lane.index, done=done), lane)
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
        tier = self._lane.tier
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
        lane = self._lane
        with self._changed:
            lane.again.update(keys)
            ready = [key for key in lane.again if key not in lane.late]
            lane.again.difference_update(ready)
        if not ready:
            return
        done = self._timed(lambda: discard(lane.tier, ready))
        with self._changed:
            if done is False:
                lane.again.update(ready)  # it may have them still: with the next ones
            else:
                lane.going.difference_update(ready)

    def _timed(self, call: Callable[[], T]) -> T | None:
        """What the call returns; None if it was given up meanwhile."""
        lane = self._lane
        if lane.keeps_time:
            return call()
        with self._changed:
            lane.deadline = time.monotonic() + self._desk.timeout_s
            self._changed.notify_all()
        try:
            result = call()
        finally:
            with self._changed:
                lane.deadline = None
                late, lane.stuck = lane.stuck, False
        if late:
            logger.warning("the %s tier answers again", lane.tier.name)
        return None if late else result

    def _refuse(self, moves: Sequence[Move]) -> None:
        if moves:
            self._desk.tell(Carried(moves, [False] * len(moves), 0.0, dropped=True))


def close(lane: TierLane, changed: threading.Condition) -> None:
    """Closes the tier of a lane that nobody uses any more."""
    try:
        lane.tier.close()
    except Exception:
        logger.exception("closing the %s tier failed", lane.tier.name)
    with changed:
        lane.closed = True
        changed.notify_all()
