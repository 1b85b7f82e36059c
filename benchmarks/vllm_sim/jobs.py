"""Threads without threads: jobs that run when the simulation says, so that a seed is a history."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Job(Future[Any]):
    """Whoever waits for it has it run, and what was submitted before it."""

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self._lane = lane

    def result(self, timeout: float | None = None) -> Any:
        while not self.done() and self._lane.run():
            pass
        return super().result(timeout=5)


class Told(Future[Any]):
    """Whoever waits for it has all lanes run until somebody has told its result."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self._jobs = jobs

    def result(self, timeout: float | None = None) -> Any:
        while not self.done() and self._jobs.run_one_each():
            pass
        return super().result(timeout=5)


class Lane:
    """Stands in for a ``ThreadPoolExecutor`` of one thread."""

    def __init__(self, jobs: Jobs) -> None:
        self._waiting: deque[tuple[Job, Callable[..., Any], tuple[Any, ...]]] = deque()
        jobs.lanes.append(self)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Job:
        job = Job(self)
        self._waiting.append((job, work, arguments))
        return job

    def run(self) -> bool:
        """Runs the oldest job. Returns whether there was one."""
        if not self._waiting:
            return False
        job, work, arguments = self._waiting.popleft()
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
    """All lanes of a simulation. ``idle`` is the probability that a lane does nothing when it could
    run: how slow tiers are, in steps of the scheduler."""

    def __init__(self, seed: int, idle: float) -> None:
        self.lanes: list[Lane] = []
        self._random = random.Random(seed)
        self._idle = idle

    def executor(self, *_: Any, **__: Any) -> Lane:
        """In place of the class ``ThreadPoolExecutor``."""
        return Lane(self)

    def future(self) -> Told:
        """In place of the class ``Future``."""
        return Told(self)

    def run_one_each(self) -> bool:
        """Each lane runs its oldest job. Returns whether there was any."""
        ran = [lane.run() for lane in self.lanes]
        return any(ran)

    def tick(self) -> None:
        """A moment passes: each lane runs what it gets to."""
        for lane in self.lanes:
            while self._random.random() >= self._idle and lane.run():
                pass
