"""Curves and the front of a recommendation as plots for a terminal."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from cache_core.curves import Kind
from lmcache_cli.tune.search import Recommendation
from lmcache_cli.tune.study import Study
from reports.plots import Point, curve_plot, front_plot

WIDTH, HEIGHT = 78, 16
_POINTS = 64
_SPAN = 4096
"""The largest size that is shown over the smallest."""


def plots(study: Study, found: Recommendation, width: int = WIDTH) -> list[str]:
    """Miss ratio over size, and TTFT over price; the recommendation is a vertical line. Empty where
    plotext is missing (it is no part of a bare installation), or where there is nothing to see."""
    if find_spec("plotext") is None:
        return []
    whole = sum(found.chosen.stack.sizes.values())
    drawn = [
        curve_plot(_curves(study, found), width, HEIGHT, whole),
        front_plot(_front(found), found.chosen.cost_per_hour, width, HEIGHT),
    ]
    return [text.rstrip("\n") for text in drawn if text]


def _curves(study: Study, found: Recommendation) -> dict[str, list[Point]]:
    """(Bytes, hit rate) of one tier: LRU by prefix and at any position, the policy that did best,
    Belady."""
    chunk = found.chosen.stack.chunk_tokens
    size = study.chunk_bytes(chunk)
    curves = study.curves(chunk)
    largest = max((int(c.capacities[-1]) for c in curves.values() if len(c.capacities)), default=0)
    if largest < 2:
        return {}
    least = max(1, largest // _SPAN)
    at = np.unique(np.geomspace(least, largest, _POINTS).astype(np.int64))

    def points(kind: Kind) -> list[Point]:
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


def _front(found: Recommendation) -> dict[str, list[Point]]:
    """(Price per hour, seconds) of the stacks whose arrivals were run."""
    ran = [outcome for outcome in found.front if outcome.ttft]
    if len({outcome.cost_per_hour for outcome in ran}) < 2:
        return {}
    return {name: [(o.cost_per_hour, o.ttft[name]) for o in ran] for name in ("p50", "p90")}
