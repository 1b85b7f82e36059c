"""How honest and how strong verdicts are, by simulation: false alarms where nothing changed, and
true slowdowns found, under noise of many kinds. No engine runs.

    python benchmarks/verdicts.py [--trials 2000] [--table check|compare|history|metrics] [--odd]

The decisions are the product's own, with its default limits and budget (60 rounds, a look after
each; ten days of six runs a side for ``compare``; 100 runs for ``--history``). Beside them, on the
same series: one run a side against a threshold of 10 %, Welch's t-test at 5 % (one side after the
other), and Apache Otava (``pip install apache-otava``, left out where it is not installed), which
looks for change points and gets the first --others trials; of histories that became slower at most
400 are looked at. Each row goes to stderr as it is made. ``--odd`` takes noises that were thought
of after the rules were made. Exits with 1 if a share that should be small is above 5 %, but in rows
marked with a star, of which docs/check.md says why they can't be held.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))

from _verdict_noises import (
    EACH,
    HISTORIES,
    MANY,
    ODD,
    PARTLY,
    SHARED,
    Noise,
    OneSide,
    Own,
    Slower,
)

from reports.verdict.interval import stored_error
from reports.verdict.judge import LEVEL
from reports.verdict.levels import newest_change
from reports.verdict.looks import SURE_ROUNDS, Looks, decide

ROUNDS, DAYS, RUNS_A_DAY, RUNS = 60, 10, 6, 100
LIMIT, SLOWER = math.log(1.05), math.log(1.10)
MOST = 0.05
Array = NDArray[np.float64]
Outcomes = NDArray[np.int64]
Row = tuple[list[str], list[float]]
"""Texts, and the shares that should be small."""


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
    return float((found.pvalue < LEVEL).mean())


def threshold(a: Array, b: Array) -> float:
    """The share of trials in which one run of ``b`` is 10 % slower than the one before it."""
    return float((b - a > SLOWER).mean())


def by_check(a: Array, b: Array, limit: float = LIMIT, metrics: int = 1) -> Outcomes:
    """Outcomes: 1 FAIL, -1 PASS."""
    return decide(Looks.of(a, b), limit, False, LEVEL / metrics, LEVEL, True).outcome


def by_compare(a: Array, b: Array, limit: float = LIMIT, metrics: int = 1) -> Outcomes:
    """Outcomes of stored runs, a value a run, those of a day next to each other."""
    a, b = (side.reshape(*side.shape[:-1], -1, RUNS_A_DAY).mean(-1) for side in (a, b))
    error, freedom = stored_error(a, b)
    middle = b.mean(-1) - a.mean(-1)
    worse = middle - stats.t.isf(LEVEL / metrics / 2, freedom) * error > limit
    enough = a.shape[-1] * RUNS_A_DAY >= SURE_ROUNDS
    better = enough & (middle + stats.t.isf(LEVEL / 2, freedom) * error < limit)
    outcome: Outcomes = worse.astype(np.int64) - better.astype(np.int64)
    return outcome


def by_history(series: Array) -> float:
    """The share of histories whose newest change is a regression."""
    found = [newest_change(values) for values in series]
    return sum(c is not None and c.after - c.before > LIMIT and not c.seen for c in found) / len(
        series
    )


def shares(outcome: Outcomes) -> list[float]:
    """The shares of FAIL and of PASS."""
    return [float((outcome == 1).mean()), float((outcome == -1).mean())]


def percent(*values: float) -> list[str]:
    """Shares as texts."""
    return ["-" if math.isnan(value) else f"{value:.1%}" for value in values]


def beside(a: Array, b: Array, others: int) -> list[list[float]]:
    """What the others say of equal sides, and of the second 10 % slower."""
    found = []
    for change in (0.0, SLOWER):
        both = np.concatenate([a, b + change], -1)[:others]
        said = [threshold(a[:, -1], b[:, 0] + change), welch(a, b + change), otava(both)]
        found.append(said)
    return [list(pair) for pair in zip(*found, strict=True)]


def judged(name: str, a: Array, b: Array, judge: Callable[..., Outcomes], others: int) -> Row:
    """A row on equal sides, and on the second 10 % slower."""
    found = [*shares(judge(a, b)), *shares(judge(a, b + SLOWER))]
    pairs = [" ".join(f"{text:>6}" for text in percent(*p)) for p in beside(a, b, others)]
    return [name, *percent(*found), *pairs], [found[0], found[3]]


def in_turns(noise: tuple[str, Noise], args: argparse.Namespace) -> Row:
    """Both sides in turns, a value a round."""
    a, b = noise[1](np.random.default_rng(args.seed), (args.trials, ROUNDS))
    return judged(noise[0], a, b, by_check, args.others)


def stored(noise: tuple[str, Noise], args: argparse.Namespace) -> Row:
    """One side after the other: a day's level is of that noise, its runs have 2 % beside."""
    name, draw = noise
    rng = np.random.default_rng(args.seed)
    if isinstance(draw, Own):  # the machine goes on as it is
        levels = draw.draw(rng, (args.trials, 2 * DAYS))
        first, second = levels[:, :DAYS], levels[:, DAYS:]
    else:
        first, second = draw(rng, (args.trials, DAYS))
    shape = (args.trials, DAYS, RUNS_A_DAY)
    a, b = (days[..., None] + rng.normal(0, 0.02, shape) for days in (first, second))
    a, b = (side.reshape(args.trials, -1) for side in (a, b))
    return judged(name.replace("rounds", "days"), a, b, by_compare, args.others)


