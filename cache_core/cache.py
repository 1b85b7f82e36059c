"""Ledger and tiers in one process: lookup, load, store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cache_core.admission import Admission
from cache_core.carry import carry, fetch
from cache_core.layout import KVLayout
from cache_core.ledger import ENGINE, NOWHERE, Hit, Ledger, LedgerError, Move, Placement, Plan
from cache_core.place import Place
from cache_core.policy import LRU, PolicyMaker
from cache_core.residency import Residency, remembered
from cache_core.tiers.tier import Read, Tier, recovered


@dataclass(slots=True)
class TierCounters:
    """What one tier has done since the cache was made or :meth:`TieredCache.reset_counters`.
    Times are of the calls, in seconds. ``promised_chunks`` were the tier's part of loaded hits, of
    which it gave ``read_chunks``."""

    promised_chunks: int = 0
    read_chunks: int = 0
    read_s: float = 0.0
    written_chunks: int = 0
    write_s: float = 0.0
    evicted_chunks: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """Outcome of a load. ``chunks`` leading chunks are in place; ``by_tier`` splits them."""

    chunks: int
    by_tier: dict[str, int]
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stored:
    """Outcome of a store: chunks and bytes that the engine gave to any tier, and seconds spent."""

    chunks: int
    bytes: int
    seconds: float


class TieredCache:
    """KV chunks over a stack of tiers, fastest first.

    Safe for any number of threads. Stores run on one thread of their own, in the order in which
    they were admitted: every change to a tier happens there, which is why a tier never needs
    more room than its capacity. ``synchronous`` runs them in the caller (the simulator).
    ``admission`` decides by tier name which new chunks may enter. What a tier holds from an
    earlier process can be hit from the start.
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
    ) -> None:
        self.layout = layout
        self.tiers = tuple(tiers)
        self.counters = {tier.name: TierCounters() for tier in self.tiers}
        shared = [i for i, tier in enumerate(self.tiers) if getattr(tier, "shared", False)]
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
        for index, tier in enumerate(self.tiers):
            tier.discard(self._ledger.restore(index, recovered(tier)))
        self._clock = clock
        # Re-entrant, so that a synchronous store can settle what it admits.
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)
        self._writer = None if synchronous else ThreadPoolExecutor(1, "lmcache-store")
        self._last: Future[Stored] | None = None
        self._closed = False

    def __len__(self) -> int:
        """Distinct chunks that can be served."""
        with self._lock:
            return len(self._ledger)

    def lookup(self, keys: Sequence[bytes]) -> Hit:
        """The longest held run of chunks from the first key on. Changes nothing, pins nothing."""
        with self._lock:
            return self._ledger.lookup(keys)

    def acquire(self, keys: Sequence[bytes], wait_s: float = 0.0) -> Hit:
        """Looks up and pins: until :meth:`load` or :meth:`release` no chunk of the hit is evicted.

        Waits up to ``wait_s`` seconds for chunks that are being stored right now: recomputing
        them would take longer. A tier that other processes fill too is asked for the chunks behind
        the hit, and again for those of the hit that it was not asked for lately: one round trip.
        """
        self._wait(keys, wait_s)
        with self._lock:
            hit = self._ledger.pin(self._ledger.lookup(keys))
            if self._residency is None:
                return hit
            asked = [*self._residency.unsure(hit), *keys[len(hit) :]]
        return self._extend(hit, keys, asked, self._residency) if asked else hit

    def acquire_any(self, keys: Sequence[bytes], wait_s: float = 0.0) -> tuple[Hit, list[int]]:
        """As :meth:`acquire`, without the prefix: pins those of the keys that are held, wherever
        they stand among the others. Returns them, in order, with their indices in ``keys``."""
        missing = self._wait(keys, wait_s)
        residency = self._residency
        if residency is not None:
            with self._lock:
                asked = [*missing, *residency.unsure(self._ledger.held(keys))]
            answers = self._ask(asked)
            with self._lock:
                if not self._closed:
                    here = residency.heard(asked, answers)
                    self._carry_away(residency.adopt(missing, here))
        with self._lock:
            hit = self._ledger.held(keys)
            if residency is not None:
                hit = residency.sure(hit, prefix=False)
            hit = self._ledger.pin(hit)
        standing = set(hit.keys)
        return hit, [row for row, key in enumerate(keys) if key in standing]

    def touch(self, keys: Sequence[bytes]) -> None:
        """One request used these chunks; moves none. For KV that was changed after its load, which
        must not be stored again under the same keys."""
        with self._lock:
            self._ledger.touch(keys)

    def release(self, hit: Hit) -> None:
        """Ends the protection of an acquired hit that will not be loaded."""
        with self._lock:
            self._ledger.unpin(hit)

    def load(self, hit: Hit, place: Place | None) -> Loaded:
        """Copies an acquired hit's chunks to ``place`` and releases the hit, also on error.

        The load ends before the first chunk that can't be read: what :class:`Loaded` counts is in
        place and right, the rest must be recomputed. A chunk that is gone or damaged is forgotten;
        one that can't be read now stays held.
        """
        start = self._clock()
        by_tier: dict[str, int] = {}
        done = 0
        with self._lock:
            for tier in hit.tiers:
                self.counters[self.tiers[tier].name].promised_chunks += 1
        try:
            for run in fetch(self.tiers, hit, place, self._clock):
                name = self.tiers[run.tier].name
                with self._lock:
                    self.counters[name].read_s += run.seconds
                    self.counters[name].read_chunks += run.read
                    self.counters[name].failures += len(run.keys) - run.read
                    self._forget(run.gone, run.tier)
                    if self._residency is not None and run.tier == self._shared:
                        self._residency.heard(run.keys, run.answers)
                if run.usable:
                    by_tier[name] = by_tier.get(name, 0) + run.usable
                done += run.usable
        finally:
            self.release(hit)
        return Loaded(done, by_tier, done * self.layout.chunk_bytes, self._clock() - start)

    def store(self, keys: Sequence[bytes], place: Place | None) -> Future[Stored]:
        """Admits one request's chunks, hits and misses alike, in prompt order; ``place`` has the
        KV of all. Returns at once; the engine must leave that KV alone until the future is done.

        Chunks that every tier has already cost nothing. A chunk becomes visible when its bytes
        are whole. A failed write is counted and the chunk stays a miss; the future does not fail.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the cache is closed")
            plan = self._ledger.admit(keys)
            if self._residency is not None:
                plan = self._residency.without_forgotten(plan, keys)
            self._count_evictions()
            return self._submit(plan, place)

    def flush(self) -> None:
        """Waits until everything admitted so far has been written."""
        with self._lock:
            last = self._last
        if last is not None:
            last.result()

    def clear(self) -> None:
        """Forgets every chunk that is not pinned, and frees its bytes. Waits for stores."""
        self.flush()
        with self._lock:
            future = self._submit(Plan(tuple(self._ledger.clear())), None)
        future.result()

    def reset_counters(self) -> None:
        """Sets every tier's counters to zero."""
        with self._lock:
            self.counters.update({tier.name: TierCounters() for tier in self.tiers})

    def check(self) -> None:
        """Proves the Ledger's invariants and that the tiers hold what it says. Waits for stores.
        Raises :class:`LedgerError`."""
        with self._lock:
            self._ledger.check()
            last = self._last
        if last is not None:
            last.result()
        with self._lock:
            if self._last is not last:
                return  # others are storing: tiers are between two states
            self._ledger.check()
            for index, tier in enumerate(self.tiers):
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

    def close(self) -> None:
        """Finishes pending stores and closes the tiers. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._writer is not None:
            self._writer.shutdown(wait=True)
        for tier in self.tiers:
            tier.close()

    def _extend(
        self, hit: Hit, keys: Sequence[bytes], asked: Sequence[bytes], residency: Residency
    ) -> Hit:
        """What the shared tier has of the pinned hit and behind it, pinned, instead of the hit.
        Asks without the lock."""
        try:
            answers = self._ask(asked)
        except BaseException:
            self.release(hit)
            raise
        with self._lock:
            here = residency.heard(asked, answers)
            if not self._closed:
                self._carry_away(residency.adopt_run(keys[len(hit) :], here))
            whole = self._ledger.pin(residency.sure(self._ledger.lookup(keys)))
            self._ledger.unpin(hit)
            return whole

    def _ask(self, keys: Sequence[bytes]) -> list[Read]:
        """What the shared tier has: one round trip."""
        if not keys or self._shared is None:
            return []
        return [Read(answer) for answer in self.tiers[self._shared].read(keys, None)]

    def _wait(self, keys: Sequence[bytes], wait_s: float) -> list[bytes]:
        """Waits for those of the keys that are being stored; returns those that aren't held."""
        deadline = self._clock() + wait_s
        with self._settled:
            while wait_s > 0 and self._ledger.pending(keys):
                left = deadline - self._clock()
                if left <= 0 or not self._settled.wait(left):
                    break
            return [key for key in keys if key not in self._ledger]

    def _carry_away(self, plan: Plan) -> None:
        """What left the shared tier for others' chunks; the caller holds the lock."""
        self._count_evictions()
        if plan.moves:
            self._submit(plan, None)

    def _count_evictions(self) -> None:
        now = list(self._ledger.evictions)
        for tier, before, after in zip(self.tiers, self._evicted, now, strict=True):
            self.counters[tier.name].evicted_chunks += after - before
        self._evicted = now

    def _submit(self, plan: Plan, place: Place | None) -> Future[Stored]:
        """Queues the plan; the caller holds the lock, so that plans queue in admission order."""
        if self._writer is not None:
            self._last = self._writer.submit(self._carry_out, plan, place)
            return self._last
        done: Future[Stored] = Future()
        done.set_result(self._carry_out(plan, place))
        return done

    def _carry_out(self, plan: Plan, place: Place | None) -> Stored:
        start = self._clock()
        given: set[bytes] = set()
        for done in carry(self.tiers, plan, place, self._clock):
            if done.source == ENGINE:
                given.update(m.key for m, ok in zip(done.moves, done.good, strict=True) if ok)
            counters = self.counters[self.tiers[done.target].name]
            with self._lock:
                counters.write_s += done.seconds
                counters.written_chunks += sum(done.good)
                counters.failures += len(done.good) - sum(done.good)
                for move, ok in zip(done.moves, done.good, strict=True):
                    self._ledger.settle([move], ok)
                self._settled.notify_all()
        return Stored(len(given), len(given) * self.layout.chunk_bytes, self._clock() - start)

    def _forget(self, keys: list[bytes], tier: int) -> None:
        lost = [key for key in keys if self._ledger.forget(key, tier)]
        if lost and not self._closed:
            self._submit(Plan(tuple(Move(key, tier, NOWHERE, -1) for key in lost)), None)
