"""Provides the remote tier: chunks in an engine that other processes and machines use too."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from cache_core.residency import Recent
from cache_core.tiers.remote.io_worker import IoWorker, IoWorkers, stride_of
from cache_core.tiers.remote.store import HEAD_BYTES, Proving, Store, StoreError, intact, seal
from cache_core.tiers.suspensions import CircuitBreaker
from cache_core.tiers.tier import Read, Tier, TierError, fitting
from cache_core.transfer.chunks import ChunkBuffers

logger = logging.getLogger("lmcache")

_T = TypeVar("_T")
BATCH_BYTES = 16 << 20
# A store that keeps its own time gives up a little earlier than the one who waits for it.
_OWN_SHARE = 0.9
_MOST_KNOWN = 1 << 20
# What could not be read is not looked at again for so long: somebody may write it anew.
_UNREADABLE_S = 10.0


@dataclass(slots=True)
class RemoteCounters:
    """Counts of what went wrong or missing, since the tier was opened. All count chunks, but for
    the ``errors``, ``timeouts`` and ``refused`` calls and the times the breaker ``opened``."""

    absent: int = 0
    damaged: int = 0
    rejected: int = 0
    errors: int = 0
    timeouts: int = 0
    refused: int = 0
    opened: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    worker: IoWorker
    rows: range
    future: Future[list[bool]]


class _Patience:
    """The time that one call may still wait for the next answer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Starts the time anew: an answer came."""
        self._end = time.monotonic() + self._seconds

    def left(self) -> float:
        """Returns the seconds that are left."""
        return max(0.0, self._end - time.monotonic())


def _prove(store: Store) -> None:
    if isinstance(store, Proving):
        store.prove()
    else:
        store.exists(["ping"])


class RemoteTier(Tier):
    """A tier of chunks in a :class:`Store`, staged through buffers of its own, ``workers`` batches
    at a time.

    No engine memory is touched by a store: what arrives is verified first and copied then. A call
    that hears nothing for ``timeout_s`` seconds ends, ``LATER`` or False for what is left; after
    ``failures`` failed calls in a row every call answers at once for ``pause_s``. Nothing raises
    for I/O trouble, and opening connects to nothing: see :meth:`ping`.

    Others share the store (``shared``): ``contains`` asks it, ``len`` counts what this process
    wrote and has not discarded (at most ``capacity``, or the latest million), ``discard`` removes
    that and nothing else, ``close`` leaves the chunks where they are. A value that can't be read,
    torn or damaged, is not removed, since another process may just have written it anew: it is not
    held for ten seconds, or until this process writes it. ``clock`` counts them. Takes ``workers``
    x ``batch_bytes`` of memory when used.
    """

    shared = True
    keeps_time = True

    def __init__(
        self,
        name: str,
        capacity: int | None,
        chunk_bytes: int,
        store: Callable[[], Store],
        *,
        workers: int = 4,
        batch_bytes: int = BATCH_BYTES,
        timeout_s: float = 5.0,
        breaker: CircuitBreaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.capacity = capacity
        self._timeout_s = timeout_s
        self._breaker = breaker or CircuitBreaker()
        self._counters = RemoteCounters()
        self._lock = threading.Lock()
        self._known = Recent(math.inf, _MOST_KNOWN if capacity is None else capacity)
        self._unreadable = Recent(_UNREADABLE_S, _MOST_KNOWN, clock)
        self._closed = False
        size = HEAD_BYTES + chunk_bytes

        def make(rows: int, freed: Callable[[IoWorker], None]) -> IoWorker:
            return IoWorker(store, rows, HEAD_BYTES, size, timeout_s * _OWN_SHARE, freed)

        self._workers = workers
        self._rows = max(1, batch_bytes // stride_of(size))
        self._bulk = IoWorkers(workers, partial(make, self._rows))
        # Look-ups must not wait for transfers.
        self._quick = IoWorkers(2, partial(make, 0))

    def __len__(self) -> int:
        return len(self._known)

    @property
    def counters(self) -> RemoteCounters:
        """Returns a copy of the counters."""
        with self._lock:
            self._counters.opened = self._breaker.opened
            return RemoteCounters(**asdict(self._counters))

    def ping(self) -> None:
        """Connects, and tries what a cache does. Raises :class:`TierError` with the reason if the
        store can't be used."""
        try:
            self._quick_call(_prove)
        except WaitTimeout:
            raise TierError(
                f"the {self.name} tier did not answer within {self._timeout_s:g} s"
            ) from None
        except StoreError as error:
            raise TierError(f"the {self.name} tier can't be used: {error}") from error

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [bool(answer) for answer in self.read(keys, None)]

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        if place is None:
            return self._look_up(keys)
        done = [Read.LATER] * len(keys)

        def start(worker: IoWorker, rows: range) -> Future[list[bool]]:
            return worker.submit(partial(self._receive, [keys[i] for i in rows], worker))

        def finish(worker: IoWorker, rows: range, good: list[bool]) -> None:
            arrived = [i for i, ok in enumerate(good) if ok]
            if arrived:
                target = place.pick([rows[i] for i in arrived])
                target.copy_from(worker.payloads(len(rows))[arrived])
            for row, answer in zip(rows, Read.of(good), strict=True):
                done[row] = answer

        self._transfer(len(keys), start, finish)
        return done

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        if place is None:
            raise ValueError(f"the {self.name} tier keeps bytes: write() needs a place")
        fitting = self._fitting(keys)
        done = [False] * len(keys)

        def start(worker: IoWorker, rows: range) -> Future[list[bool]]:
            chosen = [fitting[i] for i in rows]
            place.pick(chosen).copy_to(worker.payloads(len(chosen)))
            return worker.submit(partial(self._send, [keys[i] for i in chosen], worker))

        def finish(worker: IoWorker, rows: range, good: list[bool]) -> None:
            for row, ok in zip(rows, good, strict=True):
                done[fitting[row]] = ok

        self._transfer(len(fitting), start, finish)
        stored = [key for key, ok in zip(keys, done, strict=True) if ok]
        with self._lock:
            # What failed may be another process's by now.
            self._known.discard(keys)
            self._known.add(stored)
            self._unreadable.discard(stored)
        return done

    def discard(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            own = [key for key in keys if key in self._known]
            self._known.discard(own)
        if own:
            names = [key.hex() for key in own]
            self._call(lambda store: store.remove(names))

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        return None

    def close(self) -> None:
        self._closed = True
        with self._lock:
            self._known.clear()
        deadline = time.monotonic() + self._timeout_s
        self._bulk.close(deadline)
        self._quick.close(deadline)

    def _fitting(self, keys: Sequence[bytes]) -> list[int]:
        """Returns the rows that the capacity has space for."""
        if self.capacity is None:
            return list(range(len(keys)))
        with self._lock:
            held = [key in self._known for key in keys]
            return fitting(keys, held, self.capacity - len(self._known))

    def _look_up(self, keys: Sequence[bytes]) -> list[Read]:
        names = [key.hex() for key in keys]
        found = self._call(lambda store: store.exists(names)) if names else []
        if found is None:
            return [Read.LATER] * len(keys)
        with self._lock:
            self._known.discard(key for key, ok in zip(keys, found, strict=True) if not ok)
            held = [ok and key not in self._unreadable for key, ok in zip(keys, found, strict=True)]
        return Read.of(held)

    def _receive(self, keys: list[bytes], worker: IoWorker, store: Store) -> list[bool]:
        values = worker.values(len(keys))
        here = store.get_into([key.hex() for key in keys], values)
        good = [
            ok and intact(key, value) for key, value, ok in zip(keys, values, here, strict=True)
        ]
        with self._lock:
            self._counters.absent += len(here) - sum(here)
            self._counters.damaged += sum(here) - sum(good)
            bad = [key for key, ok in zip(keys, good, strict=True) if not ok]
            self._known.discard(bad)
            self._unreadable.add(bad)
        return good

    def _send(self, keys: list[bytes], worker: IoWorker, store: Store) -> list[bool]:
        values = worker.values(len(keys))
        for key, value in zip(keys, values, strict=True):
            seal(key, value)
        good = store.put([key.hex() for key in keys], values)
        with self._lock:
            self._counters.rejected += len(good) - sum(good)
        return good

    def _transfer(
        self,
        count: int,
        start: Callable[[IoWorker, range], Future[list[bool]]],
        finish: Callable[[IoWorker, range, list[bool]], None],
    ) -> None:
        """Moves ``count`` rows in batches over I/O workers; starts no more once one has failed."""
        if not count or not self._may_go():
            return
        # A small transfer spreads over the I/O workers, too.
        step = min(self._rows, -(-count // self._workers))
        running: deque[_Batch] = deque()
        failures: list[Exception] = []
        patience = _Patience(self._timeout_s)

        def end() -> None:
            """Waits for the oldest batch and uses what it brought."""
            batch = running.popleft()
            try:
                good = batch.future.result(patience.left())
            except Exception as error:  # noqa: BLE001 - a store may be anyone's code
                failures.append(error)
                batch.worker.abandon()
                return
            patience.renew()
            try:
                finish(batch.worker, batch.rows, good)
            finally:
                self._bulk.give(batch.worker)

        try:
            for first in range(0, count, step):
                worker = self._bulk.take(0 if running else patience.left())
                while worker is None and running and not failures:
                    end()
                    worker = self._bulk.take(0 if running or failures else patience.left())
                if worker is None and not failures:
                    failures.append(WaitTimeout())
                if worker is None:
                    break
                if failures:
                    self._bulk.give(worker)
                    break
                rows = range(first, min(first + step, count))
                try:
                    running.append(_Batch(worker, rows, start(worker, rows)))
                except BaseException:
                    self._bulk.give(worker)
                    raise
            while running:
                end()
        finally:
            for batch in running:
                batch.worker.abandon()
        # One call is one success or one failure, however many batches it had.
        if failures:
            self._failed(failures[0])
        else:
            self._succeeded()

    def _call(self, work: Callable[[Store], _T]) -> _T | None:
        """Makes one round trip without a buffer; returns None if the store did not answer."""
        if not self._may_go():
            return None
        try:
            result = self._quick_call(work)
        except Exception as error:  # noqa: BLE001 - a store may be anyone's code
            self._failed(error)
            return None
        self._succeeded()
        return result

    def _quick_call(self, work: Callable[[Store], _T]) -> _T:
        patience = _Patience(self._timeout_s)
        worker = self._quick.take(patience.left())
        if worker is None:
            raise WaitTimeout
        future = worker.submit(work)
        try:
            return future.result(patience.left())
        finally:
            worker.abandon()

    def _may_go(self) -> bool:
        if self._closed:
            return False
        if self._breaker.allow():
            return True
        with self._lock:
            self._counters.refused += 1
        return False

    def _succeeded(self) -> None:
        if self._breaker.succeeded():
            logger.warning("the %s tier answers again", self.name)

    def _failed(self, error: Exception) -> None:
        late = isinstance(error, WaitTimeout)
        with self._lock:
            if late:
                self._counters.timeouts += 1
            else:
                self._counters.errors += 1
        if self._breaker.failed():
            reason = f"no answer within {self._timeout_s:g} s" if late else str(error)
            logger.warning(
                "the %s tier is left alone for a while, its chunks are misses: %s",
                self.name,
                reason,
            )
