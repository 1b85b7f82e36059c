"""Lays out benchmark results as tables for a terminal. Pure: nothing is printed here."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from reports.summary import CellSummary, RefusedCell, TierWork, refused_lines
from reports.tables.columns import BAD, GAP, Column, column_table, describe, measured, percents
from reports.tables.findings import in_words, parted
from reports.units import NONE, bytes_text, number_text

LEGEND = {
    "TTFT": "TTFT counts from the scheduled arrival; percentiles are interpolated linearly.",
    "unsent": "Unsent: how long due requests waited in the client; a busy client voids a run.",
    "unexpected": "Unexpected hits: requests that hit more or less than they should have.",
    "speed-up": "Speed-up: TTFT p50 with reuse off over this row's, on the same requests.",
    "computed": "Computed: prompt tokens per request that were computed to the top layer;"
    " layers: share of token-layers.",
    "F1": "F1, exact: of the answers, as SQuAD counts them; intervals are 95 % bootstraps.",
    "own": "Own: matching, rotating and selecting, as a share of TTFT.",
    "KL": "KL: from a full prefill's next-token distributions to this row's, over its answer.",
    "goodput": "Goodput: requests per second whose TTFT was at most the median without reuse.",
    "saved": "Saved: prefill without reuse less prefill and loading here, all requests together.",
    "hit": "Hit %: share of the prompt tokens that the cache served.",
}
"""The meaning of each column, by the first word of its name."""


@dataclass(frozen=True)
class WorkloadTable:
    """The table of one workload's cells, one row each. What all cells share is a line above the
    table. What doesn't fit the width goes on in further blocks below, which repeat the first
    columns."""

    cells: Sequence[CellSummary]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts, keys = describe(self.cells)
        yield Text(self.cells[0].meta["workload"], style="bold")
        for line in _wrapped(facts, options.max_width):
            yield Text(line, style="dim")
        for block in _blocks(keys, measured(self.cells), options.max_width):
            yield Text()
            yield column_table(block)


def bench_tables(
    cells: Sequence[CellSummary], refused: Sequence[RefusedCell] = ()
) -> RenderableType:
    """Lays out all cells of a run: a table per workload, in the order in which they first appear,
    the ``refused`` ones with their reasons, and a legend. Adapts to the width it is printed in."""
    if not cells:
        return Text("Nothing was measured.")
    parts: list[RenderableType] = []
    for group in workloads_of(cells):
        parts += [WorkloadTable(group), Text()]
        for said, command in map(parted, in_words(group)):
            parts.append(Text(said))
            if command:  # on one line, however long: it is to be pasted
                parts += [Text("To try:"), Text(command, no_wrap=True, overflow="ignore")]
            parts.append(Text())
    for table in tier_tables(cells):
        parts += [table, Text()]
    for line in refused_lines(refused):
        parts += [Text(line, style=BAD), Text()]
    parts.append(Text("\n".join(legend(cells)), style="dim"))
    return Group(*parts)


def workloads_of(cells: Sequence[CellSummary]) -> list[list[CellSummary]]:
    """Groups the cells by workload, in the order in which workloads first appear."""
    groups: dict[str, list[CellSummary]] = {}
    for cell in cells:
        groups.setdefault(cell.meta["workload"], []).append(cell)
    return list(groups.values())


def legend(cells: Sequence[CellSummary]) -> list[str]:
    """Returns a line for each kind of column that the tables of these cells have."""
    columns = [
        column for group in workloads_of(cells) for part in measured(group) for column in part
    ]
    shown = {column.name.partition(" ")[0] for column in columns}
    return [line for name, line in LEGEND.items() if name in shown]


def _wrapped(facts: Sequence[str], width: int) -> list[str]:
    """Wraps facts into lines that break between facts: inside of one, textwrap sees no blank."""
    joined = " · ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(joined, width)]


def _blocks(
    keys: Sequence[Column], groups: Sequence[Sequence[Column]], width: int
) -> list[list[Column]]:
    """Fills blocks with whole groups, or with single columns where a group is too wide alone."""
    start = list(keys)
    blocks = [list(start)]
    for group in groups:
        for part in [group] if _fits([*start, *group], width) else [[column] for column in group]:
            if len(blocks[-1]) > len(start) and not _fits([*blocks[-1], *part], width):
                blocks.append(list(start))
            blocks[-1] += part
    return blocks


def _fits(columns: Sequence[Column], width: int) -> bool:
    return sum(column.width + GAP for column in columns) - GAP <= width


def tier_tables(cells: Sequence[CellSummary]) -> list[Table]:
    """Returns a table per cell that has several tiers or a tier that failed: one row per tier."""
    shown = []
    for cell in cells:
        works = cell.meta.get("tier_work", {})
        if len(works) > 1 or any(work["failed_chunks"] for work in works.values()):
            shown.append(_tier_table(cell, works))
    return shown


def _tier_table(cell: CellSummary, works: Mapping[str, TierWork]) -> Table:
    heads = [("tier", ""), ("hit", "%"), ("read", ""), ("read", "GB/s"), ("written", "")]
    heads += [("write", "GB/s"), ("evicted", "chunks"), ("failed", "chunks")]
    table = column_table([Column(*head, (), left=head[0] == "tier") for head in heads])
    table.title, table.title_justify, table.title_style = f"tiers of {_label(cell)}", "left", "bold"
    for name, work in works.items():
        failed = work["failed_chunks"]
        table.add_row(
            name,
            percents([cell.tier_rate(name)])[0],
            _moved(work["read_bytes"]),
            _speed(work["read_bytes"], work["read_s"]),
            _moved(work["written_bytes"]),
            _speed(work["written_bytes"], work["write_s"]),
            str(work["evicted_chunks"]),
            Text(str(failed), style=BAD if failed else ""),
        )
        for trouble, count in work["troubles"].items():
            table.add_row(Text(f"  {trouble}", style="dim"), *[""] * 6, str(count))
    return table


def _label(cell: CellSummary) -> str:
    meta = cell.meta
    parts = [meta["workload"]]
    if "context_tokens" in meta:
        parts.append(f"{meta['context_tokens']} tokens")
    parts += [f"{tier} {bytes_text(size)}" for tier, size in meta["tiers"].items() if size]
    return ", ".join([*parts, f"chunks of {meta['chunk_tokens']}"])


def _moved(count: int) -> str:
    return bytes_text(count) if count else NONE


def _speed(count: int, seconds: float) -> str:
    return number_text(count / seconds / 1e9, 2) if count and seconds > 0 else NONE
