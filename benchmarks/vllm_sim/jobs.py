"""Threads without threads: jobs that run when the simulation says, so that a seed is a history."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


class Job(Future[Any]):
    """Whoever waits for it has ``run_more`` jobs run until it is done, or none is left."""

    def __init__(self, run_more: Callable[[], bool]) -> None:
        super().__init__()
        self._run_more = run_more

    def result(self, timeout: float | None = None) -> Any:
        while not self.done() and self._run_more():
            pass
        return super().result(timeout=5)


class JobQueue:
    """Stands in for a ``ThreadPoolExecutor`` of one thread."""

    def __init__(self, jobs: Jobs, name: str = "") -> None:
        self.name = name
        self._waiting: deque[tuple[Job, Callable[..., Any], tuple[Any, ...]]] = deque()
        jobs.queues.append(self)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Job:
        job = Job(self.run)
        self._waiting.append((job, work, arguments))
        return job

    def run(self) -> bool:
        """Runs the oldest job. Returns whether there was one."""
        if not self._waiting:
            return False
        job, work, arguments = self._waiting.popleft()
        if not job.set_running_or_notify_cancel():
            return True
        try:
            job.set_result(work(*arguments))
        except BaseException as error:  # noqa: BLE001 - the one who waits gets it
            job.set_exception(error)
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Runs what is left."""
        while self.run():
            pass


class Jobs:
    """All queues of a simulation. ``idle`` is the probability that a queue which could run does
    nothing: how slow tiers are, in steps of the scheduler."""

    def __init__(self, seed: int, idle: float) -> None:
        self.held: set[str] = set()
        """Names of queues that do nothing unless somebody waits for one of their jobs."""
        self.queues: list[JobQueue] = []
        self._random = random.Random(seed)
        self._idle = idle

    def executor(self, threads: int, name: str) -> JobQueue:
        """In place of the class ``ThreadPoolExecutor``."""
        return JobQueue(self, name)

    def future(self) -> Job:
        """In place of the class ``Future``."""
        return Job(self.run_one_each)

    def wait(self, jobs: Sequence[Job], timeout: float) -> None:
        """In place of ``concurrent.futures.wait``: in vain, as often as a queue does nothing."""
        if self._random.random() >= self._idle:
            jobs[0].result()

    def run_one_each(self) -> bool:
        """Each queue runs its oldest job. Returns whether there was any."""
        ran = [each.run() for each in self.queues]
        return any(ran)

    def tick(self) -> None:
        """A moment passes: each queue runs what it gets to."""
        for each in self.queues:
            while each.name not in self.held and self._random.random() >= self._idle and each.run():
                pass
