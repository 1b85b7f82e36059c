"""``lmcache`` for tests: in this process, or in one of its own.

A process of its own imports everything again, which takes it two to six seconds of CPU time: it is
for signals, pipes, and one test of each command.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import (
    AbstractContextManager,
    chdir,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen
from unittest.mock import patch

from lmcache_cli.errors import ending_signals
from lmcache_cli.main import run
from tests.processes import alone, run_alone

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "lmcache_cli.main")


def environment(**more: str) -> dict[str, str]:
    """Of this process, without keys to servers, and with terminals of 120 columns."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | more


def lmcache(*args: object, cwd: Path, **more: str) -> CompletedProcess[str]:
    """Runs a command in this process. ``more`` goes into its environment."""
    words = [str(arg) for arg in args]
    out, err = _Stream(), _Stream()
    with (
        chdir(cwd),
        patch.dict(os.environ, environment(**more), clear=True),
        patch.object(sys, "argv", ["lmcache", *words]),
        redirect_stdout(out),
        redirect_stderr(err),
        _talk_on_stderr(),
        _kept_signals(),
    ):
        code = _exit_code()
    return CompletedProcess(words, code, out.text(), err.text())


def lmcache_process(
    *args: object, cwd: Path, timeout_s: float = 300, **more: str
) -> CompletedProcess[str]:
    """Runs a command in a process of its own, of which nothing is left afterwards."""
    command = [*COMMAND, *map(str, args)]
    return run_alone(command, timeout_s, cwd=cwd, env=environment(**more))


def running(*args: object, cwd: Path, **more: str) -> AbstractContextManager[Popen[str]]:
    """A command in a process of its own, to be interrupted; its talk comes from ``stderr``."""
    command = [*COMMAND, *map(str, args)]
    return alone(command, stdout=PIPE, stderr=PIPE, cwd=cwd, env=environment(**more))


def until_said(process: Popen[str], words: str) -> None:
    """Reads its talk up to the line with these words."""
    assert process.stderr is not None
    while words not in process.stderr.readline():
        assert process.poll() is None, "it ended before it could be interrupted"


def _exit_code() -> int:
    """As the interpreter would end: with a traceback for what nobody caught."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001 - whatever it is, a process would show it and end with 1
        traceback.print_exc()
        return 1
    return 0


class _Stream(io.TextIOWrapper):
    """Text in memory, with the bytes below that some commands write to."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        self.flush()
        bytes_below = self.buffer
        assert isinstance(bytes_below, io.BytesIO)
        return bytes_below.getvalue().decode()


@contextmanager
def _talk_on_stderr() -> Iterator[None]:
    """Warnings and log lines go where they go without pytest, which keeps them to itself."""

    def show(message: object, category: type[Warning], *place: object) -> None:
        print(f"{category.__name__}: {message}", file=sys.stderr)

    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        with warnings.catch_warnings(), patch.object(warnings, "showwarning", show):
            warnings.resetwarnings()
            for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):
                warnings.simplefilter("ignore", ignored)
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        root.handlers = handlers


@contextmanager
def heeding_hangups(wanted: bool = True) -> Iterator[None]:
    """Has SIGHUP do what it does by itself, or nothing: these tests may themselves run under
    nohup, which children inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL if wanted else signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def _kept_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
