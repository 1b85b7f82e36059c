"""From a trace to a recommendation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lmcache_cli.tune.candidates import (
    Goal,
    Marginal,
    Outcome,
    broken,
    front,
    marginals,
    recommend,
    stacks,
)
from lmcache_cli.tune.study import Study

_QUEUED = 8
"""Stacks whose arrivals are run: those of the front, evenly spaced."""
_POINTS = 10


@dataclass(frozen=True, slots=True)
class Recommendation:
    """``none`` is no cache at all, ``ceiling`` the hit rate without a bound. ``rejected`` are
    stacks of the front that lost, each with why; ``verdicts`` what a person should know."""

    chosen: Outcome
    none: Outcome
    front: tuple[Outcome, ...]
    marginals: tuple[Marginal, ...]
    rejected: tuple[tuple[Outcome, str], ...]
    binding: str | None
    ceiling: float
    verdicts: tuple[str, ...] = field(default_factory=tuple)


def sizes_to_try(study: Study, chunk_tokens: int, largest: int) -> list[int]:
    """0, and sizes by powers of two up to where the curve has nothing more to give, or ``largest``
    bytes."""
    curve = study.curves(chunk_tokens)["prefix"]
    size = study.chunk_bytes(chunk_tokens)
    full = curve.capacity_for(curve.ceiling) if curve.ceiling > 0 else 0
    most = min(largest, max(1, full or 0) * size)
    found, room = [0], most
    while room >= size and len(found) < _POINTS:
        found.append(room)
        room //= 2
    return sorted(found)


def search(
    study: Study,
    goal: Goal,
    chunks: Sequence[int],
    worth: float,
    on_step: Callable[[str], None] = lambda text: None,
) -> Recommendation:
    """Judges every combination, runs the arrivals of the best, and recommends. ``worth``: seconds
    of mean TTFT that a dollar an hour must buy where no TTFT is asked for."""
    outcomes: list[Outcome] = []
    for chunk in chunks:
        on_step(f"counting hits in chunks of {chunk} tokens")
        sizes = {name: sizes_to_try(study, chunk, goal.largest[name]) for name in ("cpu", "disk")}
        outcomes += [
            study.judge(stack)
            for stack in stacks(sizes, [chunk], ("write_on_insertion", "write_on_eviction"))
        ]
    none = study.queued(next(o for o in outcomes if not o.stack.tiers))
    line = front(o for o in outcomes if not broken(o, goal)) or front(outcomes)
    picked = [o for o in _spread(line, _QUEUED) if o.stack.tiers]
    ran = [none]
    for number, outcome in enumerate(picked):
        on_step(f"running arrivals, {number + 1} of {len(picked)}")
        ran.append(study.queued(outcome))
    chosen = recommend(ran, goal, worth)
    rejected = [
        (o, ", ".join(broken(o, goal)) or "costs more for less than it is worth")
        for o in ran
        if o is not chosen
    ]
    bound = broken(chosen, goal)
    return Recommendation(
        chosen,
        none,
        tuple(sorted(ran, key=lambda o: o.cost_per_hour)),
        tuple(marginals(chosen, study.judge)),
        tuple(rejected),
        bound[0] if bound else _binding(chosen, outcomes, goal),
        max(study.ceiling(chunk) for chunk in chunks),
        tuple(_verdicts(study, chosen, none, goal, chunks)),
    )


def _spread(line: Sequence[Outcome], count: int) -> list[Outcome]:
    if len(line) <= count:
        return list(line)
    return [line[round(i * (len(line) - 1) / (count - 1))] for i in range(count)]


def _binding(chosen: Outcome, outcomes: Sequence[Outcome], goal: Goal) -> str | None:
    """The first bound that a faster stack breaks."""
    for outcome in sorted(outcomes, key=lambda o: o.idle_s):
        if outcome.idle_s < chosen.idle_s and (why := broken(outcome, goal)):
            return why[0]
    return None


def _verdicts(
    study: Study, chosen: Outcome, none: Outcome, goal: Goal, chunks: Sequence[int]
) -> list[str]:
    found = []
    ceiling = max(study.ceiling(chunk) for chunk in chunks)
    gain = 1 - chosen.idle_s / none.idle_s
    if not chosen.stack.tiers or gain < 0.02:
        found.append(
            f"caching won't help here: {100 * ceiling:.1f} % of the tokens repeat by prefix, and"
            f" the best stack takes {100 * gain:.1f} % off the mean TTFT"
        )
    for name, _ in chosen.stack.tiers:
        rest = tuple((n, s) for n, s in chosen.stack.tiers if n != name)
        without = study.judge(replace(chosen.stack, tiers=rest))
        if without.idle_s - chosen.idle_s < 0.005 * none.idle_s:
            found.append(f"the {name} tier buys nothing: without it the mean TTFT is the same")
    if why := broken(chosen, goal):
        found.append(f"no stack keeps every bound; this one breaks {', '.join(why)}")
    cost = study.cost
    tokens = max(1, study.tokens // max(1, len(study.arrays)))
    even = cost.break_even(tokens)
    for name, _ in chosen.stack.tiers:
        rate = cost.tiers[name].bytes_per_s
        verb = "loading beats" if rate > even else "computing beats"
        other = "computing" if rate > even else "loading"
        found.append(
            f"{name}: {verb} {other} at {rate / 1e9:.3g} GB/s (break-even"
            f" {even / 1e9:.3g} GB/s for {tokens} tokens)"
        )
    return found
