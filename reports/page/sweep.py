"""Heat maps of a sweep: tier sizes against chunk lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from reports.page.chart import Chart, Spec, above, room_for
from reports.sample import TIERS
from reports.summary import CellSummary
from reports.tables.columns import Column
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
        yield _map(mode, "hit rate", "%", grid, sizes, chunks, _hit)
        if any(cell.speedup.ratio is not None for cell in swept):
            yield _map(mode, "speed-up of TTFT p50", "times", grid, sizes, chunks, _ratio)


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
    texts = {
        place: NONE if value is None else number_text(value, places) + suffix
        for place, value in found.items()
    }
    squares = [
        {
            "size": size,
            "chunk": str(chunk),
            "value": value or 0,
            "text": texts[size, chunk],
            "say": f"{size}, chunks of {chunk} tokens: {what} {texts[size, chunk]} {unit},"
            f" n = {grid[size, chunk].n}",
        }
        for (size, chunk), value in found.items()
    ]

    known = [value for value in found.values() if value is not None] or [0.0]
    nothing = 0.0 if unit == "%" else min(1.0, *known)
    most = max(nothing + 1e-9, *known)

    def draw(width: int, narrow: bool) -> Spec:
        x = {
            "field": "chunk",
            "type": "ordinal",
            "sort": [str(chunk) for chunk in chunks],
            "title": "chunk length (tokens)",
            "scale": {"padding": 0.03},
            "axis": {"labelAngle": 0, "ticks": False, "domain": False},
        }
        y = {
            "field": "size",
            "type": "ordinal",
            "sort": list(reversed(sizes)),
            "scale": {"padding": 0.05},
            "axis": {
                "title": "tier size",
                **above(-8, -6, "right"),
                "ticks": False,
                "domain": False,
                "labelLimit": 200,
                "labelColor": "var(--ink)",
                "minExtent": room_for(sizes) + 8,
            },
        }
        shade = {
            "field": "value",
            "type": "quantitative",
            "scale": {"range": [0.06, 1], "domain": [nothing, most]},
            "legend": None,
        }
        return {
            "padding": {"left": 4, "right": 8, "top": 8, "bottom": 4},
            "height": {"step": 40},
            "data": {"values": squares},
            "encoding": {"x": x, "y": y},
            "layer": [
                {
                    "mark": {"type": "rect", "color": "var(--heat)"},
                    "encoding": {"fillOpacity": shade, "description": {"field": "say"}},
                },
                {"mark": {"type": "text", "aria": False}, "encoding": {"text": {"field": "text"}}},
            ],
        }

    counts = sorted({cell.n for cell in grid.values()})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Chart(
        "sweep",
        f"{what[0].upper()}{what[1:]} over the sweep, {mode}",
        f"{what[0].upper()}{what[1:]} ({unit}) by tier size and chunk length (tokens); the fuller"
        f" the colour, the higher; n = {n} requests a square.",
        draw,
        [
            Column("tier size", "", tuple(map(Text, reversed(sizes))), left=True),
            *(
                Column(
                    f"chunks of {chunk}",
                    unit,
                    tuple(Text(texts.get((size, chunk), NONE)) for size in reversed(sizes)),
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


def _hit(cell: CellSummary) -> float | None:
    return None if cell.hit_rate is None else 100 * cell.hit_rate


def _ratio(cell: CellSummary) -> float | None:
    return cell.speedup.ratio
