"""Stacks of tiers that could be bought, what each gives and costs, and which to choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf

from cache_core.plan import Placement
from cache_core.sizing.curves import Routing
from lmcache_cli.options.tune import DISK_PRICE, DRAM_PRICE
from reports.units import bytes_text, seconds_text

GIB = 2**30
HOURS_PER_MONTH = 730
_ALIKE = 1.02
"""Stacks that miss a bound by so near the same are alike: none is worth money over the other."""
_TIMES = 10.0
"""A share of a bound from which it is told in multiples of it."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in dollars an hour: of each tier per GiB, and of the cards of all ``replicas``. The
    defaults of tiers are street prices over three years, DRAM 4 a GiB, NVMe 0.10; power and servers
    not counted. Set your own."""

    cpu: float = DRAM_PRICE
    disk: float = DISK_PRICE
    cards: float = 0.0
    remote: float = DRAM_PRICE
    replicas: int = 1

    def per_hour(self, tiers: Mapping[str, int]) -> float:
        """Returns the price per hour of a stack of tiers, given as bytes by name: those of all
        replicas, and the pool."""
        each = {"cpu": self.cpu, "disk": self.disk}
        known = {name: self.replicas * price for name, price in each.items()}
        known["remote"] = self.remote
        return sum(known.get(name, 0.0) * size / GIB for name, size in tiers.items())


@dataclass(frozen=True, slots=True)
class Goal:
    """The bounds that a recommendation must keep: ``slo`` maps ``ttft.p90``, ``itl.mean`` and the
    like to seconds; None is no bound. ``writes_per_day`` are bytes that the disk may take,
    ``drive_writes_per_day`` its endurance in fillings, ``disk_bytes_s`` what it can write."""

    most_per_hour: float | None = None
    largest: Mapping[str, int] = field(default_factory=dict)
    writes_per_day: float | None = None
    slo: Mapping[str, float] = field(default_factory=dict)
    drive_writes_per_day: float | None = None
    disk_bytes_s: float | None = None
    worth: float | None = None
    """Seconds of mean TTFT that another dollar an hour must buy, where there is no ``slo``."""

    def disk_budget(self, nbytes: int) -> float:
        """Returns the bytes that a disk of this size may take a day; infinite without a bound."""
        budget = inf if self.writes_per_day is None else self.writes_per_day
        if self.drive_writes_per_day is not None:
            budget = min(budget, self.drive_writes_per_day * nbytes)
        return budget

    def disk_writes(self, nbytes: int) -> float:
        """Returns the bytes that a disk of this size may and can take a day."""
        able = inf if self.disk_bytes_s is None else 86_400 * self.disk_bytes_s
        return min(self.disk_budget(nbytes), able)


@dataclass(frozen=True, slots=True)
class TierConfiguration:
    """One stack of tiers: sizes in bytes by tier name, fastest first; without any, no cache. The
    tier ``device`` is the engine's own prefix cache, ``remote`` a pool of all replicas; others are
    each replica's."""

    tiers: tuple[tuple[str, int], ...]
    chunk_tokens: int
    placement: Placement = "write_on_insertion"
    policy: str = "lru"
    admission: str = "none"
    """The admission of the disk tier. Policy and placement are those of the tiers that are
    bought."""
    routing: Routing = "round-robin"
    """How requests are spread over replicas."""

    @property
    def plain(self) -> bool:
        """Returns whether curves give the stack's hits exactly."""
        return self.policy == "lru" and self.admission == "none"

    @property
    def sizes(self) -> dict[str, int]:
        """Returns the sizes in bytes by tier name."""
        return dict(self.tiers)

    @property
    def bought(self) -> dict[str, int]:
        """Returns the sizes in bytes of the tiers that are bought."""
        return {name: size for name, size in self.tiers if name != "device"}


@dataclass(frozen=True, slots=True)
class StackOutcome:
    """The predicted results of one stack on the trace. ``latency`` maps ``ttft.p90`` and the like
    to seconds, of a run over the arrivals. ``capacity`` is the load that the engine can serve, as a
    multiple of the trace's, when it never idles (0: not run), and ``per_million`` the dollars for
    cards and tiers per million tokens then. Both kinds of run are exact for these arrivals; a
    choice is by one of them, which ``number`` names."""

    stack: TierConfiguration
    hit_tokens: Mapping[str, int]
    hit_rate: float
    cost_per_hour: float
    disk_writes_per_day: float
    latency: Mapping[str, float] = field(default_factory=dict)
    capacity: float = 0.0
    per_million: float = 0.0
    goodput: float | None = None
    """Requests per second that keep every bound on a latency, each by itself."""


