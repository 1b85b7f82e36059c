"""The command line: ``lmcache`` (or ``lmcache-bench``)."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Annotated

import typer

from lmcache_cli.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    UserError,
    ending_signals,
    parser_text,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from lmcache_cli.machine import DISTRIBUTION, version

        typer.echo(f"{DISTRIBUTION} {version(DISTRIBUTION) or 'of no known version'}")
        raise typer.Exit


COMMANDS = {
    "bench": "Measures what KV reuse gives: TTFT, ITL, hit rates, speed-up.",
    "tune": "Sizes storage by a trace or a workload, and can validate it.",
    "probe": "Measures memory, disk, a remote, an engine; for tune and bench.",
    "check": "Did this change make it slower? PASS, FAIL or INCONCLUSIVE.",
    "compare": "The same judgement of stored runs, also of other tools.",
    "verify": "Is a hit the same as computing it? Compares logits.",
    "report": "Shows stored runs as text, Markdown, CSV, JSON, JUnit or HTML.",
    "trace": "Traces of real requests: record, convert, make, look at them.",
    "doctor": "Says what is installed, built and missing, and how to get it.",
}
"""What each command does, in the order of the help; its module has the same name."""


def lmcache(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Measures, sizes and regression-tests KV-cache reuse for LLM serving."""


def make_app(wanted: str | None) -> typer.Typer:
    """Makes the command line with the command ``wanted`` in full, and the others by what they do:
    to import what all of them declare takes longer than to print a list."""
    app = typer.Typer(
        name="lmcache",
        no_args_is_help=True,
        rich_markup_mode=None,  # what draws boxes takes longer to import than all else
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(lmcache)
    for name, short in COMMANDS.items():
        if name != wanted:
            app.command(name, short_help=short)(lambda: None)
            continue
        panels = import_module("lmcache_cli.options.flags").PanelCommand
        module = import_module(f"lmcache_cli.commands.{name}")
        group = getattr(module, f"{name}_app", None)
        if group is not None:
            for inner in group.registered_commands:
                inner.cls = panels
            app.add_typer(group, short_help=short)
        else:
            add = app.command(name, cls=panels, short_help=short, epilog=module.EXAMPLES)
            add(getattr(module, name))
    return app


def run() -> None:
    """Runs the command; turns errors into one line on stderr and an exit code."""
    codecs.register_error("lmcache-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="lmcache-plain")
    # They end a run as Ctrl-C does, whose handler is Python's own: what was measured is kept.
    for number in ending_signals()[1:]:
        signal.signal(number, _interrupt)
    try:
        wanted = next((word for word in sys.argv[1:] if word in COMMANDS), None)
        code: object = make_app(wanted)(prog_name="lmcache", standalone_mode=False)
    except UserError as error:
        print(f"lmcache: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("lmcache: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (head, less) has left; that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        # The parser's own errors, which Typer would draw in a box.
        text = parser_text(error)
        if text is None:
            if type(error).__name__ == "Abort":
                sys.exit(EXIT_INTERRUPTED)
            raise
        context = getattr(error, "ctx", None)
        command = getattr(context, "command_path", "lmcache")
        if context is not None and type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help(), file=sys.stderr)
        elif text:
            print(f"lmcache: {text.rstrip('.')}; see {command} --help", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    else:
        sys.exit(code if isinstance(code, int) else 0)


_PLAIN = {"\u2013": "-", "\u2014": "-", "\u2500": "-", "\u2501": "-", "\u2026": "...", "\xb5": "u"}
_PLAIN |= {"\xb7": "|", "\u2502": "|", "\xd7": "x", "\xb1": "+-", "\u2588": "#"}
_PLAIN |= {"\u201c": '"', "\u201d": '"', "\u2019": "'"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Writes what a terminal has no character for with those that it has."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one, "?") for one in text), error.end


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
