"""Times the calls that vLLM's scheduler makes to a connector."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

_EMPTY_CALLS = 2000


@dataclass(slots=True)
class Spent:
    """Of the thread that calls, in nanoseconds: time on a CPU (``cpu``) and by the clock (``wall``)
    in the connector's ``calls``; ``gc`` is what Python's collector took of ``cpu``, in
    ``collections`` of the young, middle and old objects. ``others`` is what the process's other
    threads took meanwhile, ``whole`` what the scheduler took, the connector's part included."""

    cpu: int = 0
    wall: int = 0
    calls: int = 0
    gc: int = 0
    collections: list[int] = field(default_factory=lambda: [0, 0, 0])
    others: int = 0
    whole: int = 0


class Timed:
    """Wraps every public method of ``connector``. A call made within another is a part of that one.
    What a call costs that does nothing is taken off."""

    def __init__(self, connector: Any) -> None:
        self.spent = Spent()
        self._within = False
        self._collecting = 0
        self._empty = 0
        self._began = self._clocks()
        empty = self._wrapped(lambda: None)
        took: list[int] = []
        for _ in range(_EMPTY_CALLS):
            before = self.spent.cpu
            empty()
            took.append(self.spent.cpu - before)
        self._empty = int(median(took))
        for name in dir(type(connector)):
            method = getattr(type(connector), name)
            if not name.startswith("_") and callable(method) and not hasattr(method, "__self__"):
                setattr(connector, name, self._wrapped(getattr(connector, name)))
        gc.callbacks.append(self._collected)
        self.take()

    def close(self) -> None:
        """Listens to the collector no more."""
        gc.callbacks.remove(self._collected)

    def take(self) -> Spent:
        """Since the last call."""
        spent, self.spent = self.spent, Spent()
        process, thread = self._clocks()
        spent.others = max(0, process - self._began[0] - (thread - self._began[1]))
        self._began = process, thread
        return spent

    def scheduling(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Calls the scheduler."""
        began = time.thread_time_ns()
        try:
            return call(*arguments)
        finally:
            self.spent.whole += time.thread_time_ns() - began

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        thread, wall = time.thread_time_ns, time.perf_counter_ns

        def timed(*arguments: Any, **named: Any) -> Any:
            if self._within:
                return call(*arguments, **named)
            self._within = True
            at, began = wall(), thread()
            try:
                return call(*arguments, **named)
            finally:
                spent = self.spent
                spent.cpu += max(0, thread() - began - self._empty)
                spent.wall += wall() - at
                spent.calls += 1
                self._within = False

        return timed

    def _collected(self, phase: str, facts: dict[str, int]) -> None:
        if not self._within:
            return
        if phase == "start":
            self._collecting = time.thread_time_ns()
        else:
            self.spent.gc += time.thread_time_ns() - self._collecting
            self.spent.collections[facts["generation"]] += 1

    @staticmethod
    def _clocks() -> tuple[int, int]:
        return time.process_time_ns(), time.thread_time_ns()
