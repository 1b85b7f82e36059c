"""How honest and how strong verdicts are, by simulation: false alarms where nothing changed, and
true slowdowns found, under noise of many kinds. No engine runs.

    python benchmarks/verdicts.py [--trials 2000] [--table check|compare|history|metrics]

The decisions are the product's own, with its default limit (5 %) and budget (60 rounds, a look
after each; ten days a side for ``compare``; 100 runs for ``--history``). Beside them, on the same
series: one run a side against a threshold of 10 %, Welch's t-test at 5 % (one side after the
other), and Apache Otava (``pip install apache-otava``, left out where it is not installed), which
looks for change points. It takes its time, as histories that changed do: they get the first
--others trials only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from reports.verdict.interval import stored_error
from reports.verdict.judge import LEVEL
from reports.verdict.levels import newest_change
from reports.verdict.looks import Looks, decide

ROUNDS, DAYS, RUNS = 60, 10, 100
LIMIT = math.log(1.05)
Array = NDArray[np.float64]
Shape = tuple[int, ...]
Noise = Callable[[np.random.Generator, Shape], tuple[Array, Array]]
"""Draws both sides' log-times, whose last axis is rounds; both have the same mean."""
OneSide = Callable[[np.random.Generator, Shape], Array]


def each(draw: OneSide) -> Noise:
    """Noise of each side's own."""
    return lambda rng, shape: (draw(rng, shape), draw(rng, shape))


def normal(sd: float) -> OneSide:
    """Independent, as the method assumes."""
    return lambda rng, shape: rng.normal(0, sd, shape)


def sticky(rho: float, sd: float) -> OneSide:
    """AR(1) of standard deviation ``sd``: each round takes over ``rho`` of the one before."""

    def draw(rng: np.random.Generator, shape: Shape) -> Array:
        found: Array = rng.normal(0, sd, shape)
        for i in range(1, shape[-1]):
            found[..., i] = rho * found[..., i - 1] + math.sqrt(1 - rho**2) * found[..., i]
        return found

    return draw


def heavy(sd: float) -> OneSide:
    """Student's t with 3 degrees of freedom: some rounds are far out."""
    return lambda rng, shape: rng.standard_t(3, shape) * (sd / math.sqrt(3))


def cauchy(scale: float) -> OneSide:
    """Without mean or variance."""
    return lambda rng, shape: np.clip(rng.standard_cauchy(shape) * scale, -5, 5)


def skewed(sd: float) -> OneSide:
    """Exponential: never faster than usual, at times much slower."""
    return lambda rng, shape: rng.exponential(sd, shape)


def two_levels(gap: float, sd: float, share: float = 0.5) -> OneSide:
    """A ``share`` of rounds is slower by ``gap``: stalls, or runners of two kinds."""
    return lambda rng, shape: rng.normal(0, sd, shape) + gap * (rng.random(shape) < share)


def rounded(sd: float, step: float) -> OneSide:
    """A clock with ticks of ``step`` of the time."""
    return lambda rng, shape: np.log(
        np.maximum(np.round(np.exp(rng.normal(0, sd, shape)) / step), 1) * step
    )


