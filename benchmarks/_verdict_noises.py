"""The noises of ``verdicts.py``: of both sides of a check, of a side that is slower at times, and
of a history. Values are logarithms of times; the last axis is rounds, days or runs, any before it
are trials. Rows with a star can't be held: docs/check.md says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = tuple[int, ...]
Generator = np.random.Generator
OneSide = Callable[[Generator, Shape], Array]
Noise = Callable[[Generator, Shape], tuple[Array, Array]]
"""Draws both sides, which are equal but for chance."""
Slower = Callable[[Generator, Shape], list[tuple[Array, Array, float]]]
"""Draws both sides of each rule that judges them, with its limit; the second is slower at times."""


@dataclass(frozen=True)
class Own:
    """Noise of each side's own."""

    draw: OneSide

    def __call__(self, rng: Generator, shape: Shape) -> tuple[Array, Array]:
        return self.draw(rng, shape), self.draw(rng, shape)


def normal(sd: float) -> OneSide:
    """Independent, as the method assumes."""
    return lambda rng, shape: rng.normal(0, sd, shape)


def sticky(rho: float, sd: float, beside: float = 0.0) -> OneSide:
    """AR(1) of standard deviation ``sd``: each round takes over ``rho`` of the one before; with
    independent noise ``beside`` it."""

    def draw(rng: Generator, shape: Shape) -> Array:
        found: Array = rng.normal(0, sd, shape)
        for i in range(1, shape[-1]):
            found[..., i] = rho * found[..., i - 1] + math.sqrt(1 - rho**2) * found[..., i]
        return found + rng.normal(0, beside, shape) if beside else found

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


def one_slow(gap: float, sd: float, among: int) -> OneSide:
    """One round in each ``among`` is slower by ``gap``."""

    def draw(rng: Generator, shape: Shape) -> Array:
        found: Array = rng.normal(0, sd, shape)
        flat = found.reshape(-1, shape[-1])
        for start in range(0, shape[-1], among):
            at = rng.integers(start, start + among, flat.shape[0])
            here = at < shape[-1]
            flat[np.flatnonzero(here), at[here]] += gap
        return found

    return draw


def lasting_levels(gap: float, sd: float, lasts: int) -> OneSide:
    """Two levels ``gap`` apart, each of which lasts for so many rounds on average."""

    def draw(rng: Generator, shape: Shape) -> Array:
        switches = rng.random(shape) < 1 / lasts
        switches[..., 0] = rng.random(shape[:-1]) < 0.5
        found: Array = rng.normal(0, sd, shape) + gap * (np.cumsum(switches, -1) % 2)
        return found

    return draw


def rounded(sd: float, step: float) -> OneSide:
    """A clock with ticks of ``step`` of the time."""

    def draw(rng: Generator, shape: Shape) -> Array:
        # Where in a tick the typical time falls is chance, and both sides' own.
        phase = rng.uniform(-step / 2, step / 2, (*shape[:-1], 1)) if step > 0.1 else 0.0
        times = np.exp(rng.normal(0, sd, shape)) + phase
        found: Array = np.log(np.maximum(np.round(times / step), 1) * step - phase)
        return found

    return draw


def drift(step: float, felt: float, sd: float) -> Noise:
    """The machine's speed wanders by ``step`` a round; the candidate feels the share ``felt``."""

    def draw(rng: Generator, shape: Shape) -> tuple[Array, Array]:
        walk = np.cumsum(rng.normal(0, step, shape), -1)
        return walk + rng.normal(0, sd, shape), felt * walk + rng.normal(0, sd, shape)

    return draw


