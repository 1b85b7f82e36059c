"""Plots for a terminal, as plain text without colours."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports.units import bytes_text

Point = tuple[float, float]
_MARKERS = ("●", "▲", "■", "◆", "+", "x", "o", "*")
"""One per curve: shapes tell them apart where there is no colour."""
_LEAST_COLUMNS, _LEAST_LINES = 40, 8


def curve_plot(
    curves: Mapping[str, Sequence[Point]], width: int = 80, height: int = 18, marked: float = 0.0
) -> str:
    """Miss-ratio curves. ``curves`` maps a name to points of (capacity in bytes, hit rate from 0 to
    1); capacities are drawn on a logarithmic axis, those of 0 left out. ``marked`` is a capacity in
    bytes at which a vertical line stands, 0 for none. ``width`` and ``height`` are in characters.

    Returns lines of text that end in a newline; empty text if there is nothing to draw.
    """
    known = {
        name: [(math.log2(size), 100 * (1 - rate)) for size, rate in points if size > 0]
        for name, points in curves.items()
    }
    known = {name: points for name, points in known.items() if points}
    if not known:
        return ""
    plot = _canvas(width, height)
    for (name, points), marker in zip(known.items(), _cycled(len(known)), strict=True):
        xs, ys = zip(*sorted(points), strict=True)
        plot.plot(xs, ys, marker=marker, label=name)
    sizes = [size for points in known.values() for size, _ in points]
    if marked > 0 and min(sizes) <= math.log2(marked) <= max(sizes):
        plot.vertical_line(math.log2(marked))
    _byte_ticks(plot, min(sizes), max(sizes), width)
    plot.ylim(0, 100)
    plot.xlabel("capacity")
    plot.title("prompt tokens missed (%) by capacity")
    return _text(plot)


def front_plot(
    series: Mapping[str, Sequence[Point]],
    marked: float | None = None,
    width: int = 80,
    height: int = 18,
) -> str:
    """A Pareto front. ``series`` maps a name, such as a percentile, to points of (cost per hour,
    TTFT in seconds); ``marked`` is the recommendation's cost, at which a vertical line stands.
    Returns text as ``curve_plot`` does."""
    known = {name: sorted(points) for name, points in series.items() if points}
    if not known:
        return ""
    plot = _canvas(width, height)
    every = [point for points in known.values() for point in points]
    unit, scale = ("s", 1.0) if min(ttft for _, ttft in every) >= 1 else ("ms", 1e3)
    for (name, points), marker in zip(known.items(), _cycled(len(known)), strict=True):
        costs = [cost for cost, _ in points]
        plot.plot(costs, [ttft * scale for _, ttft in points], marker=marker, label=name)
    if marked is not None:
        plot.vertical_line(marked)
    plot.ylim(0, 1.1 * scale * max(ttft for _, ttft in every) or 1.0)
    plot.xlabel("cost per hour")
    plot.title(f"TTFT ({unit}) by cost per hour")
    return _text(plot)


def _canvas(width: int, height: int) -> Any:
    plotext = importlib.import_module("plotext")  # on use: it is slow to load
    plotext.clear_figure()  # it has one figure
    plotext.limit_size(False, False)
    plotext.plot_size(max(width, _LEAST_COLUMNS), max(height, _LEAST_LINES))
    plotext.theme("clear")
    return plotext


def _byte_ticks(plot: Any, low: float, high: float, width: int) -> None:
    """Powers of two, as many as there is room for."""
    step = max(1, math.ceil((high - low) / max(2, width // 14)))
    whole = range(math.ceil(low), math.floor(high) + 1, step)
    ticks: list[float] = [*whole] or [low]
    plot.xticks(ticks, [bytes_text(2**tick) for tick in ticks])


def _cycled(count: int) -> list[str]:
    return [_MARKERS[index % len(_MARKERS)] for index in range(count)]


def _text(plot: Any) -> str:
    lines = plot.uncolorize(plot.build()).splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"
