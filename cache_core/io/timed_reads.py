"""Reads from a tier that may never come back, by threads and into memory of their own, and copies
chunks for tiers that may take their time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from typing import Any, Generic, TypeVar

from cache_core import _native
from cache_core.execute import read
from cache_core.tiers.tier import Read, Tier
from cache_core.transfer.chunks import ChunkBuffers, FlatBuffers, addresses_from
from cache_core.transfer.coded import DecodedBuffers

_BYTES = 64 << 20
_PAGE = 4096


def staged_chunks(chunk_bytes: int) -> int:
    """Returns how many chunks are staged at a time, between a tier and their source or target."""
    return max(1, _BYTES // _stride(chunk_bytes))


class Staged:
    """Memory for ``chunks`` chunks of ``chunk_bytes``, for as long as the object lives. Raises
    ``MemoryError``."""

    def __init__(self, chunks: int, chunk_bytes: int) -> None:
        stride = _stride(chunk_bytes)
        self._slab = _native.Slab(chunks * stride)
        self._chunk_bytes, self._stride = chunk_bytes, stride
        self.chunks = chunks
        self.addresses = addresses_from(self._slab.address, chunks, stride)

    def copy(self, place: ChunkBuffers) -> ChunkBuffers:
        """Copies the chunks and returns where the copy is. Coded chunks stay coded."""
        addresses = self.addresses[: len(place)]
        if isinstance(place, DecodedBuffers) and place.codec.coded_bytes <= self._stride:
            place.inner.copy_to(addresses)
            coded = FlatBuffers(addresses, place.codec.coded_bytes)
            return DecodedBuffers(coded, place.codec)
        place.copy_to(addresses)
        return FlatBuffers(addresses, self._chunk_bytes)

    def place(self, chunks: int) -> ChunkBuffers:
        """Returns buffers of the first ``chunks`` chunks of this memory."""
        return FlatBuffers(self.addresses[:chunks], self._chunk_bytes)


def _stride(chunk_bytes: int) -> int:
    """Returns the bytes from one staged chunk to the next, page by page."""
    return -(-chunk_bytes // _PAGE) * _PAGE


logger = logging.getLogger("lmcache")

_T = TypeVar("_T")
_THREADS = 8
_SPARE = 8  # more, for those that hang
_KEPT = 2  # buffers, for the next reader
_AHEAD = 2  # batches of one read: one arrives while the other is copied


class Unavailable(Exception):
    """No thread is left to run a task: all hang, or the pool is closed."""


class TimedRead(Generic[_T]):
    """A task of a :class:`DaemonPool`, whose lock guards it."""

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self.future: Future[_T] = Future()
        self.began: float | None = None
        self.abandoned = False

    def run(self) -> None:
        """Runs the task and keeps its result for the one who waits."""
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - the one who waits gets it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class DaemonPool:
    """A pool of up to ``most`` threads, started when they are needed. Unlike those of
    ``concurrent.futures``, one that hangs does not hold up the end of the process; when its task is
    abandoned another may replace it, for up to ``spare`` that hang."""

    def __init__(self, most: int, spare: int, name: str) -> None:
        self._most, self._spare, self._name = most, spare, name
        self._changed = threading.Condition()
        self._queue: deque[TimedRead[Any]] = deque()
        self._threads = self._running = self._hanging = 0
        self._closed = False

    def submit(self, work: Callable[[], _T]) -> TimedRead[_T]:
        """Runs ``work`` on one of the threads. Fails with :class:`Unavailable` at once if none is
        left that may ever do it."""
        task = TimedRead(work)
        with self._changed:
            well = self._threads - self._hanging
            start = well < self._most and self._threads < self._most + self._spare
            start &= len(self._queue) + self._running - self._hanging >= well and not self._closed
            self._queue.append(task)
            if start:
                self._start()
            if self._closed or self._threads == self._hanging:
                self._refuse()
            self._changed.notify_all()
        return task

    def result(self, task: TimedRead[_T], timeout_s: float) -> _T:
        """Returns or raises what the task does. Raises ``TimeoutError`` if it runs for longer than
        ``timeout_s``; the time that it waits for a thread does not count."""
        with self._changed:
            self._changed.wait_for(lambda: task.began is not None or task.future.done())
        left = 0.0 if task.began is None else task.began + timeout_s - time.monotonic()
        return task.future.result(max(0.0, left))

    def abandon(self, task: TimedRead[_T]) -> bool:
        """Stops waiting for a task. Returns whether it is still running. If all threads hang now,
        what is queued fails."""
        with self._changed:
            if task.future.cancel() or task.future.done():
                return False
            task.abandoned = True
            self._hanging += 1
            if self._hanging == self._threads:
                self._refuse()
            return True

    def close(self) -> None:
        """Refuses what is queued and what comes, and ends the threads when the work in hand is
        done; waits for nothing."""
        with self._changed:
            self._closed = True
            self._refuse()

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._threads += 1
        except RuntimeError:  # a limit of the system, or the process ends
            logger.exception("starting a thread failed")

    def _refuse(self) -> None:
        while self._queue:
            future = self._queue.popleft().future
            if future.set_running_or_notify_cancel():
                future.set_exception(Unavailable())
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                # Some that hung may be back, and others have taken their places.
                if not self._queue or self._threads - self._hanging > self._most:
                    self._threads -= 1
                    return
                task = self._queue.popleft()
                if not task.future.set_running_or_notify_cancel():
                    continue
                task.began = time.monotonic()
                self._running += 1
                self._changed.notify_all()
            task.run()
            with self._changed:
                self._running -= 1
                self._hanging -= task.abandoned


class _Part:
    """The rows of a read that are under way together."""

    def __init__(self, rows: range, buffer: Staged | None, task: TimedRead[list[Read]]) -> None:
        self.rows, self.buffer, self.task = rows, buffer, task


class TimedReads:
    """Reads ``tier``; what takes longer than ``timeout_s`` is ``LATER``, and is abandoned: its
    thread keeps its buffer and never touches the caller's memory. ``late`` is called with the
    chunks of such a read, and again, with False, when it did come back. ``entered`` and ``left``
    are called for each read, from its beginning until no thread is inside the tier for it; a False
    of ``entered`` refuses it. One that is inside ``stays`` there once more for each of its
    parts."""

    def __init__(
        self,
        tier: Tier,
        chunk_bytes: int,
        timeout_s: float,
        entered: Callable[[], bool],
        stays: Callable[[], None],
        left: Callable[[], None],
        late: Callable[[Sequence[bytes], bool], None],
    ) -> None:
        self._tier, self._timeout_s = tier, timeout_s
        self._entered, self._stays, self._left, self._late = entered, stays, left, late
        self._chunk_bytes = chunk_bytes
        self._step = staged_chunks(chunk_bytes)
        self._pool = DaemonPool(_THREADS, _SPARE, f"lmcache-read-{tier.name}")
        self._lock = threading.Lock()
        self._free: list[Staged] = []

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        """Reads chunks to ``place``. A tier's error is ``LATER``; one of ``place`` is raised."""
        answers = [Read.LATER] * len(keys)
        if not self._entered():
            return answers
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
            self._left()

    def close(self) -> None:
        """Ends the threads that are idle."""
        self._pool.close()
        with self._lock:
            self._free.clear()

    def _start(self, keys: Sequence[bytes], rows: range, copies: bool) -> _Part:
        wanted = [keys[row] for row in rows]
        buffer = self._take(len(rows)) if copies else None
        target: ChunkBuffers | None = None
        if buffer is not None:
            target = buffer.place(len(rows))

        task = self._submit(lambda: read(self._tier, wanted, target))
        return _Part(rows, buffer, task)

    def _finish(
        self, part: _Part, keys: Sequence[bytes], place: ChunkBuffers | None, answers: list[Read]
    ) -> bool:
        """Waits for a part and copies what came. Returns whether the tier answered."""
        try:
            found = self._pool.result(part.task, self._timeout_s)
        except Unavailable:
            self._give(part.buffer)
            return False
        except WaitTimeout:
            self._abandon(part, keys)
            logger.warning(
                "the %s tier did not answer a read of %d chunks within %g s: its chunks are misses"
                " for a while",
                self._tier.name,
                len(part.rows),
                self._timeout_s,
            )
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
        if not self._pool.abandon(part.task):
            self._give(part.buffer)
            return
        behind = [keys[row] for row in part.rows]
        self._late(behind, True)

        def back(_: Future[list[Read]]) -> None:
            self._give(part.buffer)
            self._late(behind, False)

        part.task.future.add_done_callback(back)

    def _submit(self, call: Callable[[], _T]) -> TimedRead[_T]:
        self._stays()
        task = self._pool.submit(call)
        task.future.add_done_callback(lambda _: self._left())
        return task

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
