"""The command line: ``lmcache`` (or ``lmcache-bench``)."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from lmcache_cli.commands import (
    bench,
    check,
    compare,
    doctor,
    probe,
    report,
    trace,
    tune,
    verify,
)
from lmcache_cli.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError, parser_text


def _print_version(wanted: bool) -> None:
    if wanted:
        from lmcache_cli.machine import DISTRIBUTION, version

        typer.echo(f"{DISTRIBUTION} {version(DISTRIBUTION) or 'of no known version'}")
        raise typer.Exit


app = typer.Typer(
    name="lmcache",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
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


app.command("bench", short_help=bench.SHORT, epilog=bench.EXAMPLES)(bench.bench)
app.command("tune", short_help=tune.SHORT, epilog=tune.EXAMPLES)(tune.tune)
app.command("probe", short_help=probe.SHORT, epilog=probe.EXAMPLES)(probe.probe)
app.command("check", short_help=check.SHORT, epilog=check.EXAMPLES)(check.check)
app.command("compare", short_help=compare.SHORT, epilog=compare.EXAMPLES)(compare.compare)
app.add_typer(verify.verify_app)
app.command("report", short_help=report.SHORT, epilog=report.EXAMPLES)(report.report)
app.add_typer(trace.trace_app)
app.command("doctor", short_help=doctor.SHORT, epilog=doctor.EXAMPLES)(doctor.doctor)


def run() -> None:
    """Runs the command; turns errors into one line on stderr and an exit code."""
    # SIGTERM ends a run as Ctrl-C does: what was measured is kept.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code: object = app(standalone_mode=False)
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
        command = getattr(getattr(error, "ctx", None), "command_path", "lmcache")
        if text:
            print(f"lmcache: {text.rstrip('.')}; see {command} --help", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