def drift(step: float, felt: float, sd: float) -> Noise:
    """The machine's speed wanders by ``step`` a round; the candidate feels the share ``felt``."""

    def draw(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
        walk = np.cumsum(rng.normal(0, step, shape), -1)
        return walk + rng.normal(0, sd, shape), felt * walk + rng.normal(0, sd, shape)

    return draw


def shared_step(sd: float) -> Noise:
    """Both sides become slower by a half in the middle."""

    def draw(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
        step = 0.4 * (np.arange(shape[-1]) >= shape[-1] // 2)
        return step + rng.normal(0, sd, shape), step + rng.normal(0, sd, shape)

    return draw


def days(effect: float) -> OneSide:
    """Five runs a day, of 2 % noise; what a day does to all of its runs has ``effect``."""
    return lambda rng, shape: rng.normal(0, math.hypot(effect, 0.02 / math.sqrt(5)), shape)


ALONE: list[tuple[str, OneSide]] = [
    ("normal 2 %", normal(0.02)),
    ("normal 5 %", normal(0.05)),
    ("normal 10 %", normal(0.10)),
    ("heavy-tailed (t3) 5 %", heavy(0.05)),
    ("Cauchy, 3 %", cauchy(0.03)),
    ("skewed 5 %", skewed(0.05)),
    ("5 %, stalls of +50 % in 1 of 20", two_levels(math.log(1.5), 0.05, 0.05)),
    ("two levels, 15 % apart", two_levels(0.15, 0.02)),
    ("5 % in ticks of 10 %", rounded(0.05, 0.10)),
    ("AR(1) 0.3, 5 %", sticky(0.3, 0.05)),
    ("AR(1) 0.6, 5 %", sticky(0.6, 0.05)),
    ("AR(1) 0.9, 5 %", sticky(0.9, 0.05)),
    ("AR(1) 0.95, 5 %", sticky(0.95, 0.05)),
    ("AR(1) 0.95, 10 %", sticky(0.95, 0.10)),
]
SHARED: list[tuple[str, Noise]] = [
    ("shared drift of 5 % a round", drift(0.05, 1.0, 0.05)),
    ("shared step of +50 %", shared_step(0.05)),
    ("drift of 2 % a round, half felt", drift(0.02, 0.5, 0.02)),
    ("drift of 5 % a round, half felt", drift(0.05, 0.5, 0.02)),
]
PARTLY = [(0.1, 2.0), (0.2, 2.0), (0.1, 3.0), (0.2, 3.0), (0.05, 5.0)]
"""Shares of rounds that are so many times as slow."""


def partly(share: float, factor: float) -> Noise:
    """Noise of 3 %, and a share of the candidate's rounds is slower."""

    def draw(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
        hit = math.log(factor) * (rng.random(shape) < share)
        return rng.normal(0, 0.03, shape), rng.normal(0, 0.03, shape) + hit

    return draw


def otava(series: Array) -> float:
    """The share of the series whose newest change point, if there is one, is for the worse by more
    than the limit; nan without Otava."""
    if importlib.util.find_spec("otava") is None:
        return math.nan
    analysis = importlib.import_module("otava.analysis")

    def fails(values: Array) -> bool:
        found, _ = analysis.compute_change_points(np.exp(values).tolist())
        return bool(found) and found[-1].stats.forward_rel_change() > math.expm1(LIMIT)

    return sum(map(fails, series)) / len(series)


def welch(a: Array, b: Array) -> float:
    """The share of trials in which Welch finds the second side slower."""
    found = stats.ttest_ind(b, a, axis=-1, equal_var=False, alternative="greater")
    return float((found.pvalue < 0.05).mean())


def by_check(a: Array, b: Array) -> tuple[list[float], float]:
    """The shares of FAIL and of PASS, and the median of rounds."""
    found = decide(Looks.of(a, b), LIMIT, False, LEVEL, LEVEL, True)
    shares = [float((found.outcome == outcome).mean()) for outcome in (1, -1)]
    return shares, float(np.median(found.at + 1))


def by_compare(a: Array, b: Array) -> list[float]:
    """The shares of FAIL and of PASS of stored runs, a value a day."""
    error, freedom = stored_error(a, b)
    reach = stats.t.isf(LEVEL / 2, freedom) * error
    middle = b.mean(-1) - a.mean(-1)
    return [float((middle - reach > LIMIT).mean()), float((middle + reach < LIMIT).mean())]


def by_history(series: Array) -> float:
    """The share of histories whose newest change is a regression."""
    found = [newest_change(values) for values in series]
    return sum(c is not None and c.after - c.before > LIMIT for c in found) / len(found)


def percent(*shares: float) -> list[str]:
    """Shares as texts."""
    return ["-" if math.isnan(share) else f"{share:.1%}" for share in shares]


def table_of(title: str, *columns: str) -> Table:
    """An empty table."""
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i > 1 else "left")
    return table


def in_turns(args: argparse.Namespace) -> Table:
    """``lmcache check``."""
    title = f"check: {args.trials} trials a row, {ROUNDS} rounds"
    others = ("threshold", "Welch", "Otava")
    table = table_of(title, "noise", "true change", "FAIL", "PASS", "rounds", *others)
    rows = [(name, each(draw)) for name, draw in ALONE] + SHARED
    asked = [(name, noise, change) for name, noise in rows for change in (0.0, 0.10)]
    asked += [(f"{s:.0%} of rounds x{f:g}", partly(s, f), s * (f - 1)) for s, f in PARTLY]
    for name, noise, change in asked:
        a, b = noise(np.random.default_rng(args.seed), (args.trials, ROUNDS))
        if " of rounds x" not in name:
            b = b + math.log1p(change)
        shares, took = by_check(a, b)
        both = np.concatenate([a, b], -1)[: args.others]
        beside = ((b[:, -1] - a[:, 0] > math.log(1.1)).mean(), welch(a, b), otava(both))
        table.add_row(name, f"{change:+.0%}", *percent(*shares), f"{took:.0f}", *percent(*beside))
    return table


def stored(args: argparse.Namespace) -> Table:
    """``lmcache compare``."""
    title = f"compare: {args.trials} trials a row, {DAYS} days a side, one side after the other"
    table = table_of(title, "noise", "true change", "FAIL", "PASS", "threshold", "Welch", "Otava")
    rows = [*ALONE, ("day effect 5 %", days(0.05)), ("day effect 10 %", days(0.10))]
    for name, draw, change in ((n, d, c) for n, d in rows for c in (0.0, 0.10)):
        both = draw(np.random.default_rng(args.seed), (args.trials, 2 * DAYS))
        both[:, DAYS:] += math.log1p(change)
        a, b = both[:, :DAYS], both[:, DAYS:]
        beside = ((b[:, 0] - a[:, -1] > math.log(1.1)).mean(), welch(a, b))
        shares = percent(*by_compare(a, b), *beside, otava(both[: args.others]))
        table.add_row(name, f"{change:+.0%}", *shares)
    return table


def history(args: argparse.Namespace) -> Table:
    """``lmcache compare --history``."""
    title = f"--history: {args.trials} trials a row, {args.others} where there is a change"
    table = table_of(title, "noise", "true change", "FAIL", "threshold", "Welch", "Otava")

    def outlier(rng: np.random.Generator, shape: Shape) -> Array:
        found: Array = rng.normal(0, 0.02, shape)
        found[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] += 0.5
        return found

    rows = [*ALONE, ("2 %, one run 65 % slower", outlier)]
    changes = [("none", 0, 0), ("+10 % in the last 20", RUNS - 20, RUNS)]
    changes.append(("+10 %, reverted 20 ago", RUNS - 40, RUNS - 20))
    for name, draw, (said, start, end) in ((n, d, c) for n, d in rows for c in changes):
        trials = args.others if end else args.trials
        series = draw(np.random.default_rng(args.seed), (trials, RUNS))
        series[:, start:end] += math.log(1.1)
        beside = (
            float((series[:, -1] - series[:, -2] > math.log(1.1)).mean()),
            welch(series[:, :-10], series[:, -10:]),
        )
        shares = percent(by_history(series), *beside, otava(series[: args.others]))
        table.add_row(name, said, *shares)
    return table


def many_metrics(args: argparse.Namespace) -> Table:
    """Unchanged code under many metrics at once."""
    trials = args.trials // 4
    table = table_of(f"check: {trials} trials a row, nothing changed", "noise", "metrics", "PASS")
    table.add_column("FAIL", justify="right")
    for sd, metrics in ((0.05, 1), (0.05, 20), (0.05, 60), (0.02, 60)):
        a, b = each(normal(sd))(np.random.default_rng(args.seed), (trials, metrics, ROUNDS))
        outcome = decide(Looks.of(a, b), LIMIT, False, LEVEL / metrics, LEVEL, True).outcome
        shares = percent((outcome == -1).all(-1).mean(), (outcome == 1).any(-1).mean())
        table.add_row(f"normal {sd:.0%}", str(metrics), *shares)
    return table


TABLES = {"check": in_turns, "metrics": many_metrics, "compare": stored, "history": history}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--others", type=int, default=200, help="trials of Otava")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", choices=TABLES, help="this table only")
    args = parser.parse_args()
    for name, make in TABLES.items():
        if args.table in (None, name):
            Console(width=120).print(make(args))


if __name__ == "__main__":
    main()