def slower_at_times(
    noise: tuple[str, Slower], args: argparse.Namespace, judge: Callable[..., Outcomes]
) -> Row:
    """A candidate that is slower at times, under all three default rules."""
    rounds = ROUNDS if judge is by_check else DAYS * RUNS_A_DAY
    rules = noise[1](np.random.default_rng(args.seed), (args.trials, rounds))
    each = [judge(a, b, math.log1p(limit), len(rules)) for a, b, limit in rules]
    outcome = np.where(np.any([o == 1 for o in each], 0), 1, 0)
    outcome = np.where(np.all([o == -1 for o in each], 0), -1, outcome)
    a, b, _ = rules[min(1, len(rules) - 1)]  # the mean
    slower = np.exp(b).mean() / np.exp(a).mean() - 1
    said = [threshold(a[:, -1], b[:, 0]), welch(a, b)]
    said.append(otava(np.concatenate([a, b], -1)[: args.others]))
    found = shares(outcome)
    return [noise[0], f"{slower:+.0%}", *percent(*found, *said)], [found[1]]


def over_time(noise: tuple[str, OneSide], args: argparse.Namespace) -> Row:
    """A history as it is, with a slowdown in its last 20 runs, and with one that was taken back."""
    found: list[float] = []
    said: list[list[float]] = []
    for start, end in ((0, 0), (RUNS - 20, RUNS), (RUNS - 40, RUNS - 20)):
        trials = min(args.trials, 400) if end == RUNS else args.trials
        series = noise[1](np.random.default_rng(args.seed), (trials, RUNS))
        series[:, start:end] += SLOWER
        found.append(by_history(series))
        last, others = threshold(series[:, -2], series[:, -1]), series[: args.others]
        said.append([last, welch(series[:, :-10], series[:, -10:]), otava(others)])
    texts = [" ".join(f"{t:>6}" for t in percent(*each)) for each in zip(*said, strict=True)]
    return [noise[0], *percent(*found), *texts], [found[0], found[2]]


def many_metrics(noise: tuple[str, tuple[float, int]], args: argparse.Namespace) -> Row:
    """Unchanged code under many metrics at once."""
    sd, metrics = noise[1]
    outcomes = []
    for start in range(0, args.trials, 100):
        rng = np.random.default_rng([args.seed, start])
        a, b = rng.normal(0, sd, (2, min(100, args.trials - start), metrics, ROUNDS))
        outcomes.append(by_check(a, b, LIMIT, metrics))
    outcome = np.concatenate(outcomes)
    passed, failed = (outcome == -1).all(-1).mean(), (outcome == 1).any(-1).mean()
    return [noise[0], *percent(passed, failed)], [float(failed)]


_SAID = ("threshold", "Welch", "Otava")
_PAIR = ("equal: FAIL", "PASS", "+10 %: FAIL", "PASS", *_SAID)
_PARTLY = ("in the mean", "FAIL", "PASS", *_SAID)
_TIME = ("equal: FAIL", "+10 % since 20: FAIL", "taken back: FAIL", *_SAID)
_STORED = [(name, noise) for name, noise in EACH if not name.startswith(SHARED)]
Part = tuple[str, Callable[..., Row], Sequence[tuple[str, Any]], tuple[str, ...]]
TABLES: dict[str, list[Part]] = {
    "check": [
        (f"check: {ROUNDS} rounds, in turns", in_turns, EACH + ODD, _PAIR),
        ("check: slower at times", partial(slower_at_times, judge=by_check), PARTLY, _PARTLY),
    ],
    "metrics": [("check: nothing changed, many metrics", many_metrics, MANY, ("PASS", "FAIL"))],
    "compare": [
        (f"compare: {DAYS} days of {RUNS_A_DAY} runs a side", stored, _STORED + ODD, _PAIR),
        ("compare: slower at times", partial(slower_at_times, judge=by_compare), PARTLY, _PARTLY),
    ],
    "history": [(f"--history: {RUNS} runs", over_time, HISTORIES, _TIME)],
}


def row_of(place: tuple[str, int, int], args: argparse.Namespace) -> Row:
    """The row at a place: table, part, noise. (A noise is a function, and can't be sent.)"""
    name, part, number = place
    _, row, noises, _ = TABLES[name][part]
    return row(noises[number], args)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--others", type=int, default=200, help="trials of Otava")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", choices=TABLES, help="this table only")
    parser.add_argument("--odd", action="store_true", help="the noises of afterthought only")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    beyond = []
    odd = {name for name, _ in ODD}
    with ProcessPoolExecutor(args.jobs, get_context("fork")) as pool:
        for name, part in ((n, i) for n in TABLES for i in range(len(TABLES[n]))):
            title, _, noises, columns = TABLES[name][part]
            chosen = [
                (name, part, i)
                for i, n in enumerate(noises)
                if (n[0].rstrip("*") in odd) == args.odd
            ]
            if args.table not in (None, name):
                continue
            table = Table(title=f"{title}, {args.trials} trials a row", title_justify="left")
            for i, column in enumerate(("noise", *columns)):
                table.add_column(column, justify="right" if i else "left")
            for texts, small in pool.map(partial(row_of, args=args), chosen):
                table.add_row(*texts)
                print(*texts, sep=" | ", file=sys.stderr, flush=True)
                if max(small) > MOST and not texts[0].endswith("*"):
                    beyond.append(f"{title}: {texts[0]}")
            if chosen:
                Console(width=160).print(table)
    print(*(f"above {MOST:.0%}: {name}" for name in beyond), sep="\n")
    sys.exit(1 if beyond else 0)


if __name__ == "__main__":
    main()
