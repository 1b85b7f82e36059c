"""Formats a benchmark as Markdown, for a pull request or a job summary, and as JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from reports.bench_json import cell_json
from reports.stored import StoredRun
from reports.summary import CellSummary
from reports.tables.columns import Column, cell_name, describe, measured
from reports.tables.findings import in_words, parted
from reports.tables.layout import legend, workloads_of

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def escaped(text: object) -> str:
    """Returns the text as one line in which nothing is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def bench_markdown(cells: Sequence[CellSummary]) -> str:
    """Returns a heading and a table per workload, and what the columns mean."""
    parts: list[str] = []
    for group in workloads_of(cells):
        facts, keys = describe(group)
        parts.append(f"### {escaped(group[0].meta['workload'])}")
        if facts:
            parts.append(escaped(" · ".join(facts)))
        columns = [*keys, *(column for part in measured(group) for column in part)]
        parts.append(table(columns))
        for said, command in map(parted, in_words(group)):
            parts.append(escaped(said) + (f" To try: `{command}`" if command else ""))
    notes = legend(cells)
    if notes:
        parts.append("\n".join(f"- {escaped(line)}" for line in notes))
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[Column]) -> str:
    """Returns a Markdown pipe table; numbers stand at the right."""
    heads, name = [], ""
    for column in columns:  # p90 and p99 stand under the name that p50 has
        name = column.name or (name if column.unit else "")
        heads.append(escaped(f"{name} {column.unit}"))
    rows = [heads, [":--" if column.left else "--:" for column in columns]]
    for values in zip(*(column.values for column in columns), strict=True):
        rows.append([escaped(value.plain) for value in values])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


_SHOWN = (
    *(f"ttft_ms.{name}" for name in ("p50", "p90", "p99")),
    *("itl_ms.p50", "e2e_ms.p50", "throughput.requests_per_s", "speedup_ttft", "hit_rate"),
    *("recomputed_tokens", "bytes_loaded", "bytes_stored", "n", "failed"),
)


def junit_text(runs: Sequence[StoredRun]) -> str:
    """Returns JUnit XML with a suite per run and a case per cell, whose time is the sum of its
    requests' seconds.

    A case fails where requests failed, hit more or less than they should have, or where exact reuse
    changed the output; a run that is incomplete or void is an error of its own.
    """
    document = JUnitXml("lmcache bench")
    for run in runs:
        suite = TestSuite(run.name)
        suite.timestamp = str(run.meta.get("started", ""))
        for cell, samples in zip(run.cells, run.samples_of, strict=True):
            case = TestCase(
                cell_name(cell.meta),
                classname=f"lmcache.{cell.meta['workload']}",
                time=sum(sample.finished_s - sample.sent_s for sample in samples),
            )
            case.system_out = "\n".join(_numbers(cell))
            case.result = [Failure(text) for text in _failures(cell)]
            suite.add_testcase(case)
        if not run.complete:
            case = TestCase("complete", classname="lmcache.run")
            case.result = [Error("; ".join(run.warnings) or "the run is incomplete")]
            suite.add_testcase(case)
        for number, warning in enumerate(run.warnings, 1):
            suite.add_property(f"warning {number}", warning)
        document.add_testsuite(suite)
    text: bytes = document.tostring()
    return text.decode() + "\n"


def _numbers(cell: CellSummary) -> Iterator[str]:
    for path in _SHOWN:
        value: Any = cell_json(cell)
        for name in path.split("."):
            value = value[name]
        if value is not None:
            yield f"{path} = {value:.6g}"


def _failures(cell: CellSummary) -> list[str]:
    found = []
    if cell.failed:
        found.append(f"{cell.failed} of {cell.failed + cell.n} requests failed")
    if cell.unexpected_hits:
        found.append(f"{cell.unexpected_hits} requests hit more or less than they should have")
    if cell.outputs.different and "blend" not in cell.meta:
        found.append(f"{cell.outputs.different} of {cell.outputs.compared} outputs changed")
    return found
