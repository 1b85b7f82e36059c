"""Searches for the stack of tiers to recommend for a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cache_core.plan import PLACEMENTS
from cache_core.sizing.curves import ROUTINGS
from lmcache_cli.output import Say
from lmcache_cli.tune.candidates import (
    Goal,
    Marginal,
    StackOutcome,
    TierConfiguration,
    broken,
    front,
    marginals,
    number,
    recommend,
    stacks,
    unfit,
)
from lmcache_cli.tune.cost import RequestCost
from lmcache_cli.tune.policies import (
    Headroom,
    PolicyCurve,
    admitted,
    headroom,
    policy_curves,
    with_best_policy,
)
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.worth import (
    LoadOrCompute,
    PoolOrRouter,
    Uncertainty,
    Worth,
    load_or_compute,
    pool_or_router,
    uncertainty,
    worth,
)
from reports.units import seconds_text

_SHOWN = 8
"""The most rows of the table."""
_POINTS, _REPLAYED_POINTS = 10, 5
_BEYOND = 12
"""The most stacks that may not be bought that are run."""
_FINE = 16
"""The steps between a size and twice it."""
_NO_DISK_BOUND: dict[str, Any] = {
    "writes_per_day": None,
    "drive_writes_per_day": None,
    "disk_bytes_s": None,
}
_UNBOUND: dict[str, Any] = _NO_DISK_BOUND | {"most_per_hour": None, "largest": {}}
_COARSEST = 4
_MOST_RUNS = 3_000_000
"""Requests of all runs together up to which every chunk length is searched with every size; above
it the length is chosen first, at the largest sizes."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommended stack and what it was chosen from. ``today`` is what is there without buying
    anything, ``none`` an engine that keeps no KV, ``ceiling`` the hit rate without a bound.
    ``front`` are the rows of the table, ``rejected`` the others of them with why they lost;
    ``breaks`` are bounds that the recommended stack does not keep; ``binding`` is the bound that it
    breaks, or that ``held_back``, a better stack, does. ``worths`` are of ``without_cache``,
    ``today`` and ``recommended``."""

    goal: Goal
    chosen: StackOutcome
    today: StackOutcome
    none: StackOutcome
    front: tuple[StackOutcome, ...]
    searched: tuple[StackOutcome, ...]
    marginals: tuple[Marginal, ...]
    rejected: tuple[tuple[StackOutcome, tuple[str, ...]], ...]
    breaks: tuple[str, ...]
    binding: str | None
    held_back: StackOutcome | None
    cards: int | None
    """Where no stack keeps the bounds on latencies: the cards of a stage of each model with which
    what there is today keeps them; None if that is not known."""
    worths: Mapping[str, Worth]
    ceiling: float
    headroom: Headroom | None = None
    """The hit rates of the bought tiers under every policy; None without one."""
    policy_curves: tuple[PolicyCurve, ...] = ()
    loads: tuple[LoadOrCompute, ...] = ()
    uncertainty: Uncertainty | None = None
    fleet: PoolOrRouter | None = None

    @property
    def keeps_bounds(self) -> bool:
        """Returns whether the recommended stack keeps every bound."""
        return not self.breaks


def sizes_to_try(study: Study, chunk_tokens: int, largest: int, tier: str = "cpu") -> list[int]:
    """Returns 0, and sizes by powers of two up to where the curve has nothing more to give, or
    ``largest`` bytes; only those with space for a chunk. Of sizes that the device has itself one is
    enough."""

    def room(nbytes: int) -> int:
        return study.rooms(TierConfiguration(((tier, nbytes),), chunk_tokens))[0]

    size = study.cost.chunk_bytes(chunk_tokens)
    wanted = max(1, study.most_chunks(chunk_tokens, tier))
    # A replay of the Ledger takes longer than a look at a curve.
    points = _POINTS if study.plain(TierConfiguration((), chunk_tokens)) else _REPLAYED_POINTS
    most = wanted * size
    while most < largest and room(most) < wanted:  # a disk tier keeps some for itself
        most += most // 16 + size
    most = min(most, largest)
    found = [0]
    while most and room(most) and len(found) < points:
        found.append(most)
        if tier != "remote" and most <= study.device:
            break
        most //= 2
    return sorted(found)


def replayed(study: Study, chunk_tokens: int) -> list[tuple[float, float]]:
    """Returns (bytes, hit rate) of one tier where layers keep different things: at the sizes that
    are searched, without a bound on them. Empty for chunks too short to be replayed."""
    found = []
    if study.cost.few_groups(chunk_tokens):
        for nbytes in sizes_to_try(study, chunk_tokens, 1 << 62)[1:]:
            hits = study.hits(TierConfiguration((("cpu", nbytes),), chunk_tokens))
            found.append((float(nbytes), int(hits.sum()) / max(1, study.tokens)))
    return found


def search(
    study: Study,
    goal: Goal,
    chunks: Sequence[int],
    on_step: Say = lambda text: None,
    larger: Callable[[int], RequestCost] | None = None,
) -> Recommendation:
    """Runs every stack of the grid by the number that decides, looks between its sizes, tries other
    policies and admissions, and recommends. Where none keeps the bounds it looks for more cards
    that do; ``larger`` gives the cost of so many of them."""
    decides = ("arrivals",) if goal.slo or goal.worth is not None else ("saturated",)

    def judge(stack: TierConfiguration) -> StackOutcome:
        return study.judge(stack, *decides)

    chunks = [chunk for chunk in chunks if study.cost.few_groups(chunk)] or [max(chunks)]
    today = judge(study.today)
    fit: list[TierConfiguration] = []
    beyond: list[TierConfiguration] = []
    for stack in _grid(study, goal, chunks, judge):
        (beyond if unfit(study.unrun(stack), goal) else fit).append(stack)
    # Of what may not be bought only the best are run: they tell which bound holds back.
    beyond.sort(key=lambda stack: -int(study.held(stack).sum()))
    found = [today, *_judged([*fit, *beyond[:_BEYOND]], judge, on_step)]
    found += _refined(recommend(found, goal), goal, judge, on_step)
    alone = study.replicas == 1  # a pool's order is not the Ledger's of one replica
    if alone and any(broken(o, goal) for o in found) and unfit_disk(found, goal):
        found += _admitted(study, found, goal, on_step, judge)
    chosen = recommend(found, goal)
    if not alone:
        found += [judge(replace(chosen.stack, routing=r)) for r in ROUTINGS]
        chosen = recommend(found, goal)
    room = None
    if alone and chosen.stack.bought and "remote" not in chosen.stack.bought:
        room = headroom(study, chosen.stack, on_step)
        better = with_best_policy(study, chosen, room, goal, judge)
        if better is not chosen:
            found.append(better)
            chosen = recommend(found, goal)
    on_step("weighing what was found")
    rows = {id(o): study.judge(o.stack) for o in _rows(found, chosen, today, goal)}
    shown = tuple(rows.values())
    chosen, first = rows[id(chosen)], rows[id(today)]
    none = study.judge(study.without)
    on_step("looking for the highest load")
    before = worth(study, first, goal)
    worths = {
        "without_cache": worth(study, none, goal) if first.stack.tiers else before,
        "today": before,
        "recommended": worth(study, chosen, goal) if chosen is not first else before,
    }
    breaks = tuple(broken(chosen, goal))
    binding, held_back = (breaks[0], None) if breaks else _binding(chosen, found, goal)
    name = next((n for n in goal.slo if n in chosen.latency), "ttft.mean")
    return Recommendation(
        goal,
        chosen,
        first,
        none,
        shown,
        tuple(found),
        tuple(marginals(chosen, study.judge, name)),
        tuple((o, tuple(broken(o, goal))) for o in shown if o is not chosen),
        breaks,
        binding,
        held_back,
        _enough_cards(study, goal, larger) if set(breaks) & goal.slo.keys() else None,
        worths,
        max(study.ceiling(chunk) for chunk in chunks),
        room,
        tuple(policy_curves(study, chosen.stack.chunk_tokens, on_step)),
        tuple(load_or_compute(study, chosen)),
        uncertainty(study, chosen.stack),
        None if alone else pool_or_router(study, found, goal),
    )


def _grid(
    study: Study, goal: Goal, chunks: Sequence[int], judge: Callable[..., StackOutcome]
) -> list[TierConfiguration]:
    """Returns all stacks that buy something, or have another router. Of fleets with many requests
    some sizes are left out, the largest not."""

    def of(chunk: int, step: int) -> list[TierConfiguration]:
        names = [n for n in ("cpu", "disk", "remote") if n != "remote" or goal.largest.get(n)]
        sizes = {n: sizes_to_try(study, chunk, goal.largest.get(n, 0), n) for n in names}
        sizes = {n: [0, *reversed(given[:0:-step])] for n, given in sizes.items()}
        found = stacks(sizes, [chunk], PLACEMENTS, study.device)
        found = [replace(s, routing=study.routing) for s in found if s.bought]
        if study.replicas == 1:
            return found
        # A router that looks for prefixes routes anew for every size of a replica's own tiers.
        tried = ("remote",) if step > 1 else ("cpu", "remote")
        plain = [s for s in found if len(s.bought) == 1 and next(iter(s.bought)) in tried]
        others = [r for r in ROUTINGS if r != study.routing]
        return found + [replace(s, routing=r) for r in others for s in (study.today, *plain)]

    step = 1
    while True:
        grids = [grid for chunk in chunks if (grid := of(chunk, step))]
        runs = len(study.arrays) * sum(map(len, grids))
        if grids and runs > _MOST_RUNS:
            largest = [max(grid, key=lambda s: sum(s.bought.values())) for grid in grids]
            figures = [number(judge(stack), goal) for stack in largest]
            chunks = [largest[figures.index(min(figures))].chunk_tokens]
            grids = [grids[figures.index(min(figures))]]
            runs = len(study.arrays) * len(grids[0])
        if study.replicas == 1 or runs <= 2 * _MOST_RUNS or step >= _COARSEST:
            return [stack for grid in grids for stack in grid]
        step *= 2


def _judged(
    grid: Sequence[TierConfiguration],
    judge: Callable[[TierConfiguration], StackOutcome],
    on_step: Say,
) -> Iterable[StackOutcome]:
    began = time.monotonic()
    for count, stack in enumerate(grid):
        left = (time.monotonic() - began) / count * (len(grid) - count) if count else 0
        eta = f", {seconds_text(left)} left" if left >= 1 else ""
        on_step(f"running stack {count + 1} of {len(grid)}{eta}")
        yield judge(stack)


def _refined(
    best: StackOutcome, goal: Goal, judge: Callable[[TierConfiguration], StackOutcome], say: Say
) -> list[StackOutcome]:
    """Looks between the sizes of the grid: with bounds on latencies for the smallest size that
    keeps them, tier by tier, else on both sides."""
    found = [best]

    def resized(tier: str, sixteenths: int, stack: TierConfiguration) -> StackOutcome:
        size = stack.sizes[tier] * sixteenths // _FINE
        most = goal.largest.get(tier, size)
        tiers = tuple((n, min(most, size) if n == tier else s) for n, s in stack.tiers)
        return judge(replace(stack, tiers=tiers))

    for tier in best.stack.bought:
        say(f"looking between sizes of {tier}")
        stack = recommend(found, goal).stack
        if tier not in stack.sizes:
            continue
        if not goal.slo or broken(recommend(found, goal), goal):
            found += [resized(tier, part, stack) for part in (10, 12, 14, 20, 24, 28)]
            continue
        low, high = _FINE // 2, _FINE
        while high - low > 1:
            middle = (low + high) // 2
            found.append(resized(tier, middle, stack))
            low, high = (middle, high) if broken(found[-1], goal) else (low, middle)
    return found[1:]


def unfit_disk(outcomes: Sequence[StackOutcome], goal: Goal) -> bool:
    """Returns whether what a disk may take rules a stack out that would be chosen without that."""
    return bool(unfit(recommend(outcomes, replace(goal, **_NO_DISK_BOUND)), goal))


def _admitted(
    study: Study,
    outcomes: Sequence[StackOutcome],
    goal: Goal,
    on_step: Say,
    judge: Callable[[TierConfiguration], StackOutcome],
) -> list[StackOutcome]:
    """Returns, where the SSD's endurance binds, the stack that would be bought without that bound,
    under admissions that keep it."""
    free = replace(goal, **_NO_DISK_BOUND)
    return admitted(study, recommend(outcomes, free), goal, on_step, judge)


def _rows(
    found: Sequence[StackOutcome], chosen: StackOutcome, today: StackOutcome, goal: Goal
) -> list[StackOutcome]:
    """Returns the rows of the table: the front, thinned out, with what there is today first and
    what is recommended."""
    line = front((o for o in found if not unfit(o, goal)), goal)
    line = [o for o in line if o is not today and o is not chosen]
    count = _SHOWN - 1 - (chosen is not today)
    if len(line) > count:
        line = [line[round(i * (len(line) - 1) / (count - 1))] for i in range(count)]
    if chosen is not today:
        line.append(chosen)
    return [today, *sorted(line, key=lambda o: o.cost_per_hour)]


def _enough_cards(
    study: Study, goal: Goal, larger: Callable[[int], RequestCost] | None
) -> int | None:
    if larger is None:
        return None
    for cards in study.cost.more_devices():
        other = study.on(larger(cards))
        if not broken(other.judge(other.today, "arrivals"), goal):
            return cards
    return None


def _binding(
    chosen: StackOutcome, outcomes: Sequence[StackOutcome], goal: Goal
) -> tuple[str | None, StackOutcome | None]:
    """Returns the bound that the stack breaks which would be chosen without bounds on money, sizes
    and disks, and that stack."""
    wished = recommend(outcomes, replace(goal, **_UNBOUND))
    why = unfit(wished, goal)
    return (why[0], wished) if why else (None, None)