Judge = Callable[[TierConfiguration], StackOutcome]


def stacks(
    sizes: Mapping[str, Sequence[int]],
    chunks: Iterable[int],
    placements: Sequence[Placement] = ("write_on_insertion",),
    device: int = 0,
) -> list[TierConfiguration]:
    """Returns every combination, a size of 0 leaving a tier out, but those of a disk and a pool;
    the first has none that is bought. ``device`` bytes of the engine's own cache stand in front of
    each."""
    names = [name for name in ("cpu", "disk", "remote") if name in sizes]
    own = (("device", device),) if device else ()
    found = []
    for chunk, placement in product(chunks, placements):
        for combination in product(*(sizes[name] for name in names)):
            tiers = tuple((n, s) for n, s in zip(names, combination, strict=True) if s)
            bought = {name for name, _ in tiers}
            if {"disk", "remote"} <= bought:
                continue  # both are for what memory has no room for
            if placement != placements[0] and len(bought - {"remote"}) < 2:
                continue  # one tier is the same in every placement
            found.append(TierConfiguration(own + tiers, chunk, placement))
    return sorted(set(found), key=lambda s: (s.chunk_tokens, s.placement, s.tiers))


def number(outcome: StackOutcome, goal: Goal) -> float:
    """Returns the one number that stacks are chosen by, less is better: the greatest share of its
    bound that a latency takes where there are bounds; with a worth of time, the mean TTFT in
    seconds and the dollars an hour at that rate; else dollars per million tokens, without prices of
    cards the cards that the load takes."""
    if goal.slo:
        return max(outcome.latency.get(name, inf) / most for name, most in goal.slo.items())
    if goal.worth is not None:
        return outcome.latency.get("ttft.mean", inf) + goal.worth * outcome.cost_per_hour
    return outcome.per_million or (1 / outcome.capacity if outcome.capacity else inf)


def deciding(goal: Goal) -> tuple[str, Callable[[StackOutcome], str]]:
    """Returns what ``number`` is of, as a column's heading, and what writes it into a row."""
    if goal.slo:
        return "of bound", lambda outcome: _share_text(number(outcome, goal))
    if goal.worth is not None:
        return "mean+price", lambda outcome: f"{number(outcome, goal):.4g} s"
    return "$/M tokens", lambda outcome: f"{number(outcome, goal):.4f}"


def _share_text(share: float) -> str:
    return f"{100 * share:,.1f} %" if share < _TIMES else f"{share:,.0f} times"


def broken(outcome: StackOutcome, goal: Goal) -> list[str]:
    """Returns which of the goal's bounds an outcome breaks."""
    found = [*unfit(outcome, goal)]
    found += [name for name, most in goal.slo.items() if outcome.latency.get(name, 0.0) > most]
    return found


def unfit(outcome: StackOutcome, goal: Goal) -> list[str]:
    """Returns which of the goal's bounds on money, sizes and disks an outcome breaks."""
    found = []
    if goal.most_per_hour is not None and outcome.cost_per_hour > goal.most_per_hour:
        found.append("budget")
    for name, most in goal.largest.items():
        if outcome.stack.sizes.get(name, 0) > most:
            found.append(f"{name} size")
    disk, writes = outcome.stack.sizes.get("disk", 0), outcome.disk_writes_per_day
    if writes > goal.disk_budget(disk):
        found.append("disk writes per day")
    elif goal.disk_bytes_s is not None and writes > 86_400 * goal.disk_bytes_s:
        found.append("disk bandwidth")
    return found


def bound_text(name: str, outcome: StackOutcome, goal: Goal) -> str:
    """Says what was asked for and what there is, for a bound that ``broken`` names."""
    disk, writes = outcome.stack.sizes.get("disk", 0), outcome.disk_writes_per_day
    if name in goal.slo:
        what = latency_text(name)
        have, most = outcome.latency[name], goal.slo[name]
        return f"{what} is {seconds_text(have)}; {seconds_text(most)} was asked for"
    if name == "budget":
        return (
            f"it costs ${outcome.cost_per_hour:.4f} an hour; ${goal.most_per_hour:.4f} is allowed"
        )
    if name == "disk writes per day":
        times = f"{writes / disk:.1f} drive writes" if disk else "writes"
        allowed = bytes_text(goal.disk_budget(disk))
        return f"the disk takes {bytes_text(writes)} a day ({times}); {allowed} is allowed"
    if name == "disk bandwidth":
        return f"the disk would have to take {writes / 86_400 / 1e9:.1f} GB/s all day"
    return f"{name} is bounded"


