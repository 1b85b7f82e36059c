"""Charts of ``tune --json``: miss-ratio curves, and cost against time to first token."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from reports.page.chart import Chart, Spec, above, percent_axis
from reports.tables.columns import Column
from reports.tables.tune import Document, front_columns, is_recommended, tiers_text
from reports.units import bytes_text, number_text, places_for

_HUES = ("var(--cpu)", "var(--disk)", "var(--device)", "var(--remote)", "var(--fifth)")
_LINE_PX = 15
"""Pixels between the labels of two curves."""
_DASHES = ([1, 0], [4, 3], [1, 2], [8, 3], [8, 3, 1, 3], [2, 5], [12, 4])
"""A pattern for each policy and kind of hit; the hue is the chunk length's."""
_KINDS = {"prefix": "prefix", "any_position": "any place"}


def miss_ratio_chart(document: Document) -> Chart | None:
    """Charts a curve per chunk length and kind of hit, named at its end."""
    curves = [curve for curve in document["curves"] if curve["points"]]
    curves = [curve for curve in curves if not _as_by_prefix(curve, curves)]
    if not curves:
        return None
    lengths = sorted({curve["chunk_tokens"] for curve in curves})
    points: list[Spec] = []
    ends: list[Spec] = []
    kinds = list(dict.fromkeys((curve["kind"], curve["policy"]) for curve in curves))
    dash_of = {kind: _DASHES[i % len(_DASHES)] for i, kind in enumerate(kinds)}
    for curve in curves:
        name = _curve_name(curve)
        hue = _HUES[lengths.index(curve["chunk_tokens"]) % len(_HUES)]
        kind = curve["kind"]
        for point in curve["points"]:
            points.append(
                {
                    "curve": name,
                    "dash": dash_of[(kind, curve["policy"])],
                    "hue": hue,
                    "size": max(point["capacity_bytes"], 1) / 2**30,
                    "miss": 100 * (1 - point["hit_rate"]),
                }
            )
        last = points[-1]
        say = (
            f"{name}: misses {last['miss']:.1f} % of the prompt tokens with"
            f" {bytes_text(curve['points'][-1]['capacity_bytes'])}"
        )
        ends.append({**last, "name": name, "say": say})
    sizes = document["recommendation"]["tiers"]
    chosen = sum(size for name, size in sizes.items() if name != "device") / 2**30
    largest = max(point["size"] for point in points)
    decades = [10.0**power for power in range(-9, 10)]

    def draw(width: int, narrow: bool) -> Spec:
        height = 260 if narrow else 320
        x = {
            "field": "size",
            "type": "quantitative",
            "title": "capacity (GiB, logarithmic)",
            "scale": {"type": "log", "domainMax": largest, "nice": False},
            "axis": {"values": decades, "format": "~g"},
        }
        y = percent_axis("miss", "prompt tokens missed (%)")
        dash = {"field": "dash", "type": "nominal", "scale": None}
        colour = {"field": "hue", "type": "nominal", "scale": None}
        lines = {
            "data": {"values": points},
            "mark": {"type": "line", "strokeWidth": 2, "interpolate": "step-after", "aria": False},
            "encoding": {
                "x": x,
                "y": y,
                "detail": {"field": "curve"},
                "strokeDash": dash,
                "color": colour,
            },
        }
        tips = {
            "data": {"values": ends},
            "mark": {"type": "point", "filled": True, "size": 36, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "say"}},
        }
        names = {
            "data": {"values": _apart(ends, height)},
            "mark": {"type": "text", "align": "left", "dx": 10, "aria": False},
            "encoding": {
                "x": {"value": "width"},
                "y": y | {"field": "at"},
                "text": {"field": "name"},
                "color": colour,
            },
        }
        layers = [lines, tips, names]
        if 0 < chosen <= largest:
            rule = {
                "data": {"values": [{"size": chosen}]},
                "mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [2, 3]},
                "encoding": {
                    "x": x,
                    "description": {"value": f"recommended: {bytes_text(chosen * 2**30)}"},
                },
            }
            layers.insert(0, rule)
        return {
            "padding": {"left": 4, "right": 12, "top": 8, "bottom": 4},
            "height": height,
            "layer": layers,
        }

    source = document["source"]
    table = [
        Column("curve", "", tuple(Text(end["name"]) for end in ends), left=True),
        Column(
            "smallest",
            "size",
            tuple(Text(bytes_text(c["points"][0]["capacity_bytes"])) for c in curves),
        ),
        Column(
            "missed",
            "%",
            tuple(Text(f"{100 * (1 - c['points'][0]['hit_rate']):.1f}") for c in curves),
        ),
        Column(
            "largest",
            "size",
            tuple(Text(bytes_text(c["points"][-1]["capacity_bytes"])) for c in curves),
        ),
        Column("missed", "%", tuple(Text(f"{end['miss']:.1f}") for end in ends)),
    ]
    return Chart(
        "misses",
        "What a larger cache would still miss",
        "Share of the prompt tokens missed by one tier, in per cent, by capacity in GiB; each line"
        " is a policy and a kind of hit, as named at its end, a number is a chunk's tokens; the"
        f" upright dashed line is what is recommended; n = {source['requests']:,} requests,"
        f" {source['tokens']:,} prompt tokens.",
        draw,
        table,
    )


