"""A chart: a Vega-Lite specification for a wide and for a narrow page, drawn when the page is made.

Colours are names of the page's style sheet (``var(--cpu)``), so that one drawing serves light, dark
and paper. Nothing is drawn in the reader's browser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import vl_convert

from reports.tables.columns import Column

Datum = dict[str, Any]
"""What a mark shows, by field."""
WIDE, HALF, NARROW = 760, 368, 344
"""Widths in pixels: of the page's column, of half of it, and of a telephone's."""
_VEGA_LITE = "6.4"
_INK, _QUIET, _RULE = "var(--ink)", "var(--quiet)", "var(--rule)"
_CONFIG = {
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
    draw: Callable[[int, bool], alt.TopLevelMixin]
    numbers: Sequence[Column]
    keys: Mapping[str, str] | None = None
    half: bool = False

    def svg(self, narrow: bool, number: int) -> str:
        """Draws the chart as SVG, whose identifiers no other drawing of the page has."""
        width = NARROW if narrow else HALF if self.half else WIDE
        spec = self.draw(width, narrow).to_dict()
        spec |= {"background": None, "description": self.title, "config": _CONFIG, "width": width}
        spec.setdefault("padding", {"left": 4, "right": 12, "top": 8, "bottom": 4})
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
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


def above(x: float, y: float, align: Literal["left", "right"]) -> dict[str, Any]:
    """Returns where the title of a vertical axis stands: above it, in reading direction."""
    where = {"titleAlign": align, "titleX": x, "titleY": y}
    return {"titleAngle": 0, "titleAnchor": "end", "titleBaseline": "bottom", **where}


def marks(rows: Iterable[Datum]) -> alt.Chart:
    """Returns a chart of the rows that has no mark yet."""
    return alt.Chart(alt.Data(values=list(rows)))


def linear_or(log: bool) -> alt.Scale:
    """Returns a logarithmic scale, or one from zero on."""
    return alt.Scale(type="log") if log else alt.Scale(zero=True, nice=True)


def percent_axis(field: str, title: str) -> alt.Y:
    """Returns the vertical channel of a share, from 0 to 100 %."""
    axis = alt.Axis(values=[0, 25, 50, 75, 100], **above(-26, -10, "left"))
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, 100]), axis=axis)


def row_axis(title: str, narrow: bool) -> alt.Y:
    """Returns the vertical channel for one row per cell: labels at the left, or above each row
    where there is no space."""
    plain = {"title": title, "ticks": False, "domain": False, "grid": False}
    if narrow:
        axis = alt.Axis(**plain, labels=False, **above(0, -10, "left"))
    else:
        axis = alt.Axis(
            **plain,
            labelPadding=10,
            minExtent=room_for([title]) + 10,
            labelColor=_INK,
            labelLimit=320,
            labelOverlap=False,
            **above(-10, -10, "right"),
        )
    return alt.Y("row:N", sort=None, axis=axis)


_ROW = alt.Y("row:N", sort=None)


def row_layers(rows: Sequence[Datum], layers: Sequence[alt.Chart], narrow: bool) -> alt.LayerChart:
    """Returns the layers, and in a narrow chart the rows' labels, each above its row."""
    if narrow:
        names = marks({"row": row["row"]} for row in rows).mark_text(
            align="left", baseline="middle", dy=-18, aria=False
        )
        layers = [*layers, names.encode(x=alt.value(0), y=_ROW, text="row:N")]
    return alt.layer(*layers).properties(height=alt.Step(46 if narrow else 26))


def beside(rows: Sequence[Datum], field: str, head: str, offset: int = 10) -> list[alt.Chart]:
    """Returns a column of text at the right of the plot, and its heading."""
    right = alt.value("width")
    cells = marks(rows).mark_text(align="left", dx=offset, aria=False, baseline="middle")
    title = marks([{"head": head}]).mark_text(
        align="left", dx=offset, aria=False, baseline="bottom", color=_QUIET
    )
    return [
        cells.encode(x=right, y=_ROW, text=f"{field}:N"),
        title.encode(x=right, y=alt.value(-10), text="head:N"),
    ]
