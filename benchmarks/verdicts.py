"""How honest and how strong verdicts are, by simulation: false alarms where nothing changed, and
true slowdowns found, under several kinds of noise. No engine runs; it takes about a minute.

    python benchmarks/verdicts.py [--trials 2000]

Beside check's rounds (default rule and budget: ttft.p50>5%, 60 rounds, a look after each) stand two
usual ways: one run a side against a threshold of 10 %, and Welch's t-test on five runs a side at
5 %. Noise is the coefficient of variation of one side's p50 in one round.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from reports.verdict.judge import judge
from reports.verdict.round import Round
from reports.verdict.rule import parse_rule

BUDGET = 60
RUNS = 5
Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int], tuple[Array, Array]]
"""Draws both sides' log-times of so many rounds; both have mean 0."""


def normal(sigma: float) -> Noise:
    """Independent, as the method assumes."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        return rng.normal(0, sigma, n), rng.normal(0, sigma, n)

    return draw


def heavy(sigma: float) -> Noise:
    """Student's t with 3 degrees of freedom, of the same standard deviation: some rounds are far
    out."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        scale = sigma / math.sqrt(3)
        return rng.standard_t(3, n) * scale, rng.standard_t(3, n) * scale

    return draw


def stalls(sigma: float) -> Noise:
    """Every twentieth round, on either side, takes 1.5 times as long."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        a, b = normal(sigma)(rng, n)
        slow = math.log(1.5)
        return a + slow * (rng.random(n) < 0.05), b + slow * (rng.random(n) < 0.05)

    return draw


def drift(sigma: float) -> Noise:
    """The machine's speed wanders by 5 % a round (a random walk), over the independent noise. Sides
    take turns in a random order, so each sees a walk that is half a round ahead or behind."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        walk = np.cumsum(rng.normal(0, 0.05 / math.sqrt(2), 2 * n)).reshape(n, 2)
        first = rng.random(n) < 0.5
        a, b = normal(sigma)(rng, n)
        return a + np.where(first, walk[:, 0], walk[:, 1]), b + np.where(
            first, walk[:, 1], walk[:, 0]
        )

    return draw


NOISES = [
    ("normal 5 %", normal(0.05)),
    ("normal 2 %", normal(0.02)),
    ("normal 10 %", normal(0.10)),
    ("heavy-tailed 5 %", heavy(0.05)),
    ("5 % and stalls", stalls(0.05)),
    ("5 % and drift", drift(0.05)),
]
SLOWDOWNS = (0.0, 0.05, 0.10, 0.20)


def by_check(a: Array, b: Array) -> tuple[str, int]:
    """The verdict of ``lmcache check`` on these rounds, and how many it took."""
    sides = [
        [Round(1000, 0, known={"ttft.p50": float(np.exp(v))}) for v in values] for values in (a, b)
    ]
    found = judge("", sides[0], sides[1], parse_rule("ttft.p50>5%"), paired=True)
    return found.outcome, found.rounds


def by_threshold(a: Array, b: Array) -> bool:
    """One run a side: slower by more than 10 %? Runs of a side follow each other, as in a job of
    before and after."""
    return bool(np.exp(b[RUNS] - a[0]) > 1.10)


def by_welch(a: Array, b: Array) -> bool:
    """Five runs a side, one side after the other: slower at the level of 5 %?"""
    found = stats.ttest_ind(b[RUNS : 2 * RUNS], a[:RUNS], equal_var=False, alternative="greater")
    return bool(found.pvalue < 0.05)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = Table(title=f"{args.trials} trials a row; share of trials")
    for name in ("noise", "true change"):
        table.add_column(name)
    columns = ("check FAIL", "PASS", "undecided", "rounds p50", "p90", "threshold", "Welch")
    for name in columns:
        table.add_column(name, justify="right")
    previous = ""
    for (name, noise), slowdown in ((n, s) for n in NOISES for s in SLOWDOWNS):
        rng = np.random.default_rng(args.seed)
        outcomes, rounds, threshold, welch = [], [], 0, 0
        for _ in range(args.trials):
            a, b = noise(rng, BUDGET)
            b = b + math.log1p(slowdown)
            outcome, took = by_check(a, b)
            outcomes.append(outcome)
            rounds.append(took)
            threshold += by_threshold(a, b)
            welch += by_welch(a, b)
        counts = [outcomes.count(o) for o in ("FAIL", "PASS", "INCONCLUSIVE")]
        shares = [f"{count / args.trials:.1%}" for count in counts]
        p50, p90 = np.percentile(rounds, [50, 90])
        table.add_row(
            name if name != previous else "",
            f"+{slowdown:.0%}",
            *shares,
            f"{p50:.0f}",
            f"{p90:.0f}",
            f"{threshold / args.trials:.1%}",
            f"{welch / args.trials:.1%}",
        )
        previous = name
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
