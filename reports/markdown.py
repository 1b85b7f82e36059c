"""The tables of a benchmark as Markdown, for a pull request or a job summary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reports.columns import Column, describe, measured
from reports.summary import CellSummary
from reports.tables import legend, workloads_of

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def escaped(text: object) -> str:
    """One line in which nothing is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def bench_markdown(cells: Sequence[CellSummary]) -> str:
    """A heading and a table per workload, and what the columns mean."""
    parts: list[str] = []
    for group in workloads_of(cells):
        facts, keys = describe(group)
        parts.append(f"### {escaped(group[0].meta['workload'])}")
        if facts:
            parts.append(escaped(" · ".join(facts)))
        columns = [*keys, *(column for part in measured(group) for column in part)]
        parts.append(table(columns))
    notes = legend(cells)
    if notes:
        parts.append("\n".join(f"- {escaped(line)}" for line in notes))
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[Column]) -> str:
    """A pipe table; numbers stand at the right."""
    heads, name = [], ""
    for column in columns:  # p90 and p99 stand under the name that p50 has
        name = column.name or (name if column.unit else "")
        heads.append(escaped(f"{name} {column.unit}"))
    rows = [heads, [":--" if column.left else "--:" for column in columns]]
    for values in zip(*(column.values for column in columns), strict=True):
        rows.append([escaped(value.plain) for value in values])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
