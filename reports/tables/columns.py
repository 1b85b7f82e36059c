"""Decides what a benchmark's table says and how its columns look. How tables are laid out is in
layout.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from reports.sample import TIERS
from reports.summary import CellMeta, CellSummary, Spread
from reports.tables.findings import verdict
from reports.units import EN_DASH, NONE, bytes_text, bytes_unit, number_text, places_for

BAD = "bold red"
_VERDICTS = {"faster": "green", "slower": BAD, "wrong": BAD}
GAP = 2
"""The blanks between columns; the box draws one of them."""
QUEUE_SHARE = 0.01
"""The client's queue is shown where its p90 is more than this share of TTFT p50."""

Cells = Sequence[CellSummary]


@dataclass(frozen=True, slots=True)
class Column:
    """A header of two lines (name, unit) over one value per cell."""

    name: str
    unit: str
    values: tuple[Text, ...]
    left: bool = False

    @property
    def width(self) -> int:
        """Returns the terminal columns that this column needs."""
        return max(cell_len(str(text)) for text in (self.name, self.unit, *self.values))

    @property
    def empty(self) -> bool:
        """Returns whether no cell has a value."""
        return all(value.plain == NONE for value in self.values)


def column_table(columns: Sequence[Column]) -> Table:
    """Returns a table of the columns under two-line headers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        header = Text(column.name, style="bold")
        header.append(f"\n{column.unit}", style="not bold dim")
        table.add_column(header, justify="left" if column.left else "right", no_wrap=True)
    for values in zip(*(column.values for column in columns), strict=True):
        table.add_row(*values)
    return table


def describe(cells: Cells) -> tuple[list[str], list[Column]]:
    """Describes the cells of one workload: facts that they share, and columns for what differs.

    Tiers, chunks and policies are compared among the cells with tiers only: a cell without has none
    of them, and a dash in their columns.
    """
    facts: list[str] = []
    columns: list[Column] = []
    everywhere = [True] * len(cells)
    reusing = [bool(c.meta["tiers"]) for c in cells]

    def add(
        name: str, values: Iterable[str], compared: list[bool], fact: str = "", unit: str = ""
    ) -> None:
        values = tuple(values)
        distinct = {value for value, counts in zip(values, compared, strict=True) if counts}
        if len(distinct) > 1:
            numeric = any(value[0].isdecimal() for value in values)
            columns.append(Column(name, unit, tuple(map(Text, values)), left=not numeric))
        elif fact and distinct and distinct != {NONE}:
            facts.append(fact.format(distinct.pop()))

    add("engine", (c.meta["engine"] for c in cells), everywhere, "{}")
    add("model", (c.meta["model"] for c in cells), everywhere, "{}")
    blended = [bool(c.meta.get("blend")) for c in cells]
    add("ratio", (_blend_ratio(c) for c in cells), blended, "blend ratio {}")
    shared = [bool(c.meta.get("shared")) for c in cells]
    add("recompute", (_shared(c) for c in cells), shared, "layers {} recomputed", "layers")
    contexts = (str(c.meta.get("context_tokens", NONE)) for c in cells)
    add("context", contexts, everywhere, "contexts of {} tokens", "tokens")
    columns.append(Column("reuse", "", tuple(Text(c.meta["reuse"]) for c in cells), left=True))
    for tier in TIERS:
        add(tier, (_size(c, tier) for c in cells), reusing, f"{tier} {{}}", "size")
    add("chunk", map(_chunk, cells), reusing, "chunks of {} tokens", "tokens")
    add("policy", (c.meta.get("policy", NONE) for c in cells), reusing)
    add("placement", (c.meta.get("placement", NONE) for c in cells), reusing)
    add("start", (c.meta.get("state", NONE) for c in cells), reusing, "{} start")
    add("n", (str(c.n) for c in cells), everywhere, "n = {}")
    return facts, columns


def measured(cells: Cells, first: str = "") -> list[list[Column]]:
    """Returns the columns of what was measured, most important first. The columns of a group belong
    side by side; those that no cell has a value for are left out. ``first`` names a column whose
    group comes before all others."""
    groups = [_trouble(cells), _ttft(cells), _speedup(cells), _hits(cells), _rates(cells)]
    groups += [_answers(cells), _quality(cells), _moved(cells)]
    kept = [[column for column in group if not column.empty] for group in groups]
    return sorted(
        (group for group in kept if group),
        key=lambda group: bool(first) and first not in [column.name for column in group],
    )


def _size(cell: CellSummary, tier: str) -> str:
    if tier not in cell.meta["tiers"]:
        return NONE
    size = cell.meta["tiers"][tier]
    return bytes_text(size) if size else "yes"  # a remote one takes what its server takes


def _chunk(cell: CellSummary) -> str:
    tokens = cell.meta["chunk_tokens"]
    return NONE if tokens is None or cell.meta["reuse"] == "off" else str(tokens)


def _blend_ratio(cell: CellSummary) -> str:
    meta = cell.meta.get("blend")
    return NONE if meta is None else f"{meta['ratio']:g}"


def _shared(cell: CellSummary) -> str:
    meta = cell.meta.get("shared")
    return meta["recompute_layers"] if meta else NONE


def _trouble(cells: Cells) -> list[Column]:
    def count(number: int | None) -> Text:
        return Text(str(number), style=BAD) if number else Text(NONE)

    return [
        Column("failed", "requests", tuple(count(c.failed) for c in cells)),
        Column("unexpected", "hits", tuple(count(c.unexpected_hits) for c in cells)),
    ]


def _ttft(cells: Cells) -> list[Column]:
    columns = _times(cells, lambda c: c.ttft, "TTFT", "p50 mean p90 p99")
    queued = any((c.client_queue.p90 or 0) > QUEUE_SHARE * (c.ttft.p50 or 0) for c in cells)
    if queued:
        columns += _times(cells, lambda c: c.client_queue, "unsent", "p90")
    return columns


def _speedup(cells: Cells) -> list[Column]:
    places = places_for(c.speedup.ratio for c in cells)

    def interval(cell: CellSummary) -> Text:
        low, high = cell.speedup.low, cell.speedup.high
        if low is None or high is None:
            return Text(NONE)
        return Text(f"{number_text(low, places)}{EN_DASH}{number_text(high, places)}")

    def ratio(cell: CellSummary) -> Text:
        if cell.speedup.ratio is None:
            return Text(NONE)
        return Text(f"{number_text(cell.speedup.ratio, places)}x", style="bold")

    def judged(cell: CellSummary) -> Text:
        word = verdict(cell)
        return Text(word or NONE, style=_VERDICTS.get(word, ""))

    def same(cell: CellSummary) -> Text:
        if cell.outputs.identical is None:
            return Text(NONE)
        if cell.outputs.identical:
            return Text("yes")
        return Text(f"NO {cell.outputs.different}/{cell.outputs.compared}", style=BAD)

    return [
        Column("speed-up", "of TTFT", tuple(map(ratio, cells))),
        Column("95 %", "interval", tuple(map(interval, cells))),
        Column("verdict", "", tuple(map(judged, cells)), left=True),
        Column("same", "text", tuple(map(same, cells))),
    ]


def _hits(cells: Cells) -> list[Column]:
    def share(cell: CellSummary, rate: float | None) -> Text:
        if rate is None or (cell.meta["reuse"] == "off" and not any(cell.hit_tokens.values())):
            return Text(NONE)
        return Text(number_text(rate * 100, 1))

    columns = [Column("hit", "%", tuple(share(c, c.hit_rate) for c in cells))]
    serving = [tier for tier in TIERS if any(c.hit_tokens[tier] for c in cells)]
    if len(serving) > 1:
        columns += [
            Column("from", f"{tier} %", tuple(share(c, c.tier_rate(tier)) for c in cells))
            for tier in serving
        ]
    return columns


def _quality(cells: Cells) -> list[Column]:
    """Returns the columns of what blend computed, and how far its answers are from a full
    prefill's."""

    def interval(cell: CellSummary) -> Text:
        low, high = cell.quality.kl_low, cell.quality.kl_high
        if low is None or high is None:
            return Text(NONE)
        return Text(f"{number_text(low, 4)}{EN_DASH}{number_text(high, 4)}")

    tokens = [c.recomputed_tokens / c.n if c.blend.n and c.n else None for c in cells]
    return [
        Column("computed", "tokens", numbers(tokens, 0)),
        Column("layers", "run %", percents(c.token_layer_share for c in cells)),
        Column("KL", "nats", numbers([c.quality.kl for c in cells], 4)),
        Column("95 %", "interval", tuple(map(interval, cells))),
        Column("agree", "top-1 %", percents(c.quality.agreement for c in cells)),
        Column("own", "% of TTFT", percents(c.own_share for c in cells)),
    ]