def latency_text(name: str) -> str:
    """Returns what people call ``ttft.p90``: TTFT p90."""
    what, _, place = name.partition(".")
    return f"{what.upper()} {place}"


def bought_text(outcome: StackOutcome) -> str:
    """Returns what is bought, like ``64 GiB of cpu and 1 TiB of disk``."""
    what = {"remote": "a pool that all replicas share"}
    return " and ".join(
        f"{bytes_text(n)} of {what.get(name, name)}" for name, n in outcome.stack.bought.items()
    )


def how_text(outcome: StackOutcome) -> str:
    """Returns a stack's policy, and what of it is not the default."""
    stack = outcome.stack
    parts = [stack.policy]
    if stack.placement == "write_on_eviction":
        parts.append("written on eviction")
    if stack.admission != "none":
        parts.append(f"admission {stack.admission}")
    if stack.routing != "round-robin":
        parts.append(f"routed by {stack.routing}")
    return ", ".join(parts)


def latency_of(outcome: StackOutcome, name: str) -> str:
    """Returns a latency of an outcome in words; ``not known`` where it was not run."""
    return seconds_text(outcome.latency[name]) if name in outcome.latency else "not known"


def front(outcomes: Iterable[StackOutcome], goal: Goal) -> list[StackOutcome]:
    """Returns the Pareto front, cheapest first: none in it is both dearer and, by the number that
    decides, worse than another, or as good."""
    best: list[StackOutcome] = []
    for outcome in sorted(outcomes, key=lambda o: (o.cost_per_hour, number(o, goal))):
        if not best or number(outcome, goal) < number(best[-1], goal):
            best.append(outcome)
    return best


def recommend(outcomes: Sequence[StackOutcome], goal: Goal) -> StackOutcome:
    """Chooses by the number that decides: with bounds on latencies, the cheapest stack that keeps
    every bound, else the cheapest per million tokens of those that keep the others. Where none
    keeps the bounds, the one that comes nearest and keeps those on sizes, money and disks: of those
    that are as near but for 2 %, the cheapest."""
    fit = [o for o in outcomes if not unfit(o, goal)] or list(outcomes)
    keeping = [o for o in fit if not broken(o, goal)]
    if goal.slo and keeping:
        return min(keeping, key=lambda o: (o.cost_per_hour, number(o, goal)))
    best = min(fit, key=lambda o: (number(o, goal), o.cost_per_hour))
    if not goal.slo:
        return best
    most = _ALIKE * number(best, goal)
    near = [o for o in fit if number(o, goal) <= most]
    return min(near, key=lambda o: (o.cost_per_hour, number(o, goal)))


@dataclass(frozen=True, slots=True)
class Marginal:
    """The change in results from doubling (or halving) one tier. ``latency`` are the seconds that
    the percentile ``name`` changes by, ``per_million`` dollars per million tokens."""

    tier: str
    from_bytes: int
    to_bytes: int
    hit_rate: float
    name: str
    latency: float
    per_million: float
    cost_per_hour: float

    def text(self) -> str:
        """Describes the change in words."""
        more = self.to_bytes - self.from_bytes
        verb = "another" if more > 0 else "giving up"
        size = bytes_text(abs(more))
        if abs(self.hit_rate) < 5e-4 and abs(self.latency) < 5e-4:
            return f"{verb} {size} of {self.tier} changes nothing but {self.cost_per_hour:+.4f} $/h"
        sign = "+" if self.latency >= 0 else "-"
        million = f" {self.per_million:+.4f} $ per million tokens," if self.per_million else ""
        return (
            f"{verb} {size} of {self.tier}: {100 * self.hit_rate:+.1f} points of hit rate,"
            f" {latency_text(self.name)} {sign}{seconds_text(abs(self.latency))},{million}"
            f" {self.cost_per_hour:+.4f} $/h"
        )


def marginals(chosen: StackOutcome, judge: Judge, name: str) -> list[Marginal]:
    """Returns what doubling and halving each tier that is bought would change, the others as they
    are. ``name`` is the latency that is compared."""
    found = []
    for tier, size in chosen.stack.bought.items():
        for other in (2 * size, size // 2):
            tiers = tuple((n, other if n == tier else s) for n, s in chosen.stack.tiers)
            changed = judge(replace(chosen.stack, tiers=tiers))
            found.append(
                Marginal(
                    tier,
                    size,
                    other,
                    changed.hit_rate - chosen.hit_rate,
                    name,
                    changed.latency[name] - chosen.latency[name],
                    changed.per_million - chosen.per_million,
                    changed.cost_per_hour - chosen.cost_per_hour,
                )
            )
    return found
