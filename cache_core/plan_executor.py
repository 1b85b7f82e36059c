"""Carries plans out beside the engine: a queue and a thread for each tier."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

from cache_core.execute import Executed, execute, read
from cache_core.io.tier_worker import Batch, Errand, Parting, TierQueue, TierWorker, at_exit, close
from cache_core.io.timed_reads import TimedReads
from cache_core.plan import ENGINE, NOWHERE, Move, Plan
from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers

logger = logging.getLogger("lmcache")

QUEUE_BYTES = 256 << 20
# Below a small tier in memory a queue may still take this much, most of it from the engine.
_LEAST_BYTES = 64 << 20
TIMEOUT_S = 30.0


class PlanExecutor:
    """Moves chunks as plans say. Every change to a tier happens on that tier's own thread.

    A tier's queue takes ``queue_bytes`` (of a slow one below memory at most half the chunks that
    fit there, but 64 MiB), or one plan whatever its length; what comes on top is dropped there and
    nowhere else, so that no tier waits for a slower one. One in memory drops nothing: callers wait
    for space (:meth:`wait_for_room`). A chunk that goes to several tiers is given from one in
    memory to the slower ones, so that the engine's memory is needed until the fastest tier has read
    it: until then no one may evict the chunk there (the Ledger spares what is pending anywhere). A
    demoted chunk is copied out, and leaves, whatever becomes of it.

    A call that a tier (unless it keeps its own time) does not answer within ``timeout_s`` is given
    up: it and what is queued there has failed, nothing more is taken until it does come back, and
    the engine's memory is neither read nor written to by it any more.

    ``carried`` is called with each group of moves that is settled, by the tier's thread or the
    caller. What is queued when the interpreter ends has a few seconds more. Without ``threads``
    everything happens in the caller, and may take its time.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        chunk_bytes: int,
        carried: Callable[[Executed], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
        threads: bool = True,
        queue_bytes: int = QUEUE_BYTES,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.tiers = tuple(tiers)
        self.chunk_bytes, self.clock, self.timeout_s = chunk_bytes, clock, timeout_s
        self.changed = threading.Condition()
        self._executed = carried
        self._errands: set[Errand] = set()
        workers: list[TierQueue] = []
        for index, tier in enumerate(self.tiers):
            most = queue_bytes // chunk_bytes
            memory = tier.in_memory
            for faster in workers if not memory else ():
                if faster.in_memory and faster.tier.capacity is not None:
                    # What waits for a slower tier can't be evicted there meanwhile.
                    half = faster.tier.capacity // 2
                    most = min(most, max(half, _LEAST_BYTES // chunk_bytes))
            timely = not threads or tier.keeps_time
            workers.append(TierQueue(index, tier, max(1, most), memory, timely))
        self.workers: Sequence[TierQueue] = workers
        self._reads = {
            worker.index: self._timed_reads(worker)
            for worker in self.workers
            if not worker.keeps_time
        }
        self._threads = [TierWorker(worker, self) for worker in self.workers] if threads else []
        self._forget_exit = at_exit(self) if threads else None
        self._all_threads: list[threading.Thread] = [*self._threads]
        if self._reads:
            watch = threading.Thread(target=self._watch, name="lmcache-watch", daemon=True)
            self._all_threads.append(watch)
        for thread in self._all_threads:
            thread.start()

    def submit(
        self,
        plan: Plan,
        place: ChunkBuffers | None,
        finished: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Queues a plan; plans must come in the order in which they were made. ``place`` has the
        admitted chunks in the engine's memory, which must be left alone until ``finished`` is
        called with the number of chunks that were taken from there."""
        if not self._threads:
            self._carry_out(plan, place, finished)
            return
        errand = Errand(finished)
        routes: dict[bytes, tuple[int, list[int]]] = {}
        leaving: list[Move] = []
        for move in plan.moves:
            if move.source != ENGINE:
                leaving.append(move)
            else:
                routes.setdefault(move.key, (move.index, []))[1].append(move.target)
        with self.changed:
            self._errands.add(errand)
            for (source, _), group in groupby(leaving, key=lambda m: (m.source, m.target)):
                worker, moves = self.workers[source], tuple(group)
                demoted = moves if moves[0].target != NOWHERE else ()
                worker.going.update(move.key for move in moves)
                if worker.stuck or worker.closing:
                    self._refuse(demoted)
                    worker.leaving.append(Parting(moves, (), None))
                else:
                    errand.left += 1
                    worker.leaving.append(Parting(moves, demoted, errand))
            self.changed.notify_all()
        groups: dict[tuple[int, tuple[int, ...]], list[tuple[int, bytes]]] = {}
        for key, (index, wanted) in routes.items():
            targets = tuple(sorted(wanted))
            groups.setdefault((self._copy_of(key, targets[0]), targets), []).append((index, key))
        engine = Batch(errand, (), place=place)
        for (tier, targets), chunks in groups.items():
            coming = [Move(key, ENGINE, targets[0], index) for index, key in sorted(chunks)]
            self.feed(coming, targets, tier, engine)
        self.end(errand, True)

    def wait_for_room(self) -> None:
        """Waits while the queue of a tier in memory is full: a burst of stores is held up for as
        long as copying it takes, and not dropped there."""
        memory = [worker for worker in self.workers if worker.in_memory]
        with self.changed:
            self.changed.wait_for(
                lambda: all(worker.queued < worker.most or worker.closing for worker in memory)
            )

    def read(self, tier: int, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        """Reads chunks of a tier. Returns ``LATER`` for what the tier does not answer in time, and
        for all if it fails or is closed."""
        worker = self.workers[tier]
        if tier in self._reads:
            return self._reads[tier].read(keys, place)
        if not self._enter(worker):
            return [Read.LATER] * len(keys)
        try:
            return read(worker.tier, keys, place)
        except Exception:  # a broken tier costs hits, never a request
            logger.exception("reading %d chunks from %s failed", len(keys), worker.tier.name)
            return [Read.LATER] * len(keys)
        finally:
            self._leave(worker)

    def flush(self) -> None:
        """Waits until everything that was submitted so far is in its tiers, or was dropped or
        given up."""
        with self.changed:
            errands = set(self._errands)
            self.changed.wait_for(lambda: errands.isdisjoint(self._errands))

    def settled(self) -> list[int] | None:
        """Returns the tiers that hold what they were given, and nothing else; None if anything is
        still being done."""
        with self.changed:
            if self._errands or any(worker.busy for worker in self.workers):
                return None
            return [
                worker.index for worker in self.workers if not worker.stuck and not worker.again
            ]

    def queued(self) -> list[tuple[int, int]]:
        """Returns for each tier the chunks that are queued for it, and the most that ever were."""
        with self.changed:
            return [(worker.queued, worker.most_queued) for worker in self.workers]

    def close(self, timeout_s: float) -> None:
        """Refuses what comes from now on, finishes what is queued, waits for those who read, and
        closes the tiers, all within ``timeout_s``. A tier that is still busy then is closed by the
        last one who comes out of it."""
        end = time.monotonic() + timeout_s
        if self._forget_exit is not None:
            self._forget_exit()

        def waited(until: Callable[[], bool]) -> bool:
            with self.changed:
                return self.changed.wait_for(until, max(0.0, end - time.monotonic()))

        for worker in self.workers:
            # What a faster tier gives to a slower one goes ahead of its end.
            waited(partial(_is_idle, worker))
            with self.changed:
                worker.closing = True
                self.changed.notify_all()
        for worker in self.workers:
            if not self._threads and waited(partial(_is_empty, worker)):
                close(worker, self.changed)
            if not waited(partial(_is_closed, worker)):
                logger.warning("the %s tier is still busy: it is left behind", worker.tier.name)
                self._give_up(worker)
            if worker.index in self._reads:
                self._reads[worker.index].close()  # not before: loads that had begun are finished
        with self.changed:
            self.changed.notify_all()
        if all(worker.closed for worker in self.workers):
            # What they have in hand, memory of the tiers and of the engine, goes with them.
            for thread in self._all_threads:
                if thread is not threading.current_thread():
                    thread.join(max(0.0, end - time.monotonic()))

    def feed(
        self, moves: Sequence[Move], targets: tuple[int, ...], source: int, batch: Batch
    ) -> None:
        """Gives chunks to the first of the tiers, and to the slower ones: at once, or, if it is
        memory, from its copy. The chunks are in the tier ``source``, or where the batch has
        them."""
        place = batch.place if source == ENGINE else None
        for number, target in enumerate(targets):
            if not moves:
                return
            worker = self.workers[target]
            onward = targets[number + 1 :] if worker.in_memory else ()
            moves = [Move(m.key, ENGINE, target, m.index) for m in moves]
            with self.changed:
                room = worker.room(len(moves))
                taken, refused = moves[:room], moves[room:]
                if taken:
                    rows = [move.index for move in taken]
                    giver = self.workers[source] if source != ENGINE else None
                    part = Batch(batch.errand, taken, rows, place, source, None, onward)
                    worker.queue(part, giver)
                    self.changed.notify_all()
            self._refuse(refused)
            if onward:
                self.feed(refused, onward, source, batch)
                return

    def tell(self, done: Executed) -> None:
        """Reports moves that are settled to ``carried``."""
        try:
            self._executed(done)
        except Exception:  # the thread has the tier's other work to do
            logger.exception("counting %d chunks of a tier failed", len(done.moves))

    def end_batch(self, batch: Batch) -> None:
        """Ends a batch that is written or given up: it needs nothing any more."""
        self.end(batch.errand, batch.from_engine)
        if batch.source != ENGINE:
            self._leave(self.workers[batch.source])
        if batch.done is not None:
            batch.done.set()

    def end(self, errand: Errand | None, reading: bool) -> None:
        """Ends a part of an errand; ``reading``: it needed the engine's memory."""
        if errand is None:
            return
        with self.changed:
            errand.reading -= reading
            free = reading and not errand.reading
        if free:
            try:
                errand.finished(len(errand.taken))
            except Exception:  # the thread has the tier's other work to do
                logger.exception("telling that %d chunks are taken failed", len(errand.taken))
        with self.changed:
            errand.left -= 1
            if not errand.left:
                self._errands.discard(errand)
                self.changed.notify_all()

    def _timed_reads(self, worker: TierQueue) -> TimedReads:
        def late(keys: Sequence[bytes], reading: bool) -> None:
            with self.changed:
                if reading:
                    worker.late.update(keys)
                else:
                    worker.late -= Counter(keys)

        return TimedReads(
            worker.tier,
            self.chunk_bytes,
            self.timeout_s,
            partial(self._enter, worker),
            partial(self._stay, worker),
            partial(self._leave, worker),
            late,
        )

    def _enter(self, worker: TierQueue) -> bool:
        with self.changed:
            worker.users += not worker.closing
            return not worker.closing

    def _stay(self, worker: TierQueue) -> None:
        with self.changed:
            worker.users += 1

    def _leave(self, worker: TierQueue) -> None:
        with self.changed:
            worker.users -= 1
            self.changed.notify_all()

    def _carry_out(
        self, plan: Plan, place: ChunkBuffers | None, finished: Callable[[int], None]
    ) -> None:
        taken: set[bytes] = set()
        for done in execute(self.tiers, plan, place, self.clock):
            if done.source == ENGINE:
                taken.update(m.key for m, ok in zip(done.moves, done.good, strict=True) if ok)
            self._executed(done)
        finished(len(taken))

    def _copy_of(self, key: bytes, target: int) -> int:
        """Returns the nearest faster tier in memory that has the chunk for good, or ENGINE."""
        for worker in reversed(self.workers[:target]):
            if worker.in_memory and key not in worker.going and worker.tier.contains([key])[0]:
                return worker.index
        return ENGINE

    def _refuse(self, moves: Sequence[Move]) -> None:
        """Reports moves as dropped: nobody tries them any more."""
        if moves:
            self.tell(Executed(moves, [False] * len(moves), 0.0, dropped=True))

    def _watch(self) -> None:
        """Gives up calls that take too long."""
        while True:
            with self.changed:
                if all(worker.closed for worker in self.workers):
                    return
                ends = [worker.deadline for worker in self.workers if worker.deadline is not None]
                self.changed.wait(min(ends) - time.monotonic() if ends else None)
                now = time.monotonic()
                late = [
                    worker
                    for worker in self.workers
                    if worker.deadline is not None and worker.deadline <= now
                ]
            for worker in late:
                logger.warning(
                    "the %s tier did not come back within %g s: nothing is stored there until"
                    " it does",
                    worker.tier.name,
                    self.timeout_s,
                )
                self._give_up(worker)

    def _give_up(self, worker: TierQueue) -> None:
        with self.changed:
            batches, partings = worker.give_up()
            self.changed.notify_all()
        for batch in batches:
            self._refuse(batch.moves)
            self.end_batch(batch)
        for parting in partings:
            self._refuse(parting.unsettled)
            self.end(parting.errand, False)


def _is_idle(worker: TierQueue) -> bool:
    return not worker.busy


def _is_empty(worker: TierQueue) -> bool:
    return not worker.users


def _is_closed(worker: TierQueue) -> bool:
    return worker.closed