def _answers(cells: Cells) -> list[Column]:
    """Returns the columns of how many answers are right."""

    def interval(low: float | None, high: float | None) -> Text:
        return Text(NONE if low is None else EN_DASH.join(t.plain for t in percents([low, high])))

    found = [c.answers for c in cells]
    return [
        Column("F1", "%", percents(a.f1 for a in found)),
        Column("95 %", "interval", tuple(interval(a.f1_low, a.f1_high) for a in found)),
        Column("exact", "match %", percents(a.exact for a in found)),
        Column("95 %", "interval", tuple(interval(a.exact_low, a.exact_high) for a in found)),
    ]


def _rates(cells: Cells) -> list[Column]:
    return [
        *_times(cells, lambda c: c.itl, "ITL", "p50"),
        Column("req", "per s", numbers([c.throughput.requests_per_s for c in cells])),
        Column("goodput", "per s", numbers([c.goodput_per_s for c in cells])),
        Column("saved", "prefill s", numbers([c.prefill_saved_s for c in cells])),
    ]


def _moved(cells: Cells) -> list[Column]:
    unit, scale = bytes_unit([n for c in cells for n in (c.bytes_loaded, c.bytes_stored)])
    loaded = [c.bytes_loaded / scale or None for c in cells]
    stored = [c.bytes_stored / scale or None for c in cells]
    speeds = [c.load_bytes_per_s / 1e9 if c.load_bytes_per_s else None for c in cells]
    return [
        Column("loaded", unit, numbers(loaded)),
        Column("load", "GB/s", numbers(speeds)),
        Column("stored", unit, numbers(stored)),
    ]


