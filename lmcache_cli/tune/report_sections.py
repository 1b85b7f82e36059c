"""Parts of a recommendation's report: predicted beside measured, plots for a terminal,
configuration to paste."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cache_core.sizing.curves import Kind
from lmcache_cli.tune.candidates import GIB, TierConfiguration
from lmcache_cli.tune.cost import RequestCost
from lmcache_cli.tune.search import Recommendation, replayed
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.validate import Tolerance, Validation, ValidationPoint
from reports.units import NONE, bytes_text

_TIMES = ("p50", "p90")


def validation_tables(validation: Validation) -> list[RenderableType]:
    """Returns a table with one row per stack, then the verdict."""
    table = point_table({"": validation})
    p50, p90 = validation.tolerance.p50, validation.tolerance.p90
    points = 100 * validation.tolerance.hits
    hits = f"within {points:g} point of all tokens in each tier" if points else "exact"
    lines = [
        f"{validation.verdict}: hits must be {hits}, p50 within {100 * p50:.0f} %, p90 within"
        f" {100 * p90:.0f} %"
        f" (engine {validation.engine}, {validation.model})"
    ]
    if validation.drift is not None:
        lines.append(drift_text(validation))
    return [table, *(Text(line) for line in lines)]


def point_table(validations: Mapping[str, Validation]) -> Table:
    """Makes the table of predictions and measurements, a row per stack, by the name of what was
    served; a single empty name has no column."""
    points = [point for validation in validations.values() for point in validation.points]
    tiers = [t for t in ("device", "cpu", "disk") if any(t in p.stack.sizes for p in points)]
    named = [] if [*validations] == [""] else ["workload"]
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 1, 0, 0))
    for name in (*named, ""):
        table.add_column(name)
    for name in (*tiers, "hit %", "p50 ms", "off", "p90 ms", "off", "ok"):
        table.add_column(name, justify="right")
    table.caption = f"predicted / measured, n = {points[0].requests}"
    table.caption_justify = "left"
    for name, validation in validations.items():
        for point in validation.points:
            table.add_row(*[name] * len(named), *_point_row(point, validation.tolerance, tiers))
    return table


def _point_row(point: ValidationPoint, tolerance: Tolerance, tiers: Sequence[str]) -> list[str]:
    sizes = point.stack.sizes
    cells = [point.role]
    cells += [bytes_text(sizes[name]) if name in sizes else NONE for name in tiers]
    cells += [f"{100 * point.predicted_rate:.1f} / {100 * point.measured_rate:.1f}"]
    for name in _TIMES:
        cells += [f"{1e3 * point.predicted[name]:,.0f} / {1e3 * point.measured[name]:,.0f}"]
        cells += [f"{100 * point.error(name):+.0f} %"]
    good = point.hits_within(tolerance) and point.times_within(tolerance)
    return [*cells, "yes" if good else "no"]


def drift_text(validation: Validation) -> str:
    """Says how fast the machine was compared with the probe, if that is known."""
    if validation.drift is None:
        return ""
    text = "a reference prefill between the requests took"
    text += f" {validation.drift:.2f} times what it took in the probe"
    if validation.drifted and validation.verdict == "confirmed":
        return f"{text}; the machine was not the same, and times held all the same"
    if validation.drifted:
        text += "; the machine was not the same, so times prove nothing: probe anew"
    return text


def validation_json(validation: Validation) -> dict[str, Any]:
    """Returns the field ``validation`` of ``lmcache.tune/1``."""
    points = [_point_json(point) for point in validation.points]
    chosen = next((p for p in points if p["role"] == "recommended"), points[0])
    return {
        "measured": chosen["measured"],
        "error": chosen["error"],
        "verdict": validation.verdict,
        "tolerance": {
            "ttft_p50": validation.tolerance.p50,
            "ttft_p90": validation.tolerance.p90,
            "hit_rate": validation.tolerance.hits,
        },
        "drift": validation.drift,
        "engine": validation.engine,
        "model": validation.model,
        "points": points,
    }


def _point_json(point: ValidationPoint) -> dict[str, Any]:
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


WIDTH, HEIGHT = 78, 16


_POINTS = 64


_SPAN = 4096
"""The ratio of the largest size that is shown to the smallest."""


def plots(study: Study, found: Recommendation, width: int = WIDTH) -> list[str]:
    """Draws the miss ratio over size, and TTFT over price; the recommendation is a vertical line.
    Empty where plotext is missing (it is no part of a bare installation), or where there is nothing
    to see."""
    if find_spec("plotext") is None:
        return []
    whole = sum(found.chosen.stack.bought.values())
    drawn = [
        curve_plot(_curves(study, found), width, HEIGHT, whole),
        front_plot(_front(found), found.chosen.cost_per_hour, width, HEIGHT),
    ]
    return [text.rstrip("\n") for text in drawn if text]


def _curves(study: Study, found: Recommendation) -> dict[str, list[PlotPoint]]:
    """Returns (bytes, hit rate) of one tier by curve: LRU by prefix and at any position, the policy
    that did best, Belady."""
    chunk = found.chosen.stack.chunk_tokens
    if study.cost.groups(chunk):
        return {"lru": replayed(study, chunk)}
    size = study.cost.chunk_bytes(chunk)
    curves = study.curves(chunk)
    largest = max((int(c.capacities[-1]) for c in curves.values() if len(c.capacities)), default=0)
    if largest < 2:
        return {}
    least = max(1, largest // _SPAN)
    at = np.unique(np.geomspace(least, largest, _POINTS).astype(np.int64))

    def points(kind: Kind) -> list[PlotPoint]:
        rates = curves[kind].at(at) / max(1, study.tokens)
        return list(zip((at * size).tolist(), rates.tolist(), strict=True))

    lines = {"lru": points("prefix")}
    if curves["prefix"].ceiling < curves["any_position"].ceiling:
        lines["lru, any position"] = points("any_position")
    others = sorted(found.policy_curves, key=lambda curve: -sum(curve.hit_rates))
    for curve in others[:2]:
        kept = zip(curve.capacities, curve.hit_rates, strict=True)
        lines[curve.policy] = [(c * size, rate) for c, rate in kept if c >= least]
    return lines


def _front(found: Recommendation) -> dict[str, list[PlotPoint]]:
    """Returns (price per hour, seconds) by percentile of the stacks whose arrivals were run."""
    if len({outcome.cost_per_hour for outcome in found.front}) < 2:
        return {}
    return {
        name: [(o.cost_per_hour, o.latency[f"ttft.{name}"]) for o in found.front]
        for name in ("p50", "p90")
    }


def snippets(stack: TierConfiguration, cost: RequestCost) -> dict[str, str]:
    """Returns settings for our connector, vLLM's native offloading, LMCache and SGLang's HiCache,
    by name, of one replica on the cards of ``cost``. Sizes are as each counts them: vLLM's for all
    ranks together, the others' for each. Where another system has not the policy, placement or
    admission that was predicted, its name says so. Empty where nothing is bought. Of MLA, ours and
    LMCache's alone: LMCache's first rank stores for all, each of ours has a copy, which its name
    says, and room for all of it. A pool is a server to be named, ``POOL``, and no part of vLLM's
    offloading or HiCache."""
    sizes = stack.bought
    if not sizes:
        return {}
    lacks = "" if stack.plain else " (LRU alone, so what is predicted here does not hold for it)"
    cpu, disk, pool = (sizes.get(name, 0) for name in ("cpu", "disk", "remote"))
    own = cost.stages if cost.latent else cost.cards  # every rank of a stage has the same of MLA
    rank_cpu, rank_disk = -(-cpu // own), -(-disk // own)
    flags = ("--tensor-parallel-size", cost.devices), ("--pipeline-parallel-size", cost.stages)
    parallel = "".join(f"{flag} {count} " for flag, count in flags if count > 1)
    ours: dict[str, object] = {"chunk_tokens": stack.chunk_tokens, "policy": stack.policy}
    ours |= {"placement": stack.placement, "cpu_size": rank_cpu}
    if disk:
        ours |= {"disk_size": rank_disk, "disk_path": "/var/cache/lmcache"}
    if pool:
        ours["remote"] = _POOL
    transfer = {
        "kv_connector": "TieredKVConnector",
        "kv_connector_module_path": "cache_core.adapters.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": ours,
    }
    copies = ""
    if cost.latent and cost.devices > 1:
        copies = f" (each of {cost.devices} ranks keeps a copy of MLA's KV, so tiers take"
        copies += f" {cost.devices} times what is predicted here)"
    ours_text = f"{parallel}--kv-transfer-config '{json.dumps(transfer)}'"
    found = {f"this connector in vLLM{copies}": ours_text}
    if cpu and not cost.latent and not pool:
        native = {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"cpu_bytes_to_use": cpu},
        }
        config = f"--kv-transfer-config '{json.dumps(native)}'"
        found[f"vLLM's native offloading{lacks}"] = parallel + config
        found[f"SGLang HiCache{lacks}"] = (
            (f"--tp-size {cost.devices} " if cost.devices > 1 else "")
            + (f"--pp-size {cost.stages} " if cost.stages > 1 else "")
            + f"--enable-hierarchical-cache --hicache-size {math.ceil(rank_cpu / 1e9)}"
            " --hicache-write-policy write_through"
        )
    lines = [f"chunk_size: {stack.chunk_tokens}", f"local_cpu: {'true' if cpu else 'false'}"]
    lines += [f"max_local_cpu_size: {_gib_up(rank_cpu)}"]
    if disk:
        lines += ["local_disk: file:///var/cache/lmcache"]
        lines += [f"max_local_disk_size: {_gib_up(rank_disk)}"]
    if pool:
        lines += [f"remote_url: {_POOL}", "remote_serde: naive"]
    found[f"LMCache (YAML){lacks}"] = "\n".join(lines)
    return found


_POOL = "redis://POOL:6379"


def _gib_up(size: int) -> str:
    """Formats a size in GiB, never less than asked for."""
    return f"{math.ceil(size / GIB * 10) / 10:.1f}"


PlotPoint = tuple[float, float]


_MARKERS = ("●", "▲", "■", "◆", "+", "x", "o", "*")
"""The markers of curves, one each: shapes tell them apart where there is no colour."""


_LEAST_COLUMNS, _LEAST_LINES = 40, 8


def curve_plot(
    curves: Mapping[str, Sequence[PlotPoint]],
    width: int = 80,
    height: int = 18,
    marked: float = 0.0,
) -> str:
    """Draws miss-ratio curves. ``curves`` maps a name to points of (capacity in bytes, hit rate
    from 0 to 1); capacities are drawn on a logarithmic axis, those of 0 left out. ``marked`` is a
    capacity in bytes at which a vertical line stands, 0 for none. ``width`` and ``height`` are in
    characters.

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
    series: Mapping[str, Sequence[PlotPoint]],
    marked: float | None = None,
    width: int = 80,
    height: int = 18,
) -> str:
    """Draws a Pareto front. ``series`` maps a name, such as a percentile, to points of (cost per
    hour, TTFT in seconds); ``marked`` is the recommendation's cost, at which a vertical line
    stands. Returns lines of text that end in a newline; empty text if there is nothing to draw."""
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
    """Sets ticks at powers of two, as many as there is space for."""
    step = max(1, math.ceil((high - low) / max(2, width // 14)))
    whole = range(math.ceil(low), math.floor(high) + 1, step)
    ticks: list[float] = [*whole] or [low]
    plot.xticks(ticks, [bytes_text(2**tick) for tick in ticks])


def _cycled(count: int) -> list[str]:
    return [_MARKERS[index % len(_MARKERS)] for index in range(count)]


def _text(plot: Any) -> str:
    lines = plot.uncolorize(plot.build()).splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"
