"""Shows what each tier did: hits, bytes moved and how fast, evictions, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from reports.summary import CellSummary, TierWork
from reports.tables.columns import BAD, Column, column_table, percents
from reports.units import NONE, bytes_text, number_text


def tier_tables(cells: Sequence[CellSummary]) -> list[Table]:
    """Returns a table per cell that has several tiers or a tier that failed: one row per tier."""
    shown = []
    for cell in cells:
        works = cell.meta.get("tier_work", {})
        if len(works) > 1 or any(work["failed_chunks"] for work in works.values()):
            shown.append(_table(cell, works))
    return shown


def _table(cell: CellSummary, works: Mapping[str, TierWork]) -> Table:
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