def numbers(values: Sequence[float | None], places: int | None = None) -> tuple[Text, ...]:
    """Returns numbers as a column's values, with as many decimals each as :func:`places_for` says,
    unless ``places`` does."""
    places = places_for(values) if places is None else places
    return texts(number_text(value, places) for value in values)


def texts(values: Iterable[str]) -> tuple[Text, ...]:
    """Returns words as a column's values."""
    return tuple(map(Text, values))


def percents(values: Iterable[float | None]) -> tuple[Text, ...]:
    """Returns shares as a column's values, in per cent."""
    return numbers([None if value is None else value * 100 for value in values], 1)


def _times(
    cells: Cells, spread: Callable[[CellSummary], Spread], name: str, fields: str
) -> list[Column]:
    """Returns one column per field of the spread, all in one unit and with as many decimals. The
    name and the unit are over the first only."""
    seconds = {field: [getattr(spread(cell), field) for cell in cells] for field in fields.split()}
    known = [value for values in seconds.values() for value in values if value is not None]
    unit, scale = ("s", 1.0) if min(known, default=0) >= 1 else ("ms", 1e3)
    places = places_for(value * scale for value in known)

    def text(value: float | None) -> Text:
        return Text(number_text(None if value is None else value * scale, places))

    return [
        Column("" if i else f"{name} {unit}", field, tuple(map(text, values)))
        for i, (field, values) in enumerate(seconds.items())
    ]


def cell_name(meta: CellMeta) -> str:
    """Describes a cell on one line without its workload: ``prefix, cpu 2 GiB, chunks of 64``."""
    parts = [meta["reuse"]]
    if meta.get("context_tokens"):
        parts.insert(0, f"contexts of {meta['context_tokens']}")
    parts += [
        f"{tier} {bytes_text(size)}" if size else tier for tier, size in meta["tiers"].items()
    ]
    if meta["chunk_tokens"] is not None and meta["tiers"]:
        parts.append(f"chunks of {meta['chunk_tokens']}")
    if blend := meta.get("blend"):
        parts.append(f"{blend['selection']} {blend['ratio']:g}")
    return ", ".join(parts)
