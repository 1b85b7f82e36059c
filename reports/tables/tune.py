"""Shows what ``tune --json`` says, in lines and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.tables.columns import Column, numbers, texts
from reports.units import NONE, bytes_text, number_text

Document = Mapping[str, Any]


def tiers_text(tiers: Mapping[str, int]) -> str:
    """Formats tiers like ``cpu 64 GiB, disk 1 TiB``; ``no tier`` where there are none."""
    return ", ".join(f"{name} {bytes_text(size)}" for name, size in tiers.items()) or "no tier"


def heading(keeps_bounds: bool) -> str:
    """Returns what stands before the sizes of a recommendation."""
    return "Recommended" if keeps_bounds else "No stack keeps every bound; the nearest"


def recommended(document: Document) -> list[str]:
    """Returns the lines of the recommendation, and on what it stands."""
    best, source = document["recommendation"], document["source"]
    bought = {name: size for name, size in best["tiers"].items() if name != "device"}
    lines = [
        f"{heading(best.get('keeps_bounds', True))}: {tiers_text(bought)}",
        f"chunks of {best['chunk_tokens']} tokens, {best['policy']}, {best['placement']}"
        f" · {source['requests']:,} requests, {source['tokens']:,} prompt tokens"
        f" · ceiling {100 * source['ceiling_hit_rate']:.1f} %",
    ]
    if not document.get("validation"):
        lines.append("predicted only: nothing was run")
    return [*lines, *best.get("verdicts", [])]


def front_columns(document: Document) -> list[Column]:
    """Returns the Pareto front's columns, cheapest first; an arrow marks what is recommended."""
    front: Sequence[Document] = document["front"]
    best = document["recommendation"]
    marks = [
        " ".join([*(["→"] * is_recommended(point, best)), *(["today"] * bool(point.get("today")))])
        for point in front
    ]
    columns = [Column("", "", texts(marks), left=True)]
    for tier in ("device", "cpu", "disk", "remote"):
        sizes = [point["tiers"].get(tier) for point in front]
        if any(sizes):
            names = [bytes_text(size) if size else NONE for size in sizes]
            columns.append(Column(tier, "size", texts(names)))
    routers = [str(point.get("routing")) for point in front]
    if len(set(routers)) > 1:
        columns.append(Column("router", "", texts(routers), left=True))
    columns.append(Column("hit", "%", numbers([100 * point["hit_rate"] for point in front])))
    times = {p: [point["ttft_ms"].get(p) for point in front] for p in ("p50", "p90", "p99")}
    shown = [value for values in times.values() for value in values if value]
    unit, scale = ("s", 1e-3) if min(shown, default=0.0) >= 1000 else ("ms", 1.0)
    for name, values in times.items():
        scaled = [None if value is None else value * scale for value in values]
        columns.append(Column(f"TTFT {name}", unit, numbers(scaled)))
    costs = [number_text(point["cost_per_hour"], 4) for point in front]
    columns.append(Column("tiers", "$ per hour", texts(costs)))
    return columns


def is_recommended(point: Document, best: Document) -> bool:
    """Returns whether a point of the front is the recommendation."""
    predicted: Document = best["predicted"]
    return point["tiers"] == best["tiers"] and all(
        point.get(name) == predicted.get(name)
        for name in ("chunk_tokens", "policy", "placement", "admission", "routing", "cost_per_hour")
    )
