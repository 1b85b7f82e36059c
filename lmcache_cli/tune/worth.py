"""What a stack is worth: the load that it carries, the cards that the trace takes then, money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf, isfinite

from lmcache_cli.tune.candidates import Goal, StackOutcome
from lmcache_cli.tune.study import Study

_LEAST_LOAD, _MOST_LOAD = 1 / 1024, 64.0
_STEPS = 5
"""Halvings of the bracket of a load, which is a factor of two: 2 % at last."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What one replica with its stack carries, and what the trace takes of them. ``load`` is a
    multiple of the trace's: the highest that was found to keep all bounds on latencies; without
    bounds, what the engine can serve. ``latency`` are seconds by name at that load (empty without
    bounds). ``replicas`` of ``cards`` together serve the trace if each gets its share of it and
    finds as much as one that gets all; both are None where no load keeps the bounds. ``per_hour``
    are dollars for the cards and tiers of all of them, ``per_million`` for a million tokens, in and
    out, of one at that load."""

    load: float
    latency: Mapping[str, float]
    replicas: int | None
    cards: int | None
    per_hour: float | None
    per_million: float | None


def worth(study: Study, outcome: StackOutcome, goal: Goal) -> Worth:
    """Finds what a stack is worth: a run over the arrivals for each load that is tried."""
    load, latency = outcome.capacity, dict[str, float]()
    if goal.slo:
        load, latency = kept_load(study, outcome, goal)
    if not load > 0:
        return Worth(0.0, latency, None, None, None, None)
    replicas = max(1, ceil(1 / load - 1e-9)) if isfinite(load) else 1
    one = study.prices.cards + outcome.cost_per_hour
    priced = study.prices.cards > 0 and isfinite(load)
    per_million = one / (study.millions_per_hour * load) if priced else None
    return Worth(
        load, latency, replicas, replicas * study.cost.devices, replicas * one, per_million
    )


def kept_load(study: Study, outcome: StackOutcome, goal: Goal) -> tuple[float, dict[str, float]]:
    """Returns the highest multiple of the trace's load at which a stack keeps all bounds on
    latencies, as far as it was looked for (a doubling, then bisection), and the latencies there. A
    load that is returned was run; 0 if none keeps them. In a closed loop load is not given from
    outside: it is 1 or 0."""

    def run(load: float) -> dict[str, float]:
        return study.latencies(study.run(outcome.stack, load))

    def keeps(latency: Mapping[str, float]) -> bool:
        return all(latency.get(name, 0.0) <= most for name, most in goal.slo.items())

    low, kept = 1.0, run(1.0)
    if study.clients is not None:
        return (1.0, kept) if keeps(kept) else (0.0, kept)
    if keeps(kept):
        high = 2.0
        while high <= _MOST_LOAD and keeps(found := run(high)):
            low, high, kept = high, 2 * high, found
        if high > _MOST_LOAD:
            return low, kept
    else:
        high = 1.0
        while not keeps(kept):
            low /= 2
            if low < _LEAST_LOAD:
                return 0.0, kept
            high, kept = 2 * low, run(low)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = run(middle)
        if keeps(found):
            low, kept = middle, found
        else:
            high = middle
    return low, kept


def needed_load(outcome: StackOutcome) -> float:
    """Returns how many such replicas the trace takes, not rounded: above 1 it is too much for
    one."""
    return 1 / outcome.capacity if outcome.capacity else inf
