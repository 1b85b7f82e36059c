"""Predicted beside measured, as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lmcache_cli.tune.validate import MOST_DRIFT, Point, Validation
from reports.units import NONE, bytes_text

_TIMES = ("p50", "p90")


def validation_tables(validation: Validation) -> list[RenderableType]:
    """One row per stack, then the verdict."""
    table = point_table()
    for point in validation.points:
        table.add_row(*point_row(point, validation))
    p50, p90 = validation.tolerance.p50, validation.tolerance.p90
    lines = [
        f"{validation.verdict}: hit rates must be exact, p50 within {100 * p50:.0f} %, p90 within"
        f" {100 * p90:.0f} %"
        f" (engine {validation.engine}, {validation.model})"
    ]
    if validation.drift is not None:
        lines.append(drift_text(validation.drift))
    return [table, *(Text(line) for line in lines)]


def point_table(*before: str) -> Table:
    """Without rows; ``before`` are further columns on the left."""
    table = Table(box=None, pad_edge=False, header_style="")
    for name in (*before, "", "cpu", "disk", "n"):
        table.add_column(name, justify="left" if name in (*before, "") else "right")
    for name in ("hit %", "p50 ms", "error", "p90 ms", "error", "ok"):
        table.add_column(name, justify="right")
    table.caption = "predicted / measured"
    table.caption_justify = "left"
    return table


def point_row(point: Point, validation: Validation) -> list[str]:
    """The cells of one stack."""
    sizes = point.stack.sizes
    cells = [point.role]
    cells += [bytes_text(sizes[name]) if name in sizes else NONE for name in ("cpu", "disk")]
    cells += [str(point.requests)]
    cells += [f"{100 * point.predicted_rate:.1f} / {100 * point.measured_rate:.1f}"]
    for name in _TIMES:
        cells += [f"{1e3 * point.predicted[name]:,.0f} / {1e3 * point.measured[name]:,.0f}"]
        cells += [f"{100 * point.error(name):+.0f} %"]
    good = point.hits_exact and point.times_within(validation.tolerance)
    return [*cells, "yes" if good else "no"]


def drift_text(drift: float) -> str:
    """How fast the machine was."""
    far = abs(drift - 1) > MOST_DRIFT
    return (
        f"a reference prefill between the requests took {drift:.2f} times what it took in the probe"
        + ("; the machine was not the same, so times prove nothing: probe anew" if far else "")
    )


def validation_json(validation: Validation) -> dict[str, Any]:
    """``validation`` of ``lmcache.tune/1``."""
    points = [_point_json(point) for point in validation.points]
    chosen = next((p for p in points if p["role"] == "recommended"), points[0])
    return {
        "measured": chosen["measured"],
        "error": chosen["error"],
        "verdict": validation.verdict,
        "tolerance": {"ttft_p50": validation.tolerance.p50, "ttft_p90": validation.tolerance.p90},
        "drift": validation.drift,
        "engine": validation.engine,
        "model": validation.model,
        "points": points,
    }


def _point_json(point: Point) -> dict[str, Any]:
    return {
        "role": point.role,
        "tiers": point.stack.sizes,
        "n": point.requests,
        "failed": point.failed,
        "wrong_hits": point.wrong,
        "predicted": _half(point.predicted_rate, point.predicted_hits, point.predicted),
        "measured": _half(point.measured_rate, point.measured_hits, point.measured),
        "error": {
            "hit_rate": point.predicted_rate - point.measured_rate,
            "ttft_p50": point.error("p50"),
            "ttft_p90": point.error("p90"),
        },
    }


def _half(rate: float, hits: dict[str, int], ttft: dict[str, float]) -> dict[str, Any]:
    times = {name: 1e3 * seconds for name, seconds in ttft.items()}
    return {"hit_rate": rate, "hit_tokens": hits, "ttft_ms": times}
