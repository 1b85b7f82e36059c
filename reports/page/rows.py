"""Charts with one row per cell: times to first token, speed-ups, hit rates by tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import altair as alt
import numpy as np

from reports.page.chart import Chart, Datum, beside, linear_or, marks, row_axis, row_layers
from reports.sample import TIERS, Sample
from reports.summary import CellSummary
from reports.tables.columns import Column, describe, numbers, percents, texts
from reports.units import EN_DASH, NONE, number_text, places_for

MOST_TICKS = 1000
"""The most ticks of a whole chart: with more, a row is drawn by its quantiles."""
COMPUTED = "computed"
COLOURS = {
    **{tier: f"var(--{tier})" for tier in TIERS},
    COMPUTED: "var(--computed)",
}


@dataclass(frozen=True, slots=True)
class RowChart:
    """The cells of one workload and context length: a label for each, and what labels are of."""

    cells: Sequence[CellSummary]
    samples_of: Sequence[Sequence[Sample]]
    labels: Sequence[str]
    title: str

    @classmethod
    def of(cls, cells: Sequence[CellSummary], samples_of: Sequence[Sequence[Sample]]) -> RowChart:
        """Makes the rows of these cells; labels name what differs between them."""
        columns = [c for c in describe(cells)[1] if c.name not in ("n", "start")]
        columns.sort(key=lambda column: column.name != "reuse")
        labels: list[str] = []
        for index in range(len(cells)):
            values = [column.values[index].plain for column in columns]
            label = " · ".join(value for value in values if value != NONE)
            labels.append(label if label not in labels else f"{label} ({index + 1})")
        named = (f"{c.name} ({c.unit})" if c.unit == "tokens" else c.name for c in columns)
        return cls(cells, samples_of, labels, " · ".join(named))

    @property
    def column(self) -> Column:
        """Returns the labels as a column of a table."""
        return Column(self.title, "", texts(self.labels), left=True)

    def n_text(self) -> str:
        """Says how many requests a row is of."""
        counts = sorted({cell.n for cell in self.cells})
        if len(counts) == 1:
            return f"n = {counts[0]} requests a row"
        return f"n = {counts[0]} to {counts[-1]} requests a row"


def ttft_chart(rows: RowChart) -> Chart | None:
    """Charts every request's TTFT, hits apart from misses, and the median."""
    values = [
        [(s.ttft_s, s.hits > 0) for s in samples if s.completed and s.output_tokens]
        for samples in rows.samples_of
    ]
    known = [ttft for row in values for ttft, _ in row]
    if not known:
        return None
    unit, scale = ("s", 1.0) if float(np.median(known)) >= 1 else ("ms", 1e3)
    each = max(20, MOST_TICKS // len(values))
    ticks: list[Datum] = []
    thinned = False
    for label, row in zip(rows.labels, values, strict=True):
        for hit in (False, True):
            of_kind = sorted(ttft for ttft, was in row if was == hit)
            room = max(4, round(each * len(of_kind) / max(1, len(row))))
            if len(of_kind) > room:
                thinned = True
                of_kind = [float(q) for q in np.quantile(of_kind, np.linspace(0, 1, room))]
            ticks += [{"row": label, "ttft": t * scale, "hit": hit} for t in of_kind]
    p50 = [None if c.ttft.p50 is None else c.ttft.p50 * scale for c in rows.cells]
    p90 = [None if c.ttft.p90 is None else c.ttft.p90 * scale for c in rows.cells]
    places = places_for(p50)
    middles = [
        {
            "row": label,
            "p50": middle,
            "text": number_text(middle, places),
            "say": f"{label}: TTFT p50 {number_text(middle, places)} {unit},"
            f" p90 {number_text(high, places)} {unit}, n = {cell.n}",
        }
        for label, middle, high, cell in zip(rows.labels, p50, p90, rows.cells, strict=True)
    ]
    log = max(known) > 40 * min(known) > 0

    def draw(width: int, narrow: bool) -> alt.TopLevelMixin:
        y = row_axis(rows.title, narrow)
        ticked = alt.Axis(tickCount=4 if narrow else 7)
        x = partial(alt.X, title=f"TTFT ({unit})", scale=linear_or(log), axis=ticked)
        hue = alt.when("datum.hit").then(alt.value("var(--cpu)"))
        strip = marks(ticks).mark_tick(thickness=1.5, size=14, opacity=0.5, aria=False)
        median = marks(middles).mark_point(
            filled=True,
            size=62,
            opacity=1,
            color="var(--ink)",
            stroke="var(--paper)",
            strokeWidth=1.5,
        )
        layers = [
            strip.encode(x=x("ttft:Q"), y=y, color=hue.otherwise(alt.value("var(--miss)"))),
            median.encode(x=x("p50:Q"), y=y, description="say:N"),
            *beside(middles, "text", f"p50 {unit}"),
        ]
        return row_layers(middles, layers, narrow)

    some = " Rows of many requests are drawn by evenly spaced quantiles." if thinned else ""
    spreads = [
        (name, [getattr(c.ttft, name) for c in rows.cells])
        for name in ("p50", "p90", "p99", "min", "max")
    ]
    return Chart(
        "ttft",
        "Time to first token",
        f"TTFT ({unit}{', logarithmic' if log else ''}) of every request, from its scheduled"
        f" arrival; {rows.n_text()}.{some}",
        draw,
        [
            rows.column,
            *(
                Column(name, unit, numbers([None if v is None else v * scale for v in found]))
                for name, found in spreads
            ),
            Column("n", "requests", texts(str(c.n) for c in rows.cells)),
        ],
        {
            "hit something": "var(--cpu)",
            "hit nothing": "var(--miss)",
            "median": "var(--ink)",
        },
    )


def speedup_chart(rows: RowChart) -> Chart | None:
    """Charts TTFT p50 without reuse over the row's, with 95 % intervals."""
    kept = [
        (label, c)
        for label, c in zip(rows.labels, rows.cells, strict=True)
        if c.speedup.ratio is not None
    ]
    if not kept:
        return None
    places = places_for(cell.speedup.ratio for _, cell in kept)
    values: list[Datum] = []
    for label, cell in kept:
        ratio, low, high = cell.speedup.ratio, cell.speedup.low, cell.speedup.high
        between = (
            NONE
            if low is None or high is None
            else f"{number_text(low, places)}{EN_DASH}{number_text(high, places)}"
        )
        values.append(
            {
                "row": label,
                "ratio": ratio,
                "low": low,
                "high": high,
                "between": between,
                "text": f"{number_text(ratio, places)}x",
                "say": f"{label}: {number_text(ratio, places)} times as fast, 95 % interval"
                f" {between}, n = {cell.n}",
            }
        )
    ends = [v for row in values for v in (row["ratio"], row["low"], row["high"]) if v is not None]
    log = max(ends) > 12 and min(ends) > 0

    def draw(width: int, narrow: bool) -> alt.TopLevelMixin:
        y = row_axis(rows.title, narrow)
        ticked = alt.Axis(tickCount=4 if narrow else 7)
        title = "speed-up of TTFT p50 (times)"
        x = partial(alt.X, title=title, scale=linear_or(log), axis=ticked)
        hue = alt.value("var(--cpu)")
        even = marks([{"one": 1}]).mark_rule(color="var(--quiet)", strokeDash=[3, 3], aria=False)
        interval = marks(v for v in values if v["low"] is not None).mark_rule(
            strokeWidth=3, opacity=0.45, aria=False
        )
        dot = marks(values).mark_point(filled=True, size=70, opacity=1)
        layers = [
            even.encode(x=x("one:Q")),
            interval.encode(x=x("low:Q"), x2="high", y=y, color=hue),
            dot.encode(x=x("ratio:Q"), y=y, color=hue, description="say:N"),
            *beside(values, "text", "speed-up"),
            *([] if narrow else beside(values, "between", "95 %", 76)),
        ]
        return row_layers(values, layers, narrow)

    return Chart(
        "speedup",
        "Speed-up of the first token",
        "TTFT p50 with reuse off over the row's, on the same requests, with the 95 % interval of a"
        f" paired bootstrap{', logarithmic' if log else ''}; right of the dashed line is faster;"
        f" {rows.n_text()}.",
        draw,
        [
            Column(rows.title, "", texts(label for label, _ in kept), left=True),
            Column("speed-up", "times", texts(v["text"] for v in values)),
            Column("95 %", "interval", texts(v["between"] for v in values)),
        ],
    )


def hits_chart(rows: RowChart) -> Chart | None:
    """Charts where the prompt tokens came from, as stacked bars."""
    cells = [(label, c) for label, c in zip(rows.labels, rows.cells, strict=True) if c.hit_rate]
    if not cells:
        return None
    tiers = [tier for tier in TIERS if any(cell.hit_tokens[tier] for _, cell in cells)]
    parts: list[Datum] = []
    totals: list[Datum] = []
    for label, cell in cells:
        at = 0.0
        shares = {tier: 100 * (cell.tier_rate(tier) or 0) for tier in tiers}
        for name, share in {**shares, COMPUTED: 100 - sum(shares.values())}.items():
            say = f"{label}: {share:.1f} % of the prompt tokens {source_text(name)}"
            parts.append({"row": label, "from": at, "to": at + share, "part": name, "say": say})
            at += share
        totals.append({"row": label, "text": f"{100 * (cell.hit_rate or 0):.1f}"})

    def draw(width: int, narrow: bool) -> alt.TopLevelMixin:
        x = alt.X("from:Q", title="prompt tokens (%)", scale=alt.Scale(domain=[0, 100]))
        bars = marks(parts).mark_bar(height=13, stroke="var(--paper)", strokeWidth=1)
        bars = bars.encode(
            x=x.axis(values=[0, 25, 50, 75, 100]),
            x2="to",
            y=row_axis(rows.title, narrow),
            description="say:N",
            color=alt.Color("part:N", scale=part_scale(tiers), legend=None),
        )
        return row_layers(totals, [bars, *beside(totals, "text", "hit %")], narrow)

    return Chart(
        "hits",
        "Where the prompt tokens came from",
        "Share of the prompt tokens that each tier served, in per cent; the rest was computed;"
        f" {rows.n_text()}. Rows without a hit are left out.",
        draw,
        [
            Column(rows.title, "", texts(label for label, _ in cells), left=True),
            *(
                Column(tier, "%", percents(cell.tier_rate(tier) or 0 for _, cell in cells))
                for tier in tiers
            ),
            Column("hit", "%", percents(cell.hit_rate for _, cell in cells)),
        ],
        part_keys(tiers),
    )


def source_text(part: str) -> str:
    """Returns ``from cpu`` for the tier ``cpu``, or ``computed``."""
    return part if part == COMPUTED else f"from {part}"


def part_scale(tiers: Sequence[str]) -> alt.Scale:
    """Returns the scale of tiers and what was computed to their colours."""
    parts = [*tiers, COMPUTED]
    return alt.Scale(domain=parts, range=[COLOURS[part] for part in parts])


def part_keys(tiers: Sequence[str]) -> dict[str, str]:
    """Maps the names of tiers and of what was computed to their colours."""
    return {source_text(part): COLOURS[part] for part in (*tiers, COMPUTED)}
