"""``lmcache report``: stored runs in the formats that people and machines read."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.machine import version
from lmcache_cli.output import check_output, write_output
from reports.bench_json import bench_json, csv_text, json_text
from reports.formats import bench_markdown, escaped, table
from reports.run_file import CheckRecordError, read_among
from reports.stored import (
    StoredError,
    StoredResult,
    StoredRun,
    StoredTune,
    read_stored,
)
from reports.tables.columns import column_table
from reports.tables.layout import bench_tables
from reports.tables.tune import front_columns, recommended

REPORT_SCHEMA = "lmcache.report/1"
_WIDTH = 120
"""The width of text in a file, in characters."""
_ENDINGS = {
    ".txt": "text",
    ".json": "json",
    ".csv": "csv",
    ".md": "markdown",
    ".xml": "junit",
    ".html": "html",
    ".htm": "html",
}


def report_on(paths: Sequence[Path], format: str | None, out: str) -> None:
    """Reads all files, then writes the report. Among several files, those that ``check`` keeps are
    skipped: a glob over ``runs/`` finds them too. Raises ``UserError`` for a file or a format that
    can't be used, ``MissingError`` where HTML's libraries are not installed."""
    format = format or _ENDINGS.get(Path(out).suffix.lower(), "text")
    if format not in _WRITERS:
        raise UserError(f"--format: {format!r} is not known; use one of {', '.join(_WRITERS)}")
    check_output(out, "--out")
    stored = _read(paths)
    if format == "text" and out == "-":
        _print_text(Console(), stored)
        return
    write_output(out, _WRITERS[format](stored), "--out")


def _read(paths: Sequence[Path]) -> list[StoredResult]:
    try:
        found, warnings = read_among(paths, read_stored)
    except (StoredError, CheckRecordError) as error:
        raise UserError(str(error)) from error
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return found


def _print_text(console: Console, stored: Sequence[StoredResult]) -> None:
    for number, one in enumerate(stored):
        if number:
            console.print()
        if len(stored) > 1:
            console.rule(one.name, characters="─", align="left")
        if isinstance(one, StoredTune):
            for line in recommended(one.document):
                console.print(line, highlight=False, markup=False)
            console.print()
            console.print(column_table(front_columns(one.document)))
            continue
        console.print(bench_tables(one.cells, one.refused), crop=False)
        for warning in _warnings(one):
            console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def _text(stored: Sequence[StoredResult]) -> str:
    written = io.StringIO()
    _print_text(Console(file=written, width=_WIDTH, color_system=None), stored)
    return written.getvalue()


def _json(stored: Sequence[StoredResult]) -> str:
    documents = [_document(one) for one in stored]
    if len(documents) == 1:
        return json_text(documents[0])
    named = [{"name": s.name, **d} for s, d in zip(stored, documents, strict=True)]
    return json_text({"schema": REPORT_SCHEMA, "documents": named})


def _document(one: StoredResult) -> dict[str, object]:
    if isinstance(one, StoredTune):
        return dict(one.document)
    meta = one.meta
    facts = [dict(meta.get(name, {})) for name in ("machine", "versions", "config")]
    return bench_json(
        *(one.cells, facts[0], facts[1], facts[2], one.warnings, one.complete, one.refused),
        busy=meta.get("busy"),
        time_budget=meta.get("time_budget"),
        started=meta.get("started"),
        commit=meta.get("commit"),
    )


def _csv(stored: Sequence[StoredResult]) -> str:
    runs = _only_runs(stored, "csv")
    cells = [cell for run in runs for cell in run.cells]
    names = [run.name for run in runs for _ in run.cells]
    return csv_text(cells, names if len(runs) > 1 else ())


def _markdown(stored: Sequence[StoredResult]) -> str:
    parts = []
    for one in stored:
        parts.append(f"## {escaped(one.name)}\n")
        if isinstance(one, StoredTune):
            parts.append("\n\n".join(escaped(line) for line in recommended(one.document)) + "\n")
            parts.append(table(front_columns(one.document)) + "\n")
            continue
        parts.append(bench_markdown(one.cells))
        if warnings := _warnings(one):
            lines = (f"> **warning**: {escaped(warning)}" for warning in warnings)
            parts.append("\n>\n".join(lines) + "\n")
    return "\n".join(parts)


def _junit(stored: Sequence[StoredResult]) -> str:
    from reports.formats import junit_text

    return junit_text(_only_runs(stored, "junit"))


def _html(stored: Sequence[StoredResult]) -> str:
    missing = [name for name in ("altair", "jinja2", "vl-convert-python") if version(name) is None]
    if missing:
        raise MissingError(
            f"--format html needs {' and '.join(missing)}:"
            " pip install 'lmcache-bench[report]', or use --format markdown"
        )
    from reports.page.page import html_page

    return html_page(stored)


def _only_runs(stored: Sequence[StoredResult], format: str) -> list[StoredRun]:
    for one in stored:
        if isinstance(one, StoredTune):
            raise UserError(
                f"--format {format}: {one.name} is of tune, which predicts and measures nothing;"
                " leave it out, or use --format markdown"
            )
    return [one for one in stored if isinstance(one, StoredRun)]


def _warnings(run: StoredRun) -> list[str]:
    if run.complete or any("interrupted" in text or "void" in text for text in run.warnings):
        return run.warnings
    return ["the run is incomplete", *run.warnings]


_WRITERS: dict[str, Callable[[Sequence[StoredResult]], str]] = {
    "text": _text,
    "json": _json,
    "csv": _csv,
    "markdown": _markdown,
    "junit": _junit,
    "html": _html,
}
