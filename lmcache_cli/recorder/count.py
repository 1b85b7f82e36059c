"""What was recorded so far, as a line."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lmcache_cli.recorder.recorder import Counts


def counts_text(counts: Counts) -> str:
    """``12 requests (1 failed), 3,456 prompt and 78 output tokens, 61% seen before``: of the
    prompt tokens."""
    failed = f" ({counts.failed:,} failed)" if counts.failed else ""
    return (
        f"{counts.requests:,} request{'' if counts.requests == 1 else 's'}{failed},"
        f" {counts.input_tokens:,} prompt and {counts.output_tokens:,} output tokens,"
        f" {counts.sharing:.0%} seen before"
    )


class LiveCount:
    """Redraws the line on a terminal; silent when ``quiet`` or anywhere else."""

    def __init__(self, console: Console, counts: Counts, quiet: bool) -> None:
        self._counts = counts
        self._live = (
            Live(
                console=console,
                get_renderable=self._line,
                refresh_per_second=2,
                transient=True,
            )
            if console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> LiveCount:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self) -> Text:
        return Text(counts_text(self._counts))
