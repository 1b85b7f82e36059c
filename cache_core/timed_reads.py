"""Reads of a tier that may never come back, by threads and into memory of their own."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from typing import TypeVar

from cache_core import carry
from cache_core.lane import STAGED_BYTES, stride_of
from cache_core.place import Place
from cache_core.staged import Staged
from cache_core.tiers.tier import Read, Tier

logger = logging.getLogger("lmcache")

T = TypeVar("T")
_THREADS = 8
_KEPT = 2  # buffers, for the next reader
_AHEAD = 2  # batches of one read: one arrives while the other is copied


class DaemonPool:
    """Up to ``most`` threads, started when they are needed. Unlike those of
    ``concurrent.futures``, one that hangs holds up no end of the process."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = self._waiting = 0

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Runs ``work`` on one of the threads."""
        future: Future[T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the one who waits gets it
                future.set_exception(error)

        with self._lock:
            self._waiting += 1
            start = self._waiting > self._threads and self._threads < self._most
            self._threads += start
        self._tasks.put(task)
        if start:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return future

    def close(self) -> None:
        """Ends the threads when the work in hand is done; waits for nothing."""
        with self._lock:
            for _ in range(self._threads):
                self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            with self._lock:
                self._waiting -= 1


class _Part:
    """Rows of a read that are under way."""

    def __init__(self, rows: range, buffer: Staged | None, future: Future[list[Read]]) -> None:
        self.rows, self.buffer, self.future = rows, buffer, future


class TimedReads:
    """Reads ``tier``; what takes longer than ``timeout_s`` is ``LATER``, and is left behind: its
    thread keeps its buffer and never touches the caller's memory. ``late`` is told the chunks of
    such a read, and again, with False, when it did come back. ``entered`` and ``left`` are told of
    each call inside the tier; a False of ``entered`` refuses it.
    """

    def __init__(
        self,
        tier: Tier,
        chunk_bytes: int,
        timeout_s: float,
        entered: Callable[[], bool],
        left: Callable[[], None],
        late: Callable[[Sequence[bytes], bool], None],
    ) -> None:
        self._tier, self._timeout_s = tier, timeout_s
        self._entered, self._left, self._late = entered, left, late
        self._chunk_bytes = chunk_bytes
        self._step = max(1, STAGED_BYTES // stride_of(chunk_bytes))
        self._pool = DaemonPool(_THREADS, f"lmcache-read-{tier.name}")
        self._lock = threading.Lock()
        self._free: list[Staged] = []

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """As the tier's; all False if it does not answer in time."""
        future = self._pool.submit(lambda: self._inside(lambda: self._tier.contains(keys)))
        try:
            return future.result(self._timeout_s) or [False] * len(keys)
        except WaitTimeout:
            future.cancel()
            self._complain("a look-up")
            return [False] * len(keys)

    def read(self, keys: Sequence[bytes], place: Place | None) -> list[Read]:
        """As the tier's. An error of the tier is ``LATER``; one of ``place`` is raised."""
        answers = [Read.LATER] * len(keys)
        step = len(keys) if place is None else self._step
        waiting = iter(
            [range(at, min(at + step, len(keys))) for at in range(0, len(keys), max(1, step))]
        )
        running: deque[_Part] = deque()
        try:
            while True:
                while len(running) < _AHEAD and (rows := next(waiting, None)) is not None:
                    running.append(self._start(keys, rows, place is not None))
                if not running or not self._finish(running.popleft(), keys, place, answers):
                    return answers
        except MemoryError as error:
            logger.warning("reading from %s needs memory: %s", self._tier.name, error)
            return answers
        finally:
            for part in running:
                self._abandon(part, keys)

    def close(self) -> None:
        """Ends the threads that are idle."""
        self._pool.close()
        with self._lock:
            self._free.clear()

    def _start(self, keys: Sequence[bytes], rows: range, copies: bool) -> _Part:
        wanted = [keys[row] for row in rows]
        buffer = self._take(len(rows)) if copies else None
        target: Place | None = None
        if buffer is not None:
            target = buffer.place(len(rows))

        def work() -> list[Read]:
            found = self._inside(lambda: carry.read(self._tier, wanted, target))
            return [Read.LATER] * len(wanted) if found is None else found

        return _Part(rows, buffer, self._pool.submit(work))

    def _finish(
        self, part: _Part, keys: Sequence[bytes], place: Place | None, answers: list[Read]
    ) -> bool:
        """Waits for a part and copies what came. Returns whether the tier answered."""
        try:
            found = part.future.result(self._timeout_s)
        except WaitTimeout:
            self._abandon(part, keys)
            self._complain(f"a read of {len(part.rows)} chunks")
            return False
        except Exception:  # a broken tier costs hits, never a request
            logger.exception("reading %d chunks from %s failed", len(part.rows), self._tier.name)
            self._give(part.buffer)
            return False
        try:
            here = [i for i, answer in enumerate(found) if answer]
            if place is not None and part.buffer is not None and here:
                rows = [part.rows[i] for i in here]
                target = place if len(rows) == len(keys) else place.pick(rows)
                target.copy_from(part.buffer.addresses[here])
        finally:
            self._give(part.buffer)
        answers[part.rows.start : part.rows.stop] = found
        return True

    def _abandon(self, part: _Part, keys: Sequence[bytes]) -> None:
        if part.future.cancel() or part.future.done():
            self._give(part.buffer)
            return
        behind = [keys[row] for row in part.rows]
        self._late(behind, True)

        def back(_: Future[list[Read]]) -> None:
            self._give(part.buffer)
            self._late(behind, False)

        part.future.add_done_callback(back)

    def _inside(self, call: Callable[[], T]) -> T | None:
        if not self._entered():
            return None
        try:
            return call()
        finally:
            self._left()

    def _take(self, chunks: int) -> Staged:
        with self._lock:
            if self._free and self._free[-1].chunks >= chunks:
                return self._free.pop()
        return Staged(chunks, self._chunk_bytes)

    def _give(self, buffer: Staged | None) -> None:
        with self._lock:
            if buffer is not None and len(self._free) < _KEPT:
                self._free.append(buffer)
                self._free.sort(key=lambda kept: kept.chunks)

    def _complain(self, what: str) -> None:
        logger.warning(
            "the %s tier did not answer %s within %g s: its chunks are misses for a while",
            self._tier.name,
            what,
            self._timeout_s,
        )
