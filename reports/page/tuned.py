"""Charts of ``tune --json``: miss-ratio curves, and cost against time to first token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import altair as alt

from reports.page.chart import Chart, Datum, above, linear_or, marks, percent_axis
from reports.tables.columns import Column, percents, texts
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
    points: list[Datum] = []
    ends: list[Datum] = []
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

    def draw(width: int, narrow: bool) -> alt.TopLevelMixin:
        height = 260 if narrow else 320
        scale = alt.Scale(type="log", domainMax=largest, nice=False)
        x = alt.X("size:Q", title="capacity (GiB, logarithmic)", scale=scale)
        x = x.axis(values=decades, format="~g")
        title = "prompt tokens missed (%)"
        y = percent_axis("miss", title)
        hue = alt.Color("hue:N", scale=None)
        lines = marks(points).mark_line(strokeWidth=2, interpolate="step-after", aria=False)
        tips = marks(ends).mark_point(filled=True, size=36, opacity=1)
        names = marks(_apart(ends, height)).mark_text(align="left", dx=10, aria=False)
        layers = [
            lines.encode(
                x=x,
                y=y,
                detail="curve:N",
                strokeDash=alt.StrokeDash("dash:N", scale=None),
                color=hue,
            ),
            tips.encode(x=x, y=y, color=hue, description="say:N"),
            names.encode(
                x=alt.value("width"), y=percent_axis("at", title), text="name:N", color=hue
            ),
        ]
        if 0 < chosen <= largest:
            rule = marks([{"size": chosen}]).mark_rule(color="var(--ink)", strokeDash=[2, 3])
            say = alt.value(f"recommended: {bytes_text(chosen * 2**30)}")
            layers.insert(0, rule.encode(x=x, description=say))
        return alt.layer(*layers).properties(height=height)

    source = document["source"]
    places = [(curve["points"][0], curve["points"][-1]) for curve in curves]
    table = [Column("curve", "", texts(end["name"] for end in ends), left=True)]
    for name, found in zip(("smallest", "largest"), zip(*places, strict=True), strict=True):
        sizes = texts(bytes_text(point["capacity_bytes"]) for point in found)
        missed = percents(1 - point["hit_rate"] for point in found)
        table += [Column(name, "size", sizes), Column("missed", "%", missed)]
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
    stacks: list[Datum] = []
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

    def draw(width: int, narrow: bool) -> alt.TopLevelMixin:
        x = alt.X("cost:Q", title="cost of tiers ($ per hour)", scale=linear_or(False))
        x = x.axis(tickCount=4 if narrow else 8, format="~g")
        axis = alt.Axis(tickCount=5, **above(-26, -10, "left"))
        y = partial(alt.Y, title=f"TTFT ({unit})", scale=linear_or(log), axis=axis)
        hue = alt.when("datum.chosen").then(alt.value("var(--best)"))
        base = marks(stacks).encode(x=x, y=y("p50:Q"), color=hue.otherwise(alt.value("var(--cpu)")))
        reach = base.mark_rule(opacity=0.4, strokeWidth=2, aria=False).encode(y2="p90")
        dots = base.mark_point(filled=True, opacity=1, size=80).encode(description="say:N")
        names = [
            marks([stack])
            .mark_text(
                align="right" if left else "left",
                aria=False,
                dx=6 if left else -6,
                dy=-11,
                fontWeight="bold",
                color="var(--best)",
            )
            .encode(x=x, y=y("p90:Q"), text="name:N")
            for stack in stacks
            if stack["chosen"]
            for left in [stack["cost"] > right / 2]  # on the side where there is space
        ]
        return alt.layer(reach, dots, *names).properties(
            height=240 if narrow else 300,
            padding={"left": 4, "right": 20, "top": 8, "bottom": 4},
        )

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


def _apart(ends: Sequence[Datum], height: int) -> list[Datum]:
    """Returns the ends with a place for each label (``at``, in per cent), none upon another."""
    least = 100 * _LINE_PX / height
    placed: list[Datum] = []
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
