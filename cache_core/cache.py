"""Looks up, loads and stores chunks with a Ledger and tiers in one process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from cache_core.execute import Executed, fetch
from cache_core.layout import KVLayout
from cache_core.ledger import NOWHERE, Hit, Ledger, LedgerError, Move, Placement, Plan
from cache_core.plan import LoadOutcome, StoreOutcome, TierCounters
from cache_core.plan_executor import QUEUE_BYTES, TIMEOUT_S, PlanExecutor
from cache_core.policies import LRU, Admission, PolicyMaker
from cache_core.residency import Residency, remembered
from cache_core.tiers.suspensions import Suspensions
from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers

logger = logging.getLogger("lmcache")
_NOTHING = Hit((), ())


class TieredCache:
    """A cache of KV chunks over a stack of tiers, fastest first.

    Safe for any number of threads. Stores are carried out beside the engine, with a queue and a
    thread for each tier (:class:`.PlanExecutor`): every change to a tier happens on its own thread,
    which is why a tier never needs more space than its capacity; what exceeds ``queue_bytes`` in a
    tier's queue is not stored there. ``synchronous`` runs them in the caller (the simulator).
    ``admission`` decides by tier name which new chunks may enter it. What a tier holds from an
    earlier process can be hit from the start.

    A tier that does not come back within ``timeout_s`` seconds holds up nobody for longer. One that
    could not be read is left out of look-ups for ``pause_s`` seconds, and for twice as long each
    time that it fails again.

    In a forked child the cache is empty and stays so: tiers belong to the parent.
    """

    def __init__(
        self,
        layout: KVLayout,
        tiers: Sequence[Tier],
        *,
        policy: PolicyMaker = LRU,
        placement: Placement = "write_on_insertion",
        admission: Mapping[str, Admission] | None = None,
        synchronous: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        queue_bytes: int = QUEUE_BYTES,
        timeout_s: float = TIMEOUT_S,
        pause_s: float = 1.0,
    ) -> None:
        self.layout = layout
        self.tiers = tuple(tiers)
        self.counters = {tier.name: TierCounters() for tier in self.tiers}
        shared = [i for i, tier in enumerate(self.tiers) if tier.shared]
        self._shared: int | None = shared[0] if shared else None
        capacities = [tier.capacity for tier in self.tiers]
        if self._shared is not None:
            capacities[self._shared] = remembered(capacities[self._shared])
        self._ledger = Ledger(
            capacities,
            policy,
            placement,
            [(admission or {}).get(tier.name) for tier in self.tiers],
        )
        self._evicted = [0] * len(self.tiers)
        self._residency: Residency | None = None
        if self._shared is not None:
            self._residency = Residency(self._ledger, self._shared, clock=clock)
        surplus: list[Move] = []
        for index, tier in enumerate(self.tiers):
            gone = self._ledger.restore(index, tier.recovered())
            surplus += [Move(key, index, NOWHERE, -1) for key in gone]
        self._clock = clock
        # Re-entrant, so that a synchronous store can settle what it admits.
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)
        self._suspensions = Suspensions(len(self.tiers), pause_s, clock)
        self._executor = PlanExecutor(
            self.tiers,
            layout.chunk_bytes,
            self._settle,
            clock=clock,
            threads=not synchronous,
            queue_bytes=queue_bytes,
            timeout_s=timeout_s,
        )
        self._closed = False
        self._process = os.getpid()
        self._said = False
        if surplus:
            self._executor.submit(Plan(tuple(surplus)), None)
            self._executor.flush()

    def __len__(self) -> int:
        """Returns the number of distinct chunks that can be served."""
        if self._elsewhere():
            return 0
        with self._lock:
            return len(self._ledger)

    def lookup(self, keys: Sequence[bytes]) -> Hit:
        """Returns the longest held run from the first key on. Changes nothing, pins nothing."""
        if self._elsewhere():
            return _NOTHING
        with self._lock:
            hit = self._ledger.lookup(keys)
            return self._suspensions.without(self._ledger, hit, self._suspensions.out(hit.tiers))

    def acquire(self, keys: Sequence[bytes], wait_s: float = 0.0) -> Hit:
        """Looks up and pins: until :meth:`load` or :meth:`release` no chunk of the hit is evicted.

        Waits up to ``wait_s`` seconds for chunks that are being stored right now, if they continue
        what is held: recomputing them would take longer. A tier that other processes fill too is
        asked for the chunks after the hit, and again for those of the hit that it was not asked for
        lately: one round trip.
        """
        if self._elsewhere():
            return _NOTHING
        self._wait(lambda: keys[len(self._ledger.lookup(keys)) :][:1], wait_s)
        with self._lock:
            hit = self._pin(self._ledger.lookup(keys))
            if self._residency is None:
                return hit
            asked = [*self._residency.unsure(hit), *keys[len(hit) :]]
        return self._extend(hit, keys, asked, self._residency) if asked else hit

    def acquire_any(self, keys: Sequence[bytes], wait_s: float = 0.0) -> tuple[Hit, list[int]]:
        """Pins those of the keys that are held, wherever they stand among the others. Returns them,
        in order, with their indices in ``keys``. Waits up to ``wait_s`` seconds for chunks that are
        being stored right now."""
        if self._elsewhere():
            return _NOTHING, []
        self._wait(lambda: keys, wait_s)
        residency = self._residency
        if residency is not None:
            with self._lock:
                missing = [key for key in keys if key not in self._ledger]
                asked = [*missing, *residency.unsure(self._ledger.held(keys))]
            answers = self._ask(asked)
            with self._lock:
                if not self._closed:
                    here = residency.heard(asked, answers)
                    self._carry_away(residency.register(missing, here))
        with self._lock:
            hit = self._ledger.held(keys)
            if residency is not None:
                hit = residency.sure(hit, prefix=False)
            hit = self._pin(hit, prefix=False)
        standing = set(hit.keys)
        return hit, [row for row, key in enumerate(keys) if key in standing]

    def touch(self, keys: Sequence[bytes]) -> None:
        """Records that one request used these chunks; moves none. It is for KV that was changed
        after its load, which must not be stored again under the same keys."""
        if self._elsewhere():
            return
        with self._lock:
            self._ledger.touch(keys)

    def discard(self, keys: Sequence[bytes]) -> None:
        """Takes chunks out of this process's own tiers, but for what is being read or written."""
        if self._elsewhere():
            return
        with self._lock:
            for key in keys:
                hit = self._ledger.pin(self._ledger.held([key]))  # others' pins count beside ours
                for tier in set(range(len(self.tiers))) - {self._shared}:
                    self._forget(hit.keys, tier)
                self._ledger.unpin(hit)

    def release(self, hit: Hit) -> None:
        """Ends the protection of an acquired hit that will not be loaded."""
        if self._elsewhere():
            return
        with self._lock:
            self._suspensions.unused(hit.probes)
            self._ledger.unpin(hit)

    def load(self, hit: Hit, place: ChunkBuffers | None) -> LoadOutcome:
        """Copies an acquired hit's chunks to ``place`` and releases the hit, also on error.

        The load ends before the first chunk that can't be read: what the outcome counts is in
        ``place`` and right, the rest must be recomputed. A chunk that is gone or damaged is
        forgotten; one that can't be read now stays held. What a tier does not give in time is not
        waited for, and never touches ``place`` afterwards. A cache that is closed gives nothing.
        """
        start = self._clock()
        if self._elsewhere():
            return LoadOutcome(0, {}, 0, 0.0)
        by_tier: dict[str, int] = {}
        done = 0
        with self._lock:
            for tier in hit.tiers:
                self.counters[self.tiers[tier].name].promised_chunks += 1
        try:
            for run in fetch(self._executor.read, hit, place, self._clock):
                name = self.tiers[run.tier].name
                with self._lock:
                    self.counters[name].read_s += run.seconds
                    self.counters[name].read_chunks += run.read
                    self.counters[name].failures += len(run.keys) - run.read
                    if not self._closed:
                        self.counters[name].suspensions += self._suspensions.saw(
                            run.tier, run.later
                        )
                    self._forget(run.gone, run.tier)
                    if self._residency is not None and run.tier == self._shared:
                        self._residency.heard(run.keys, run.answers)
                if run.usable:
                    by_tier[name] = by_tier.get(name, 0) + run.usable
                done += run.usable
        finally:
            self.release(hit)
        return LoadOutcome(done, by_tier, done * self.layout.chunk_bytes, self._clock() - start)

    def store(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> Future[StoreOutcome]:
        """Admits one request's chunks, hits and misses alike, in prompt order; ``place`` has the
        KV of all. Returns at once; the engine must leave that KV alone until the future is done:
        the fastest tier has it then, and slower ones get it from there.

        Chunks that every tier has already cost nothing. A chunk becomes visible when its bytes
        are whole. A failed write, and one too many for a slow tier, is counted and the chunk stays
        a miss there; the future does not fail.
        """
        future: Future[StoreOutcome] = Future()
        if self._elsewhere():
            future.set_result(StoreOutcome(0, 0, 0.0))
            return future
        future.set_running_or_notify_cancel()  # what is under way can't be cancelled
        start = self._clock()

        def finished(chunks: int) -> None:
            taken = self._clock() - start
            future.set_result(StoreOutcome(chunks, chunks * self.layout.chunk_bytes, taken))

        self._executor.wait_for_room()
        with self._lock:
            if self._closed:
                raise RuntimeError("the cache is closed")
            plan = self._ledger.prepare_store(keys)
            if self._residency is not None:
                plan = self._residency.without_forgotten(plan, keys)
            self._count_evictions()
            self._executor.submit(plan, place, finished)
        return future

    def flush(self) -> None:
        """Waits until everything admitted so far has been written, or given up."""
        if not self._elsewhere():
            self._executor.flush()

    def clear(self) -> None:
        """Forgets every chunk that is not pinned, and frees its bytes. Waits for stores."""
        if self._elsewhere():
            return
        self.flush()
        with self._lock:
            if not self._closed:
                self._executor.submit(Plan(tuple(self._ledger.clear())), None)
        self.flush()

    def queued_chunks(self) -> dict[str, tuple[int, int]]:
        """Returns for each tier the chunks queued for it now, and the most that ever were."""
        if self._elsewhere():
            return {}
        return dict(zip((tier.name for tier in self.tiers), self._executor.queued(), strict=True))

    def reset_counters(self) -> None:
        """Sets every tier's counters to zero."""
        with self._lock:
            self.counters.update({tier.name: TierCounters() for tier in self.tiers})

    def check(self) -> None:
        """Proves the Ledger's invariants and that the tiers hold what it says. Waits for stores.
        Raises :class:`LedgerError`."""
        if self._elsewhere():
            return
        with self._lock:
            self._ledger.check()
        self.flush()
        with self._lock:
            self._ledger.check()
            # None: others are storing, and tiers are between two states.
            for index in self._executor.settled() or ():
                tier = self.tiers[index]
                if index == self._shared:
                    continue  # others may fill and empty it at any time
                if len(tier) != self._ledger.count(index):
                    raise LedgerError(
                        f"the {tier.name} tier has {len(tier)} chunks,"
                        f" the ledger counts {self._ledger.count(index)}"
                    )
                keys = self._ledger.keys(index)
                if not all(tier.contains(keys)):
                    raise LedgerError(f"the {tier.name} tier lacks a chunk that the ledger counts")

    def close(self, timeout_s: float = TIMEOUT_S) -> None:
        """Finishes pending stores and loads, and closes the tiers; waits for ``timeout_s`` seconds
        at most, and abandons a tier that is still busy then. Idempotent."""
        if self._elsewhere():
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._settled.notify_all()
        self._executor.close(timeout_s)

    def _elsewhere(self) -> bool:
        """Returns whether this is a forked child. Its copies of locks may be held for ever."""
        if self._process == os.getpid():
            return False
        if not self._said:
            self._said = True
            text = "a process forked from %d can't use its cache: make one behind the fork"
            logger.warning(text, self._process)
        return True

    def _pin(self, hit: Hit, prefix: bool = True) -> Hit:
        """Pins what tiers that are not suspended hold; the caller holds the lock."""
        out = self._suspensions.out(hit.tiers, probe=True)
        probes = self._suspensions.probes(hit.tiers, out)
        hit = self._suspensions.without(self._ledger, hit, out, prefix)
        keys = self._ledger.pin(hit).keys
        tiers = hit.tiers[: len(keys)]
        self._suspensions.unused(probes.difference(tiers))
        return Hit(keys, tiers, probes.intersection(tiers))

    def _extend(
        self, hit: Hit, keys: Sequence[bytes], asked: Sequence[bytes], residency: Residency
    ) -> Hit:
        """Returns a pinned hit instead of this one, with what the shared tier has of it and after
        it. Asks without the lock."""
        try:
            answers = self._ask(asked)
            with self._lock:
                here = residency.heard(asked, answers)
                if not self._closed:
                    self._carry_away(residency.register_run(keys[len(hit) :], here))
                self._suspensions.unused(hit.probes)  # the hit that takes its place has them
                hit, was = self._pin(residency.sure(self._ledger.lookup(keys))), hit
                self._ledger.unpin(was)
                return hit
        except BaseException:
            self.release(hit)
            raise

    def _ask(self, keys: Sequence[bytes]) -> list[Read]:
        """Asks the shared tier which of the keys it has: one round trip."""
        if not keys or self._shared is None:
            return []
        return self._executor.read(self._shared, keys, None)

    def _wait(self, wanted: Callable[[], Sequence[bytes]], wait_s: float) -> None:
        """Waits while any of the wanted chunks is being stored."""
        deadline = self._clock() + wait_s
        with self._settled:
            while wait_s > 0 and not self._closed and self._ledger.pending(wanted()):
                left = deadline - self._clock()
                if left <= 0 or not self._settled.wait(left):
                    break

    def _carry_away(self, plan: Plan) -> None:
        """Queues moves of what left the shared tier for others' chunks, under the caller's lock."""
        self._count_evictions()
        if plan.moves:
            self._executor.submit(plan, None)

    def _count_evictions(self) -> None:
        now = list(self._ledger.evictions)
        for tier, before, after in zip(self.tiers, self._evicted, now, strict=True):
            self.counters[tier.name].evicted_chunks += after - before
        self._evicted = now

    def _settle(self, done: Executed) -> None:
        counters = self.counters[self.tiers[done.target].name]
        stored = sum(done.good)
        with self._lock:
            counters.write_s += done.seconds
            counters.written_chunks += stored
            if done.dropped:
                counters.dropped_chunks += len(done.good) - stored
            else:
                counters.failures += len(done.good) - stored
            for move, ok in zip(done.moves, done.good, strict=True):
                self._ledger.complete_store([move], ok)
            self._settled.notify_all()

    def _forget(self, keys: Sequence[bytes], tier: int) -> None:
        lost = [key for key in keys if self._ledger.forget(key, tier)]
        if lost and not self._closed:
            moves = tuple(Move(key, tier, NOWHERE, -1) for key in lost)
            self._executor.submit(Plan(moves), None)
