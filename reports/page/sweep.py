"""Heat maps of a sweep: tier sizes against chunk lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import altair as alt

from reports.page.chart import Chart, above, marks, room_for
from reports.sample import TIERS
from reports.summary import CellSummary
from reports.tables.columns import Column, texts
from reports.units import NONE, bytes_text, number_text, places_for


def sweep_charts(cells: Sequence[CellSummary]) -> Iterator[Chart]:
    """Yields for each reuse mode with two tier sizes and two chunk lengths or more a map of hit
    rates and one of speed-ups."""
    for mode in dict.fromkeys(cell.meta["reuse"] for cell in cells):
        swept = [c for c in cells if c.meta["reuse"] == mode and c.meta["tiers"]]
        names = _size_names(swept)
        grid = {(names[i], _chunk(cell)): cell for i, cell in enumerate(swept)}
        sizes = list(dict.fromkeys(names))
        chunks = sorted({_chunk(cell) for cell in swept})
        # what else was swept (ratios of blend) would lie on the same squares
        if len(sizes) < 2 or len(chunks) < 2 or len(grid) < len(swept):
            continue
        yield _map(
            mode, "hit rate", "%", grid, sizes, chunks, lambda c: c.hit_rate and 100 * c.hit_rate
        )
        if any(cell.speedup.ratio is not None for cell in swept):
            yield _map(
                mode,
                "speed-up of TTFT p50",
                "times",
                grid,
                sizes,
                chunks,
                lambda c: c.speedup.ratio,
            )


def _map(
    mode: str,
    what: str,
    unit: str,
    grid: dict[tuple[str, int], CellSummary],
    sizes: Sequence[str],
    chunks: Sequence[int],
    value_of: Callable[[CellSummary], float | None],
) -> Chart:
    found = {place: value_of(cell) for place, cell in grid.items()}
    places = 1 if unit == "%" else places_for(found.values())
    suffix = "x" if unit == "times" else ""
    shown = {
        place: NONE if value is None else number_text(value, places) + suffix
        for place, value in found.items()
    }
    rows = [
        {
            "size": size,
            "chunk": str(chunk),
            "value": value or 0,
            "text": shown[size, chunk],
            "say": f"{size}, chunks of {chunk} tokens: {what} {shown[size, chunk]} {unit},"
            f" n = {grid[size, chunk].n}",
        }
        for (size, chunk), value in found.items()
    ]

    known = [value for value in found.values() if value is not None] or [0.0]
    nothing = 0.0 if unit == "%" else min(1.0, *known)
    most = max(nothing + 1e-9, *known)

    def draw(width: int, narrow: bool) -> alt.TopLevelMixin:
        x = alt.X("chunk:O", title="chunk length (tokens)", scale=alt.Scale(padding=0.03))
        y = alt.Y("size:O", title="tier size", scale=alt.Scale(padding=0.05))
        axis = alt.Axis(
            ticks=False,
            domain=False,
            labelLimit=200,
            labelColor="var(--ink)",
            minExtent=room_for(sizes) + 8,
            **above(-8, -6, "right"),
        )
        squares = marks(rows).encode(
            x=x.sort([str(chunk) for chunk in chunks]).axis(
                labelAngle=0, ticks=False, domain=False
            ),
            y=y.sort(list(reversed(sizes))).axis(axis),
        )
        shade = alt.FillOpacity("value:Q", legend=None)
        shade = shade.scale(range=[0.06, 1], domain=[nothing, most])
        return alt.layer(
            squares.mark_rect(color="var(--heat)").encode(fillOpacity=shade, description="say:N"),
            squares.mark_text(aria=False).encode(text="text:N"),
        ).properties(height=alt.Step(40), padding={"left": 4, "right": 8, "top": 8, "bottom": 4})

    counts = sorted({cell.n for cell in grid.values()})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Chart(
        "sweep",
        f"{what[0].upper()}{what[1:]} over the sweep, {mode}",
        f"{what[0].upper()}{what[1:]} ({unit}) by tier size and chunk length (tokens); the fuller"
        f" the colour, the higher; n = {n} requests a square.",
        draw,
        [
            Column("tier size", "", texts(reversed(sizes)), left=True),
            *(
                Column(
                    f"chunks of {chunk}",
                    unit,
                    texts(shown.get((size, chunk), NONE) for size in reversed(sizes)),
                )
                for chunk in chunks
            ),
        ],
        half=True,
    )


def _size_names(cells: Sequence[CellSummary]) -> list[str]:
    """Names each cell by the sizes of its tiers that differ between the cells."""
    sizes = {tier: [cell.meta["tiers"].get(tier) for cell in cells] for tier in TIERS}
    varying = [tier for tier, found in sizes.items() if len(set(found)) > 1]
    return [
        " + ".join(
            f"{tier} {bytes_text(size)}" for tier in varying if (size := sizes[tier][i]) is not None
        )
        or "none"
        for i in range(len(cells))
    ]


def _chunk(cell: CellSummary) -> int:
    return cell.meta["chunk_tokens"] or 0
