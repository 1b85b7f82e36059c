"""Talks to a remote store on threads, so that a caller can stop waiting for one that hangs."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.tiers.remote.store import Bytes, Store
from cache_core.transfer.chunks import addresses_from

_T = TypeVar("_T")
_PAGE = 4096


def stride_of(value_bytes: int) -> int:
    """Returns the bytes that a value takes in an I/O worker's buffer."""
    return _PAGE + -(-value_bytes // _PAGE) * _PAGE


class IoWorker:
    """An I/O worker: a store, a buffer of ``rows`` values of ``value_bytes`` each, and the thread
    that owns both.

    Each value ends at its row's end such that its part after the first ``head_bytes`` is
    page-aligned. The buffer is taken on first use and goes when the worker is retired, nobody holds
    it and its thread has ended: one that hangs may still write to it.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        rows: int,
        head_bytes: int,
        value_bytes: int,
        timeout_s: float,
        freed: Callable[[IoWorker], None],
    ) -> None:
        self.rows = rows
        self._open_store = open_store
        self._head_bytes = head_bytes
        self._value_bytes = value_bytes
        self._stride = stride_of(value_bytes)
        self._timeout_s = timeout_s
        self._freed = freed
        self._slab: _native.Slab | None = None
        self._store: Store | None = None
        self._connected = False
        self._lock = threading.Lock()
        self._busy = False
        self._abandoned = False
        self._given_up = self._ended = False
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lmcache-worker", daemon=True)
        self._thread.start()

    def values(self, count: int) -> list[Bytes]:
        """Returns the first ``count`` values of the buffer, heads included. Raises
        ``MemoryError``."""
        view = self._view()
        starts = [i * self._stride + _PAGE - self._head_bytes for i in range(count)]
        return [view[start : start + self._value_bytes] for start in starts]

    def payloads(self, count: int) -> Addresses:
        """Returns the addresses of the first ``count`` values after their heads, page-aligned."""
        self._view()
        assert self._slab is not None
        return addresses_from(self._slab.address + _PAGE, count, self._stride)

    def submit(self, work: Callable[[Store], _T]) -> Future[_T]:
        """Runs ``work`` on the worker's thread, connected. The caller has the worker to itself."""
        future: Future[_T] = Future()

        def task() -> None:
            try:
                result = work(self._connect())
            except Exception as error:  # noqa: BLE001 - the one who waits gets it
                self._connected = False
                # Its frames hold views of the buffer, and the future holds the error.
                traceback.clear_frames(error.__traceback__)
                self._done()
                future.set_exception(error)
            else:
                self._done()
                future.set_result(result)

        with self._lock:
            self._busy = True
        self._tasks.put(task)
        return future

    def abandon(self) -> None:
        """Stops waiting for the worker, which frees itself when its work ends, if ever."""
        with self._lock:
            if self._busy:
                self._abandoned = True
                return
        self._freed(self)

    def retire(self) -> None:
        """Ends the thread and closes the store as soon as the work in hand is done."""
        self._tasks.put(None)

    def give_up(self) -> None:
        """Lets the buffer go once the thread has ended: nobody holds the worker, nor will again."""
        with self._lock:
            self._given_up = True
            if self._ended:
                self._slab = None

    def join(self, timeout_s: float) -> None:
        """Waits for a retired worker to end."""
        self._thread.join(timeout_s)

    def _view(self) -> Bytes:
        if self._slab is None:
            self._slab = _native.Slab(max(1, self.rows) * self._stride)
        view: Bytes = self._slab.view()
        return view

    def _connect(self) -> Store:
        if self._store is None:
            self._store = self._open_store()
        if not self._connected:
            empty = np.empty(0, dtype=np.uint8)
            self._store.connect(self._view() if self.rows else empty, self._timeout_s)
            self._connected = True
        return self._store

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
        if self._store is not None:
            self._store.close()
            self._store = None
        with self._lock:
            self._ended = True
            if self._given_up:
                self._slab = None

    def _done(self) -> None:
        """Marks the worker idle before its result is known: who has it may hand it on at once."""
        with self._lock:
            self._busy = False
            abandoned, self._abandoned = self._abandoned, False
        if abandoned:
            self._freed(self)


class IoWorkers:
    """A pool of I/O workers of one kind; a caller takes one, uses it and gives it back."""

    def __init__(self, count: int, make: Callable[[Callable[[IoWorker], None]], IoWorker]) -> None:
        self._condition = threading.Condition()
        self._closed = False
        self._all = [make(self.give) for _ in range(count)]
        self._idle = list(self._all)

    def take(self, timeout_s: float) -> IoWorker | None:
        """Returns an idle I/O worker; None if none comes free in time, or all are retired."""
        with self._condition:
            self._condition.wait_for(lambda: self._idle or self._closed, timeout_s)
            return self._idle.pop() if self._idle and not self._closed else None

    def give(self, worker: IoWorker) -> None:
        """Puts an I/O worker back."""
        with self._condition:
            if self._closed:
                worker.give_up()
                return
            self._idle.append(worker)
            self._condition.notify()

    def close(self, deadline: float) -> None:
        """Retires all I/O workers and waits for their work in hand, until ``time.monotonic()`` is
        ``deadline``. What hangs longer frees its memory when it ends."""
        with self._condition:
            self._closed = True
            workers, self._all = self._all, []
            idle, self._idle = self._idle, []
            self._condition.notify_all()
        for worker in idle:
            worker.give_up()
        for worker in workers:
            worker.retire()
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