def shared_step(rng: Generator, shape: Shape) -> tuple[Array, Array]:
    """Both sides become slower by a half in the middle; noise of 5 %."""
    step = 0.4 * (np.arange(shape[-1]) >= shape[-1] // 2)
    return step + rng.normal(0, 0.05, shape), step + rng.normal(0, 0.05, shape)


def lopsided(rng: Generator, shape: Shape) -> tuple[Array, Array]:
    """The baseline is much slower at times, the candidate much faster; the same in the mean."""
    return rng.exponential(0.08, shape), 0.16 - rng.exponential(0.08, shape)


def loaded(rng: Generator, shape: Shape) -> tuple[Array, Array]:
    """A load comes and goes, lasting for ten rounds; both sides are slowed by up to a half and are
    the noisier for it, each with its own share."""
    load = np.clip(sticky(0.9, 0.25)(rng, shape), 0, None)
    shares = rng.uniform(0.7, 1.0, (2, *shape[:-1], 1))
    noise = rng.normal(0, 1, (2, *shape)) * (0.02 + 0.3 * load)
    middle = shares.mean(0)
    return (
        load * (middle + 0.5 * (shares[0] - middle)) + noise[0],
        load * (middle + 0.5 * (shares[1] - middle)) + noise[1],
    )


def burst(rng: Generator, shape: Shape) -> tuple[Array, Array]:
    """One side's first five rounds are twice as slow; which side is chance."""
    found = rng.normal(0, 0.03, (2, *shape))
    early = math.log(2) * (np.arange(shape[-1]) < 5)
    first = rng.random((*shape[:-1], 1)) < 0.5
    return found[0] + early * first, found[1] + early * ~first


def warming_up(rng: Generator, shape: Shape) -> tuple[Array, Array]:
    """Each side begins slower, by up to 40 %, and comes to its speed within some ten rounds."""
    found = rng.normal(0, 0.03, (2, *shape))
    found += rng.uniform(0, 0.4, (2, *shape[:-1], 1)) * np.exp(-np.arange(shape[-1]) / 10)
    return found[0], found[1]


EACH: list[tuple[str, Noise]] = [
    ("normal 2 %", Own(normal(0.02))),
    ("normal 5 %", Own(normal(0.05))),
    ("normal 10 %", Own(normal(0.10))),
    ("heavy-tailed (t3) 5 %", Own(heavy(0.05))),
    ("Cauchy, 3 %", Own(cauchy(0.03))),
    ("skewed 5 %", Own(skewed(0.05))),
    ("5 %, stalls of +50 % in 1 of 20", Own(two_levels(math.log(1.5), 0.05, 0.05))),
    ("2 %, one of 60 slower by 65 %", Own(one_slow(0.5, 0.02, 60))),
    ("two levels, 15 % apart", Own(two_levels(0.15, 0.02))),
    ("5 % in ticks of 10 %", Own(rounded(0.05, 0.10))),
    ("AR(1) 0.3, 5 %", Own(sticky(0.3, 0.05))),
    ("AR(1) 0.6, 5 %", Own(sticky(0.6, 0.05))),
    ("AR(1) 0.9, 5 %", Own(sticky(0.9, 0.05))),
    ("AR(1) 0.95, 5 %", Own(sticky(0.95, 0.05))),
    ("AR(1) 0.95, 10 %", Own(sticky(0.95, 0.10))),
    ("AR(1) 0.95, 10 %, beside 5 %", Own(sticky(0.95, 0.10, 0.05))),
    ("levels 15 % apart, 10 rounds each", Own(lasting_levels(0.15, 0.02, 10))),
    ("levels 15 % apart, 50 rounds each", Own(lasting_levels(0.15, 0.02, 50))),
    ("levels 15 % apart, 100 rounds each*", Own(lasting_levels(0.15, 0.02, 100))),
    ("shared drift of 5 % a round", drift(0.05, 1.0, 0.05)),
    ("shared step of +50 %", shared_step),
    ("drift of 2 % a round, half felt", drift(0.02, 0.5, 0.02)),
    ("drift of 5 % a round, half felt", drift(0.05, 0.5, 0.02)),
]
SHARED = ("shared", "drift")
"""How those begin that are about sides in turns: stored runs have no part in them."""
ODD: list[tuple[str, Noise]] = [
    ("lopsided: one side slower at times, one faster", lopsided),
    ("a load that each side feels in its own way", loaded),
    ("first five rounds of one side twice as slow", burst),
    ("both warm up, each in its own way", warming_up),
    ("a clock of 10 ms, times of 45 ms", Own(rounded(0.05, 10 / 45))),
]


def _second(noise: Noise, rng: Generator, shape: Shape) -> Array:
    return noise(rng, shape)[1]


HISTORIES: list[tuple[str, OneSide]] = [
    *(
        (name, noise.draw)
        for name, noise in EACH
        if isinstance(noise, Own) and name[:6] != "levels"
    ),
    ("levels 15 % apart, 10 runs each", lasting_levels(0.15, 0.02, 10)),
    ("levels 15 % apart, 20 runs each*", lasting_levels(0.15, 0.02, 20)),
    ("levels 15 % apart, 50 runs each*", lasting_levels(0.15, 0.02, 50)),
    *((f"{n}{'*' * (d is loaded)}", partial(_second, d)) for n, d in ODD),
]
MANY = [
    (f"normal {sd:.0%}, {n} metrics", (sd, n))
    for sd, n in ((0.05, 1), (0.05, 20), (0.05, 60), (0.02, 60))
]


def rounds_slowed(share: float, factor: float) -> Slower:
    """Noise of 3 %, and a share of the candidate's rounds is slower, so all their metrics are."""

    def draw(rng: Generator, shape: Shape) -> list[tuple[Array, Array, float]]:
        hit = math.log(factor) * (rng.random(shape) < share)
        return [(rng.normal(0, 0.03, shape), rng.normal(0, 0.03, shape) + hit, 0.05)]

    return draw


def requests_slowed(share: float, factor: float, requests: int = 16) -> Slower:
    """Noise of 3 % of each round, and of 5 % of each request; a share of the candidate's requests
    is slower. The rules are the default ones."""

    def draw(rng: Generator, shape: Shape) -> list[tuple[Array, Array, float]]:
        sides = []
        for slower in (0.0, math.log(factor)):
            each = rng.normal(0, 0.05, (*shape, requests))
            each += rng.normal(0, 0.03, (*shape, 1))
            each += slower * (rng.random(each.shape) < share)
            sides.append(np.exp(each))
        a, b = sides
        rules: list[tuple[Callable[[Array], Array], float]] = [
            (lambda x: np.percentile(x, 50, axis=-1), 0.05),
            (lambda x: np.mean(x, axis=-1), 0.05),
            (lambda x: np.percentile(x, 90, axis=-1), 0.10),
        ]
        return [(np.log(rule(a)), np.log(rule(b)), limit) for rule, limit in rules]

    return draw


PARTLY: list[tuple[str, Slower]] = [
    ("10 % of rounds x2", rounds_slowed(0.10, 2)),
    ("20 % of rounds x2", rounds_slowed(0.20, 2)),
    ("10 % of rounds x3", rounds_slowed(0.10, 3)),
    ("20 % of rounds x3", rounds_slowed(0.20, 3)),
    ("5 % of rounds x5", rounds_slowed(0.05, 5)),
    ("2 % of rounds x11*", rounds_slowed(0.02, 11)),
    ("5 % of requests x3", requests_slowed(0.05, 3)),
    ("10 % of requests x2", requests_slowed(0.10, 2)),
    ("10 % of requests x3", requests_slowed(0.10, 3)),
]
