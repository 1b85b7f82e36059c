"""Live progress on stderr: what runs, how far it is, when it will be done."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
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
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
            # A redraw takes interpreter time from what is being measured.
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._total = self._done = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> BenchProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def phase(self, text: str) -> None:
        """Names what is going on."""
        self._bar.update(self._task, description=text)
        if not self._quiet and not self._console.is_terminal:
            self._console.print(text)

    def expect(self, requests: int) -> None:
        """Sets how many requests all cells will serve together."""
        self._bar.update(self._task, total=requests)
        self._total, self._done, self._began = requests, 0, time.monotonic()

    def served(self, label: str, sample: Sample) -> None:
        """Counts one more request as done, and shows its TTFT."""
        ttft = sample.first_token_s - sample.scheduled_s
        self._bar.update(self._task, advance=1, description=f"{label}  TTFT {ttft:.3g} s")
        self._done += 1
        now = time.monotonic()
        if self._quiet or self._console.is_terminal or now - self._said < LINE_S:
            return
        self._said = now
        count, left = f"{self._done} requests", ""
        if self._total:  # a check goes on until it is decided
            seconds = (now - self._began) / self._done * max(0, self._total - self._done)
            count = f"{self._done} of {self._total} requests"
            left = f", about {seconds_text(seconds)} left"
        text = f"{label}: {count}, TTFT {ttft:.3g} s{left}"
        self._console.print(text, highlight=False, soft_wrap=True)
