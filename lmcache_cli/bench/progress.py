"""Live progress on stderr: what runs, how far it is, when it will be done."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from reports.sample import Sample
from reports.units import seconds_text

LINE_S = 5.0
"""The least seconds between two lines where there is no terminal."""


class BenchProgress:
    """A bar over all requests of all cells. Silent when ``quiet``; when stderr is no terminal, a
    line per phase, and one every few seconds that says how far it is."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
            # A redraw takes interpreter time from what is being measured.
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("starting", total=None, count="")
        self._total, self._done, self._what = 0, 0, "requests"
        self._work = self._worked = 0.0
        self._first: float | None = None
        self._began = self._said = time.monotonic()

        self._phase = "starting"
        self._phase_began = self._said
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._keep_telling, daemon=True)

    def __enter__(self) -> BenchProgress:
        self._bar.start()
        if self._lines:
            self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._watch.is_alive():
            self._watch.join()
        self._bar.stop()

    def phase(self, text: str) -> None:
        """Names what is going on."""
        self._bar.update(self._task, description=text)
        self._phase, self._phase_began = text, time.monotonic()
        if self._lines:
            self._say(text)

    def step(self, text: str) -> None:
        """Names what is going on where that changes often: a line at most every few seconds."""
        self._bar.update(self._task, description=text)
        if text != self._phase:
            self._phase, self._phase_began = text, time.monotonic()
        if self._lines and time.monotonic() - self._said >= LINE_S:
            self._say(text)

    def tell(self, text: str) -> None:
        """Says a line that stays: above the bar, where there is one."""
        if not self._quiet:
            self._say(text)

    @property
    def _lines(self) -> bool:
        return not self._quiet and not self._console.is_terminal

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        self._console.print(text, highlight=False, soft_wrap=True)

    def _keep_telling(self) -> None:
        while not self._ended.wait(LINE_S):
            self.beat()

    def beat(self) -> None:
        """Says how long it has been at it, where nothing was said for some seconds: requests in
        their making, a model that is loaded, a server that thinks."""
        now = time.monotonic()
        lasts = now - self._phase_began
        # The longer it lasts, the less news it is.
        if self._lines and now - self._said >= max(LINE_S, lasts / 4):
            so_far = f": {seconds_text(lasts)} so far" if lasts >= LINE_S else ""
            self._say(f"{self._phase}{so_far}")

    def expect(self, requests: int, work: float | None = None, what: str = "requests") -> None:
        """Sets how many requests (or ``what``) all cells will serve together, and how much ``work``
        that is in any unit, what fills caches first included: without it one request is as much as
        another."""
        self._work, self._worked = float(requests) if work is None else work, 0.0
        self._bar.update(self._task, total=self._work, completed=0, count=f"0/{requests}")
        self._total, self._done, self._what = requests, 0, what
        self._first, self._began = None, time.monotonic()

    def served(self, label: str, sample: Sample, work: float = 1.0) -> None:
        """Counts one more request, and its ``work``, as done, and shows its TTFT."""
        self._done += 1
        self._moved(label, _ttft(sample), work)

    def advance(self, label: str) -> None:
        """Counts one more of what is expected as done."""
        self._done += 1
        self._moved(label, "", 1.0)

    def warmed(self, label: str, sample: Sample, work: float = 1.0) -> None:
        """Counts the ``work`` of a request that only fills a cache, which is none of those that
        were announced, as done, and shows its TTFT."""
        self._moved(f"{label}: filling its cache", _ttft(sample), work, counted=False)

    def _moved(self, label: str, detail: str, work: float, counted: bool = True) -> None:
        now = time.monotonic()
        if self._first is None:  # what it took has much in it that comes once
            self._first, self._began = self._worked + work, now
        self._worked += work
        shown = f"{self._done}/{self._total}" if self._total else str(self._done)
        self._bar.update(self._task, advance=work, description=f"{label}{detail}", count=shown)
        if not self._lines or now - self._said < LINE_S:
            return
        count = f": {self._done} {self._what}"
        if self._total:  # a check goes on until it is decided
            count = f": {self._done} of {self._total} {self._what}"
        self._say(f"{label}{count if counted else ''}{detail}{self._left(now)}")

    def _left(self, now: float) -> str:
        """Says how long the rest may take, by what was done since the first request."""
        left, done = self._work - self._worked, self._worked - (self._first or 0.0)
        if not self._total or left <= 0 or done <= 0:
            return ""
        return f", about {seconds_text((now - self._began) / done * left)} left"


def _ttft(sample: Sample) -> str:
    return f", TTFT {sample.first_token_s - sample.scheduled_s:.3g} s"
