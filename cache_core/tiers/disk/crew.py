"""Does a disk's calls on threads, so that a caller can stop waiting for one that hangs."""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger("lmcache")

_T = TypeVar("_T")
_IDLE = 4  # threads that are kept for the next call


class Hung(Exception):
    """The disk did not answer in time, or has not answered an earlier call yet."""


class DiskCall(Generic[_T]):
    """A call of a disk that is under way; :meth:`IoThreads.start` begins it."""

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self._result: list[_T] = []
        self._error: BaseException | None = None
        self.ended = threading.Event()
        self.abandoned = False

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:  # noqa: BLE001 - the one who waits gets it
            self._error = error

    def result(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._result[0]


class IoThreads:
    """Runs calls on threads of its own, as many as there are callers.

    A call that has not ended after ``timeout_s`` seconds is abandoned with all that it refers to;
    until it has ended, new ones are refused at once: callers don't queue for a disk that is away,
    and a change that was abandoned has no second beside it. With ``timeout_s`` None they run in the
    caller's thread, for ever if need be. So they do in a forked child, which has no threads.
    """

    def __init__(self, name: str, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._name = name
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[DiskCall[object] | None]] = []
        self._behind = 0  # calls that were abandoned and have not ended
        self._last: DiskCall[object] | None = None

    @property
    def hung(self) -> bool:
        """Returns whether calls are refused now."""
        return self._behind > 0

    def check(self) -> None:
        """Raises :class:`Hung` if a call would be refused now."""
        if self._behind:
            raise Hung("an earlier call has not ended")

    def call(self, work: Callable[[], _T]) -> _T:
        """Runs ``work`` on a thread, and returns or raises what it does. Raises :class:`Hung`, and
        ``OSError`` if no thread is to be had."""
        return self.wait(self.start(work))

    def start(self, work: Callable[[], _T]) -> DiskCall[_T]:
        """Begins a call, to be waited for by :meth:`wait`. Raises :class:`Hung` if it is refused,
        and ``OSError`` if no thread is to be had."""
        task = DiskCall(work)
        if self.timeout_s is None or os.getpid() != self._pid:
            task.run()
            task.ended.set()
            return task
        with self._lock:
            self.check()
            tasks = self._idle.pop() if self._idle else None
        self._hand(task, tasks)
        return task

    def wait(self, task: DiskCall[_T]) -> _T:
        """Waits for a call, and returns or raises what its work does. Raises :class:`Hung`, and
        abandons the call, if it has not ended in time."""
        try:
            ended = task.ended.wait(self.timeout_s)
        except BaseException:
            self.leave(task)  # a person at the keyboard does not wait either
            raise
        if not ended and self.leave(task):
            raise self._hung()
        return task.result()

    def close(self, work: Callable[[], object]) -> None:
        """Runs ``work`` as the last call, once nothing else runs, even if that is after this has
        raised :class:`Hung`."""
        if self.timeout_s is None or os.getpid() != self._pid:
            work()
            return
        task = DiskCall(work)
        with self._lock:
            idle, self._idle = self._idle, []
            if self._behind:
                self._last = task
        for tasks in idle:
            tasks.put(None)
        if self._last is None:
            self._hand(task, None)
            self.wait(task)
        elif task.ended.wait(self.timeout_s):
            task.result()
        else:
            raise self._hung()

    def _hand(
        self, task: DiskCall[_T], tasks: queue.SimpleQueue[DiskCall[object] | None] | None
    ) -> None:
        if tasks is None:
            tasks = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._serve, args=(tasks,), name="lmcache-disk", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, f"no thread for the disk: {error}") from error
        tasks.put(task)  # type: ignore[arg-type]

    def leave(self, task: DiskCall[_T]) -> bool:
        """Abandons a call; returns False if it has ended."""
        with self._lock:
            if task.ended.is_set():
                return False
            self._behind += not task.abandoned
            task.abandoned = True
            return True

    def _hung(self) -> Hung:
        return Hung(f"no answer within {self.timeout_s:g} s")

    def _serve(self, tasks: queue.SimpleQueue[DiskCall[object] | None]) -> None:
        while (task := tasks.get()) is not None:
            task.run()
            last = None
            with self._lock:
                task.ended.set()
                if task.abandoned:
                    self._behind -= 1
                    if self._behind == 0:
                        last, self._last = self._last, None
                        logger.warning("%s tier: its disk answers again", self._name)
                keep = len(self._idle) < _IDLE
                if keep and last is None:
                    self._idle.append(tasks)
            if last is not None:
                last.run()
                last.ended.set()
                return
            if not keep:
                return
            # Or this thread would keep a buffer alive until its next call.
            del task