def front_chart(document: Document) -> Chart | None:
    """Charts what another dollar buys: each stack of the front."""
    front = document["front"]
    if not front:
        return None
    best = document["recommendation"]
    p50 = [point["ttft_ms"]["p50"] for point in front]
    unit, scale = ("s", 1e-3) if min(p50) >= 1000 else ("ms", 1.0)
    places = places_for(value * scale for value in p50)
    stacks: list[Spec] = []
    for point in front:
        chosen = is_recommended(point, best)
        values = {name: point["ttft_ms"][name] * scale for name in ("p50", "p90")}
        stacks.append(
            {
                "cost": point["cost_per_hour"],
                "chosen": chosen,
                **values,
                "name": tiers_text(point["tiers"]),
                "say": f"{tiers_text(point['tiers'])}{' (recommended)' if chosen else ''}: TTFT p50"
                f" {number_text(values['p50'], places)} {unit}, p90"
                f" {number_text(values['p90'], places)} {unit},"
                f" ${point['cost_per_hour']:.4f} an hour, hits {100 * point['hit_rate']:.1f} %",
            }
        )
    log = max(point["p90"] for point in stacks) > 40 * max(min(p50) * scale, 1e-9)
    right = max(point["cost"] for point in stacks)

    def draw(width: int, narrow: bool) -> Spec:
        x = {
            "field": "cost",
            "type": "quantitative",
            "title": "cost of tiers ($ per hour)",
            "scale": {"zero": True, "nice": True},
            "axis": {"tickCount": 4 if narrow else 8, "format": "~g"},
        }
        y = {
            "field": "p50",
            "type": "quantitative",
            "title": f"TTFT ({unit})",
            "scale": {"type": "log"} if log else {"zero": True, "nice": True},
            "axis": {
                "tickCount": 5,
                **above(-26, -10, "left"),
            },
        }
        hue = {
            "condition": {"test": "datum.chosen", "value": "var(--best)"},
            "value": "var(--cpu)",
        }
        reach = {
            "mark": {"type": "rule", "opacity": 0.4, "strokeWidth": 2, "aria": False},
            "encoding": {"x": x, "y": y, "y2": {"field": "p90"}, "color": hue},
        }
        dots = {
            "mark": {"type": "point", "filled": True, "opacity": 1, "size": 80},
            "encoding": {"x": x, "y": y, "color": hue, "description": {"field": "say"}},
        }
        return {
            "padding": {"left": 4, "right": 20, "top": 8, "bottom": 4},
            "height": 240 if narrow else 300,
            "data": {"values": stacks},
            "layer": [reach, dots, *_recommended_label(stacks, right, x, y)],
        }

    return Chart(
        "front",
        "What more storage buys",
        f"Predicted TTFT in {unit}{', logarithmic' if log else ''}, against the cost of DRAM and"
        " disk per hour in dollars, of what you have and of stacks that none beats in both cost and"
        f" {front[0].get('decides', {}).get('by', 'TTFT')}: the dot is p50, its bar reaches to p90;"
        f" n = {document['source']['requests']:,} requests,"
        " predicted and not measured.",
        draw,
        front_columns(document),
        {"stack": "var(--cpu)", "recommended": "var(--best)"},
    )


def _recommended_label(stacks: Sequence[Spec], right: float, x: Spec, y: Spec) -> list[Spec]:
    """Labels the chosen stack's dot with its sizes, on the side where there is space."""
    found = []
    for stack in (stack for stack in stacks if stack["chosen"]):
        left = stack["cost"] > right / 2
        found.append(
            {
                "data": {"values": [stack]},
                "mark": {
                    "type": "text",
                    "align": "right" if left else "left",
                    "aria": False,
                    "dx": 6 if left else -6,
                    "dy": -11,
                    "fontWeight": "bold",
                    "color": "var(--best)",
                },
                "encoding": {"x": x, "y": y | {"field": "p90"}, "text": {"field": "name"}},
            }
        )
    return found


def _curve_name(curve: Document) -> str:
    kind = _KINDS.get(curve["kind"], curve["kind"])
    return f"{curve['chunk_tokens']}, {curve['policy']}, {kind}"


def _as_by_prefix(curve: Document, curves: Sequence[Document]) -> bool:
    """Returns whether a curve of hits at any place is that of hits by prefix: a trace that names
    prefixes does not tell what else is equal."""
    if curve["kind"] != "any_position":
        return False
    same = ("chunk_tokens", "policy", "points")
    return any(
        other["kind"] == "prefix" and all(other[name] == curve[name] for name in same)
        for other in curves
    )


def _apart(ends: Sequence[Spec], height: int) -> list[Spec]:
    """Returns the ends with a place for each label (``at``, in per cent), none upon another."""
    least = 100 * _LINE_PX / height
    placed: list[Spec] = []
    for end in sorted(ends, key=lambda end: float(end["miss"])):
        at = max(end["miss"], placed[-1]["at"] + least) if placed else max(end["miss"], 1.0)
        placed.append({**end, "at": at})
    over = placed[-1]["at"] - 100
    if over > 0:  # pushed out at the top: move down what stands in the way
        bound = 100.0
        for end in reversed(placed):
            end["at"] = min(end["at"], bound)
            bound = end["at"] - least
    return placed
