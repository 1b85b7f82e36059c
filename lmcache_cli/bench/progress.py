"""Live progress on stderr: what runs, how far it is, when it will be done."""

from __future__ import annotations

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


class BenchProgress:
    """A bar over all requests of all cells. Silent when ``quiet`` or when stderr is no terminal
    (a line per phase then)."""

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

    def served(self, label: str, sample: Sample) -> None:
        """Counts one more request as done, and shows its TTFT."""
        ttft = sample.first_token_s - sample.scheduled_s
        self._bar.update(self._task, advance=1, description=f"{label}  TTFT {ttft:.3g} s")
