"""Curves and the front as plots for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from math import log2

import numpy as np
from numpy.typing import NDArray

from lmcache_cli.tune.search import Recommendation
from lmcache_cli.tune.study import Study
from reports.units import bytes_text

WIDTH, HEIGHT = 78, 16
_MARKS = "o.sx+*v"
_POINTS = 64
_SPAN = 4096
"""The largest size that is shown over the smallest."""
_TICKS = 5

Line = tuple[str, Sequence[float], Sequence[float]]
"""A name, x and y."""


def plots(study: Study, found: Recommendation, width: int = WIDTH) -> list[str]:
    """Hit rate over size, and TTFT over price. Empty where plotext is missing (it is no part of a
    bare installation), or where there is nothing to see."""
    if find_spec("plotext") is None:
        return []
    return [text for text in (curve_plot(study, found, width), front_plot(found, width)) if text]


def curve_plot(study: Study, found: Recommendation, width: int = WIDTH) -> str:
    """Hit rate in percent over one tier's size: LRU by prefix and at any position, the policy that
    did best, Belady. The recommendation's size, all tiers together, is a vertical line."""
    chunk = found.chosen.stack.chunk_tokens
    size = study.chunk_bytes(chunk)
    curves = study.curves(chunk)
    largest = max((int(c.capacities[-1]) for c in curves.values() if len(c.capacities)), default=0)
    if largest < 2:
        return ""
    least = max(1, largest // _SPAN)
    at = np.unique(np.geomspace(least, largest, _POINTS).astype(np.int64))
    prefix, anywhere = curves["prefix"], curves["any_position"]
    lines: list[Line] = [("lru", _logs(at * size), _percent(prefix.at(at), study.tokens))]
    if prefix.ceiling < anywhere.ceiling:
        y = _percent(anywhere.at(at), study.tokens)
        lines.append(("lru, any position", _logs(at * size), y))
    others = sorted(found.policy_curves, key=lambda curve: -sum(curve.hit_rates))
    for curve in others[:2]:
        kept = [(c, 100 * r) for c, r in zip(curve.capacities, curve.hit_rates, strict=True)]
        kept = [(c, y) for c, y in kept if c >= least]
        lines.append((curve.policy, [log2(c * size) for c, _ in kept], [y for _, y in kept]))
    whole = sum(found.chosen.stack.sizes.values())
    mark = log2(whole) if least * size <= whole <= largest * size else None
    ticks = np.geomspace(least * size, largest * size, _TICKS).tolist()
    return _drawn(
        f"hit rate, % of prompt tokens, over size (chunks of {chunk} tokens)",
        lines,
        width,
        mark,
        [(log2(nbytes), bytes_text(int(nbytes))) for nbytes in ticks],
    )


def front_plot(found: Recommendation, width: int = WIDTH) -> str:
    """TTFT in seconds over the price per hour, of the stacks whose arrivals were run. The
    recommendation is a vertical line."""
    ran = [outcome for outcome in found.front if outcome.ttft]
    price = [outcome.cost_per_hour for outcome in ran]
    if len(set(price)) < 2:
        return ""
    lines = [(name, price, [outcome.ttft[name] for outcome in ran]) for name in ("p50", "p90")]
    ticks = [(p, f"{p:.3g}") for p in np.linspace(min(price), max(price), _TICKS).tolist()]
    mark = found.chosen.cost_per_hour
    return _drawn("TTFT, s, over the price per hour", lines, width, mark, ticks)


def _logs(values: NDArray[np.int64]) -> list[float]:
    found: list[float] = np.log2(values).tolist()
    return found


def _percent(tokens: NDArray[np.int64], of: int) -> list[float]:
    found: list[float] = (100 * tokens / max(1, of)).tolist()
    return found


def _drawn(
    title: str,
    lines: Sequence[Line],
    width: int,
    mark: float | None,
    ticks: Sequence[tuple[float, str]],
) -> str:
    import plotext

    plotext.clear_figure()  # it has one figure
    plotext.limit_size(False, False)
    plotext.plot_size(width, HEIGHT)
    plotext.theme("clear")
    plotext.title(title)
    for symbol, (name, x, y) in zip(_MARKS, lines, strict=False):
        plotext.plot(list(x), list(y), marker=symbol, label=name)
    plotext.ylim(0, 1.1 * max((max(y) for _, _, y in lines if y), default=1.0) or 1.0)
    if mark is not None:
        plotext.vertical_line(mark)
    plotext.xticks([at for at, _ in ticks], [label for _, label in ticks])
    drawn = plotext.uncolorize(plotext.build()).splitlines()
    return "\n".join(line.rstrip() for line in drawn).rstrip("\n")
