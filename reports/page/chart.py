"""A chart: a Vega-Lite specification for a wide and for a narrow page, drawn when the page is made.

Colours are names of the page's style sheet (``var(--cpu)``), so that one drawing serves light, dark
and paper. Nothing is drawn in the reader's browser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import vl_convert

from reports.tables.columns import Column

Spec = dict[str, Any]
WIDE, HALF, NARROW = 760, 368, 344
"""Widths in pixels: of the page's column, of half of it, and of a telephone's."""
_VEGA_LITE = "6.4"
_INK, _QUIET, _RULE = "var(--ink)", "var(--quiet)", "var(--rule)"
_CONFIG: Spec = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "text": {"color": _INK, "fontSize": 12},
    "axis": {
        "labelColor": _QUIET,
        "labelFontSize": 12,
        "titleColor": _QUIET,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": _RULE,
        "domainColor": _RULE,
        "tickColor": _RULE,
        "tickSize": 4,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    },
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the page. ``draw`` makes the specification for a width in pixels, given whether it
    is the narrow one. ``caption`` says what is shown, in which unit and of how many; ``numbers``
    are the same as a table. ``keys`` maps what a colour means to that colour."""

    name: str
    title: str
    caption: str
    draw: Callable[[int, bool], Spec]
    numbers: Sequence[Column]
    keys: Mapping[str, str] | None = None
    half: bool = False

    def svg(self, narrow: bool, number: int) -> str:
        """Draws the chart as SVG, whose identifiers no other drawing of the page has."""
        width = NARROW if narrow else HALF if self.half else WIDE
        spec = self.draw(width, narrow) | {"background": None, "description": self.title}
        spec["config"] = _CONFIG
        spec.setdefault("width", width)
        spec.setdefault("autosize", {"type": "fit-x", "contains": "padding"})
        text = vl_convert.vegalite_to_svg(spec, vl_version=_VEGA_LITE)
        own = f"c{number}{'n' if narrow else 'w'}-"
        text = re.sub(r'(\bid="|url\(#)', rf"\g<1>{own}", text)
        text = re.sub(r' font-family="[^"]*"', "", text)  # the page's own
        text = re.sub(r' (?:d|transform)="[^"]*"', _rounded, text)
        # a picture with parts: it is named by its figure, and its marks name themselves
        return text.replace("<svg ", '<svg role="group" ', 1)


def _rounded(attribute: re.Match[str]) -> str:
    """Cuts numbers to hundredths of a pixel: half of a page's bytes would be digits that nobody
    sees."""
    return re.sub(r"(\d\.\d\d)\d+", r"\1", attribute[0])


def room_for(texts: Iterable[str]) -> float:
    """Returns the pixels that the longest of the texts takes in the widest font that a page may
    fall back on."""
    return 7.3 * max(map(len, texts), default=0)


def above(x: float, y: float, align: str) -> Spec:
    """Returns where the title of a vertical axis stands: above it, in reading direction."""
    return {
        "titleAngle": 0,
        "titleAlign": align,
        "titleAnchor": "end",
        "titleX": x,
        "titleY": y,
        "titleBaseline": "bottom",
    }


def percent_axis(field: str, title: str) -> Spec:
    """Returns the vertical channel of a share, from 0 to 100 %."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"domain": [0, 100]},
        "axis": {"values": [0, 25, 50, 75, 100], **above(-26, -10, "left")},
    }


def row_axis(title: str, narrow: bool) -> Spec | None:
    """Returns the axis for one row per cell: labels at the left, or above each row where there is
    no space."""
    if narrow:
        return {
            "title": title,
            "labels": False,
            "ticks": False,
            "domain": False,
            "grid": False,
            **above(0, -10, "left"),
        }
    return {
        "title": title,
        "ticks": False,
        "domain": False,
        "grid": False,
        "labelPadding": 10,
        "minExtent": room_for([title]) + 10,
        "labelColor": _INK,
        "labelLimit": 320,
        "labelOverlap": False,
        **above(-10, -10, "right"),
    }


def row_layers(rows: Sequence[Spec], layers: Sequence[Spec], narrow: bool) -> list[Spec]:
    """Returns the layers, and in a narrow chart the rows' labels, each above its row."""
    if not narrow:
        return list(layers)
    names = {
        "data": {"values": [{"row": row["row"]} for row in rows]},
        "mark": {"type": "text", "align": "left", "baseline": "middle", "dy": -18, "aria": False},
        "encoding": {
            "x": {"value": 0},
            "y": {"field": "row", "type": "nominal", "sort": None},
            "text": {"field": "row"},
        },
    }
    return [*layers, names]


def beside(rows: Sequence[Spec], field: str, head: str, offset: int = 10) -> list[Spec]:
    """Returns a column of text at the right of the plot, and its heading."""
    place = {"x": {"value": "width"}, "y": {"field": "row", "type": "nominal", "sort": None}}
    mark = {"type": "text", "align": "left", "dx": offset, "aria": False}
    return [
        {
            "data": {"values": list(rows)},
            "mark": {**mark, "baseline": "middle"},
            "encoding": {**place, "text": {"field": field}},
        },
        {
            "data": {"values": [{"head": head}]},
            "mark": {**mark, "baseline": "bottom", "color": _QUIET},
            "encoding": {"x": {"value": "width"}, "y": {"value": -10}, "text": {"field": "head"}},
        },
    ]


def step(narrow: bool) -> Spec:
    """Returns the height of a row for a specification."""
    return {"step": 46 if narrow else 26}
