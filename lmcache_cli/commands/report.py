"""Declares ``lmcache report``: what did the runs say?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples:  lmcache report runs/bench-*.parquet   |   lmcache report runs/a.parquet tune.json"
    " --format html --out report.html   |   lmcache report runs/a.parquet --format markdown"
    ' >> "$GITHUB_STEP_SUMMARY"'
)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run files of bench (runs/bench-*.parquet), and files of tune --json.",
            show_default=False,
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            help="Format: text, json, csv, markdown, junit, or html, one page that needs no"
            " network. \\[default: by the ending of --out; text]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(metavar="FILE", help="File to write; - for stdout."),
    ] = "-",
) -> None:
    """Shows runs again: the tables of bench as text, Markdown, CSV or JSON, JUnit XML for
    continuous integration, or one HTML page with charts."""
    from lmcache_cli.report import report_on

    report_on(runs, format, out)
