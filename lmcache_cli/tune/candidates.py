"""Stacks of tiers that could be bought, and what each gives and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from cache_core.plan import Placement
from lmcache_cli.options.tune import DISK_PRICE, DRAM_PRICE
from reports.units import bytes_text

GIB = 2**30
HOURS_PER_MONTH = 730


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of each tier per GiB and hour. The defaults are street prices over three years, in
    dollars: DRAM 4 a GiB, NVMe 0.10; power and servers not counted. Set your own."""

    cpu: float = DRAM_PRICE
    disk: float = DISK_PRICE

    def per_hour(self, tiers: Mapping[str, int]) -> float:
        """Returns the price per hour of a stack of tiers, given as bytes by name."""
        known = {"cpu": self.cpu, "disk": self.disk}
        return sum(known.get(name, 0.0) * size / GIB for name, size in tiers.items())


@dataclass(frozen=True, slots=True)
class Goal:
    """The bounds that a recommendation must keep: ``ttft`` maps ``p50`` .. ``p99`` to seconds; None
    is no bound. ``writes_per_day`` are bytes that the disk may take."""

    most_per_hour: float | None = None
    largest: Mapping[str, int] = field(default_factory=dict)
    writes_per_day: float | None = None
    ttft: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TierConfiguration:
    """One stack of tiers: sizes in bytes by tier name, fastest first; without any, no cache."""

    tiers: tuple[tuple[str, int], ...]
    chunk_tokens: int
    placement: Placement = "write_on_insertion"
    policy: str = "lru"
    admission: str = "none"
    """The admission of the disk tier."""

    @property
    def plain(self) -> bool:
        """Returns whether curves give the stack's hits exactly."""
        return self.policy == "lru" and self.admission == "none"

    @property
    def sizes(self) -> dict[str, int]:
        """Returns the sizes in bytes by tier name."""
        return dict(self.tiers)


@dataclass(frozen=True, slots=True)
class StackOutcome:
    """The predicted results of one stack on the trace. ``idle_s`` is the mean TTFT without
    queueing, the score that stacks are ordered by; ``ttft`` percentiles are of a run over the
    arrivals, empty before it."""

    stack: TierConfiguration
    hit_tokens: Mapping[str, int]
    hit_rate: float
    idle_s: float
    cost_per_hour: float
    disk_writes_per_day: float
    ttft: Mapping[str, float] = field(default_factory=dict)


Judge = Callable[[TierConfiguration], StackOutcome]


def stacks(
    sizes: Mapping[str, Sequence[int]],
    chunks: Iterable[int],
    placements: Sequence[Placement] = ("write_on_insertion",),
) -> list[TierConfiguration]:
    """Returns every combination, a size of 0 leaving a tier out; the first has no tier at all."""
    names = [name for name in ("cpu", "disk") if name in sizes]
    found = []
    for chunk, placement in product(chunks, placements):
        for combination in product(*(sizes[name] for name in names)):
            tiers = tuple((n, s) for n, s in zip(names, combination, strict=True) if s)
            if placement != placements[0] and len(tiers) < 2:
                continue  # one tier is the same in every placement
            found.append(TierConfiguration(tiers, chunk, placement))
    return sorted(set(found), key=lambda s: (s.chunk_tokens, s.placement, s.tiers))


def broken(outcome: StackOutcome, goal: Goal) -> list[str]:
    """Returns which of the goal's bounds an outcome breaks."""
    found = []
    if goal.most_per_hour is not None and outcome.cost_per_hour > goal.most_per_hour:
        found.append("budget")
    for name, most in goal.largest.items():
        if outcome.stack.sizes.get(name, 0) > most:
            found.append(f"{name} size")
    if goal.writes_per_day is not None and outcome.disk_writes_per_day > goal.writes_per_day:
        found.append("SSD writes per day")
    found += [
        f"ttft.{name}"
        for name, most in goal.ttft.items()
        if outcome.ttft and outcome.ttft[name] > most
    ]
    return found


def front(outcomes: Iterable[StackOutcome]) -> list[StackOutcome]:
    """Returns the Pareto front, cheapest first: no other stack is both cheaper and faster."""
    best: list[StackOutcome] = []
    for outcome in sorted(outcomes, key=lambda o: (o.cost_per_hour, o.idle_s)):
        if not best or outcome.idle_s < best[-1].idle_s:
            best.append(outcome)
    return best


def recommend(outcomes: Sequence[StackOutcome], goal: Goal, worth: float) -> StackOutcome:
    """Chooses the cheapest stack that keeps the goal, if the goal has a TTFT; else the stack of the
    front after which another dollar an hour buys less than ``worth`` seconds of mean TTFT. Where
    none keeps the goal, the one that breaks the fewest bounds, then the fastest."""
    keeping = [o for o in outcomes if not broken(o, goal)]
    if not keeping:
        return min(outcomes, key=lambda o: (len(broken(o, goal)), o.idle_s))
    if goal.ttft and all(o.ttft for o in keeping):
        return min(keeping, key=lambda o: (o.cost_per_hour, o.idle_s))
    line = front(keeping)
    chosen = line[0]
    for nxt in line[1:]:
        price = nxt.cost_per_hour - chosen.cost_per_hour
        if price <= 0 or (chosen.idle_s - nxt.idle_s) / price >= worth:
            chosen = nxt
    return chosen


@dataclass(frozen=True, slots=True)
class Marginal:
    """The change in results from doubling (or halving) one tier."""

    tier: str
    from_bytes: int
    to_bytes: int
    hit_rate: float
    idle_s: float
    cost_per_hour: float

    def text(self) -> str:
        """Describes the change in words."""
        more = self.to_bytes - self.from_bytes
        verb = "another" if more > 0 else "giving up"
        size = bytes_text(abs(more))
        change = f"{100 * self.hit_rate:+.1f} points of hit rate"
        if abs(self.hit_rate) < 5e-4 and abs(self.idle_s) < 5e-4:
            return f"{verb} {size} of {self.tier} changes nothing"
        return (
            f"{verb} {size} of {self.tier}: {change}, {1e3 * self.idle_s:+.0f} ms of mean"
            f" TTFT, {self.cost_per_hour:+.4f} per hour"
        )


def marginals(chosen: StackOutcome, judge: Judge) -> list[Marginal]:
    """Returns what doubling and halving each tier would change, the others as they are."""
    found = []
    for name, size in chosen.stack.tiers:
        for other in (2 * size, size // 2):
            tiers = tuple((n, other if n == name else s) for n, s in chosen.stack.tiers)
            changed = judge(replace(chosen.stack, tiers=tiers))
            found.append(
                Marginal(
                    name,
                    size,
                    other,
                    changed.hit_rate - chosen.hit_rate,
                    changed.idle_s - chosen.idle_s,
                    changed.cost_per_hour - chosen.cost_per_hour,
                )
            )
    return found
