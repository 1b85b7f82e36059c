"""Errors for people: one line that says what was wrong, where, and what to do next; and the place
for an interruption to come, where it must not come at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INCONCLUSIVE = 3
EXIT_MISSING = 4
EXIT_NOT_WRITTEN = 5
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Ends the command with one line on stderr and ``exit_code``."""

    exit_code = EXIT_BAD_INPUT


class MissingError(UserError):
    """Something that the command needs is not here; the text names it and how to get it."""

    exit_code = EXIT_MISSING


class CellError(UserError):
    """One cell of a bench can't be measured with this model, device or codec. Others may be: the
    bench goes on without it."""


class CellMissingError(CellError, MissingError):
    """One cell of a bench can't be measured because something that it needs is not here."""

    exit_code = EXIT_MISSING


def parser_text(error: Exception) -> str | None:
    """Returns what the parser of the command line says was wrong, on one line; None for an error
    that is not the parser's. Typer brings a copy of click, or uses the installed one: its errors
    are known by what they can do."""
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    # What checks the choices of a Literal puts its own kind of error in front.
    return " ".join(str(message()).split()).replace("Value error, ", "")


def ending_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that end a command and keep what it has: Ctrl-C's, SIGTERM, and that of a
    terminal which closes, unless that is to be ignored (nohup)."""
    hup = signal.SIGHUP
    ignored = signal.getsignal(hup) == signal.SIG_IGN
    return signal.SIGINT, signal.SIGTERM, *(() if ignored else (hup,))


@contextmanager
def held_back() -> Iterator[None]:
    """Has signals that end a command come when what is within is done. Elsewhere than in the main
    thread none do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: came.append(number))
        for each in ending_signals()
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)
