"""Searches for the stack of tiers to recommend for a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lmcache_cli.tune.candidates import (
    Goal,
    Marginal,
    StackOutcome,
    TierConfiguration,
    broken,
    front,
    marginals,
    recommend,
    stacks,
)
from lmcache_cli.tune.load_or_compute import LoadOrCompute, load_or_compute
from lmcache_cli.tune.policies import (
    BELADY,
    Headroom,
    PolicyCurve,
    admitted,
    headroom,
    policy_curves,
    with_best_policy,
)
from lmcache_cli.tune.study import Study, Uncertainty, uncertainty
from reports.units import bytes_text

_QUEUED = 8
"""The most stacks whose arrivals are run: those of the front, evenly spaced."""
_POINTS, _REPLAYED_POINTS = 10, 5
_MOST_GROUPS = 64
_NO_GAIN = 0.02
"""The least share of the mean TTFT that a cache must take off to be of help."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommended stack and what it was chosen from. ``none`` is no cache at all, ``ceiling``
    the hit rate without a bound. ``rejected`` are stacks of the front that lost, each with why;
    ``verdicts`` what a person should know."""

    chosen: StackOutcome
    none: StackOutcome
    front: tuple[StackOutcome, ...]
    marginals: tuple[Marginal, ...]
    rejected: tuple[tuple[StackOutcome, str], ...]
    binding: str | None
    keeps_bounds: bool
    ceiling: float
    verdicts: tuple[str, ...] = field(default_factory=tuple)
    headroom: Headroom | None = None
    """The hit rates of the chosen stack under every policy; None without a tier."""
    policy_curves: tuple[PolicyCurve, ...] = ()
    loads: tuple[LoadOrCompute, ...] = ()
    uncertainty: Uncertainty | None = None


def sizes_to_try(study: Study, chunk_tokens: int, largest: int, tier: str = "cpu") -> list[int]:
    """Returns 0, and sizes by powers of two up to where the curve has nothing more to give, or
    ``largest`` bytes; only those with space for a chunk."""

    def room(nbytes: int) -> int:
        return study.rooms(TierConfiguration(((tier, nbytes),), chunk_tokens))[0]

    size = study.chunk_bytes(chunk_tokens)
    wanted = max(1, study.most_chunks(chunk_tokens))
    # A replay of the Ledger takes longer than a look at a curve.
    points = _POINTS if study.plain(TierConfiguration((), chunk_tokens)) else _REPLAYED_POINTS
    most = wanted * size
    while most < largest and room(most) < wanted:  # a disk tier keeps some for itself
        most += most // 16 + size
    most = min(most, largest)
    found = [0]
    while most and room(most) and len(found) < points:
        found.append(most)
        most //= 2
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
    outcomes: list[StackOutcome] = []
    few = [chunk for chunk in chunks if len(study.groups(chunk)) <= _MOST_GROUPS]
    chunks = few or [max(chunks)]  # short ones cut states into hundreds of chunks each
    for chunk in chunks:
        on_step(f"counting hits in chunks of {chunk} tokens")
        sizes = {
            name: sizes_to_try(study, chunk, goal.largest[name], name) for name in ("cpu", "disk")
        }
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
    if goal.writes_per_day is not None:
        ran += _admitted(study, outcomes, chosen, goal, worth, on_step)
        chosen = recommend(ran, goal, worth)
    room = None
    if chosen.stack.tiers:
        room = headroom(study, chosen.stack, on_step)
        better = with_best_policy(study, chosen, room, goal)
        if better is not chosen:
            ran = [better if o is chosen else o for o in ran]
            chosen = better
    rejected = [
        (o, ", ".join(broken(o, goal)) or "costs more for less than it is worth")
        for o in ran
        if o is not chosen
    ]
    bound = broken(chosen, goal)
    on_step("weighing what was found")
    return Recommendation(
        chosen,
        none,
        tuple(sorted(ran, key=lambda o: o.cost_per_hour)),
        tuple(marginals(chosen, study.judge)),
        tuple(rejected),
        bound[0] if bound else _binding(chosen, outcomes, goal),
        not bound,
        max(study.ceiling(chunk) for chunk in chunks),
        tuple(_verdicts(study, chosen, none, line, goal, chunks, room)),
        room,
        tuple(policy_curves(study, chosen.stack.chunk_tokens, on_step)),
        tuple(load_or_compute(study, chosen)),
        uncertainty(study, chosen.stack),
    )


def _admitted(
    study: Study,
    outcomes: Sequence[StackOutcome],
    chosen: StackOutcome,
    goal: Goal,
    worth: float,
    on_step: Callable[[str], None],
) -> list[StackOutcome]:
    """Returns, where the SSD's endurance binds, the stack that would be bought without that bound,
    under admissions that keep it."""
    free = replace(goal, writes_per_day=None)
    line = front(o for o in outcomes if not broken(o, free)) or front(outcomes)
    wished = recommend([study.queued(o) for o in _spread(line, _QUEUED)], free, worth)
    if wished.stack == chosen.stack or not broken(wished, goal):
        return []
    return admitted(study, wished, goal, on_step)


def _spread(line: Sequence[StackOutcome], count: int) -> list[StackOutcome]:
    if len(line) <= count:
        return list(line)
    return [line[round(i * (len(line) - 1) / (count - 1))] for i in range(count)]


def _binding(chosen: StackOutcome, outcomes: Sequence[StackOutcome], goal: Goal) -> str | None:
    """Returns the first bound that a faster stack breaks."""
    for outcome in sorted(outcomes, key=lambda o: o.idle_s):
        if outcome.idle_s < chosen.idle_s and (why := broken(outcome, goal)):
            return why[0]
    return None


def _verdicts(
    study: Study,
    chosen: StackOutcome,
    none: StackOutcome,
    line: Sequence[StackOutcome],
    goal: Goal,
    chunks: Sequence[int],
    room: Headroom | None,
) -> list[str]:
    """Returns what a person should know about the choice. ``line`` are the best stacks that keep
    the bounds on sizes."""
    found = []
    ceiling = max(study.ceiling(chunk) for chunk in chunks)
    gain = 1 - min(o.idle_s for o in line) / none.idle_s
    could = f"the fastest stack would take {100 * gain:.1f} % off the mean TTFT"
    if 0 in goal.largest.values() and not any(o.stack.tiers for o in line):
        found.append(
            f"--max-cpu and --max-disk leave no room that helps; {100 * ceiling:.1f} % of the"
            " tokens repeat by prefix"
        )
    elif gain < _NO_GAIN:
        found.append(
            f"caching won't help here: {100 * ceiling:.1f} % of the tokens repeat by prefix, and"
            f" {could}"
        )
    elif not chosen.stack.tiers and not broken(chosen, goal):
        reason = (
            "needed: every bound holds without one" if goal.ttft else "worth its price (--worth)"
        )
        found.append(f"no cache is {reason}; {could}")
    for name, _ in chosen.stack.tiers:
        rest = tuple((n, s) for n, s in chosen.stack.tiers if n != name)
        without = study.judge(replace(chosen.stack, tiers=rest))
        if without.idle_s - chosen.idle_s < 0.005 * none.idle_s:
            found.append(f"the {name} tier buys nothing: without it the mean TTFT is the same")
    if why := broken(chosen, goal):
        found.append(f"no stack keeps every bound; this one breaks {', '.join(why)}")
    if room is not None:
        lru, best, belady = (room.hit_rates[n] for n in ("lru", room.best(), BELADY))
        sample = "" if room.rate >= 1 else f", by a sample of {100 * room.rate:.0f} %"
        found.append(
            f"at these sizes lru hits {100 * lru:.1f} %, the best policy ({room.best()})"
            f" {100 * best:.1f} %, one that knew the future {100 * belady:.1f} %, a cache without a"
            f" bound {100 * room.ceiling:.1f} %{sample}"
        )
    if chosen.stack.admission != "none":
        found.append(
            f"the disk takes no more writes: admission {chosen.stack.admission} keeps them to"
            f" {bytes_text(int(chosen.disk_writes_per_day))} a day"
        )
    return found
