"""Replays the real Ledger to find what another eviction policy or SSD admission would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache_core.policies import POLICIES
from cache_core.sizing.replay import replay_ledger
from lmcache_cli.output import Say
from lmcache_cli.tune.candidates import (
    Goal,
    Judge,
    StackOutcome,
    TierConfiguration,
    broken,
    number,
    unfit,
)
from lmcache_cli.tune.study import Study

USABLE = tuple(name for name in POLICIES if name != "unbounded")
BELADY = "belady"
"""The policy that knows the future: it shows what is left to gain at this size."""
WORTH_CHANGING = 0.005
"""The least hit rate that another policy must gain over LRU to be chosen."""
ADMITTING = ("second-touch", "bytes-per-day")
COMPARED = 50_000
"""The most references that replays of all policies see; more are sampled (SHARDS_adj)."""
REPLAYED = 3_000_000
"""The number of references up to which the chosen stack is replayed in full."""
_FAR = 1.5
"""How far above its bound a sample's writes may be for the whole to be replayed still."""
_CURVE_POINTS = 4
_CURVE_REFERENCES = 15_000


@dataclass(frozen=True, slots=True)
class PolicyCurve:
    """One tier under one policy: hit rates over all prompt tokens at capacities in chunks.
    ``rate`` is the share of the chunks that was replayed."""

    policy: str
    chunk_tokens: int
    capacities: tuple[int, ...]
    hit_rates: tuple[float, ...]
    rate: float


@dataclass(frozen=True, slots=True)
class Headroom:
    """Hit rates of the chosen stack under every policy, all replayed alike over the share ``rate``
    of the chunks. ``ceiling`` is that of a cache that keeps everything."""

    hit_rates: dict[str, float]
    ceiling: float
    rate: float

    def best(self) -> str:
        """Returns the policy to use: LRU, unless another gains enough."""
        rates = {name: rate for name, rate in self.hit_rates.items() if name != BELADY}
        found = max(rates, key=lambda name: rates[name])
        return found if rates[found] - rates["lru"] >= WORTH_CHANGING else "lru"


def headroom(study: Study, stack: TierConfiguration, on_step: Say = lambda text: None) -> Headroom:
    """Replays the tiers that a stack buys under every policy and returns the hit rates."""
    share = _share(study, stack.chunk_tokens, COMPARED)
    bought = replace(stack, tiers=tuple(stack.bought.items()))
    rates = {}
    for name in (*USABLE, BELADY):
        on_step(f"replaying {name}")
        found = study.replayed(replace(bought, policy=name), share)
        rates[name] = found.hit_rate * _scale(study, stack.chunk_tokens)
    return Headroom(rates, study.ceiling(stack.chunk_tokens), share)


def with_best_policy(
    study: Study, chosen: StackOutcome, room: Headroom, goal: Goal, judge: Judge
) -> StackOutcome:
    """Replays the chosen stack in full under the best policy; returns it with that policy only if
    it is better by the number that decides and breaks no further bound, else as it was."""
    name = room.best()
    if name == chosen.stack.policy or _large(study, chosen.stack.chunk_tokens):
        return chosen
    other = judge(replace(chosen.stack, policy=name))
    worse = len(broken(other, goal)) > len(broken(chosen, goal))
    return chosen if worse or number(other, goal) >= number(chosen, goal) else other


def admitted(
    study: Study, outcome: StackOutcome, goal: Goal, on_step: Say, judge: Judge
) -> list[StackOutcome]:
    """Judges a stack that writes more to its SSD than it may under every admission that writes
    less; returns only those that keep the bound."""
    if _large(study, outcome.stack.chunk_tokens):
        return []
    found = []
    share = _share(study, outcome.stack.chunk_tokens, COMPARED)
    allowed = goal.disk_writes(outcome.stack.sizes["disk"])
    for name in ADMITTING:
        on_step(f"replaying admission {name}")
        stack = replace(outcome.stack, admission=name)
        if share < 1 and study.disk_writes(stack, share) > _FAR * allowed:
            continue
        found.append(judge(stack))
    return [o for o in found if not unfit(o, goal)]


def policy_curves(
    study: Study, chunk_tokens: int, on_step: Say = lambda text: None
) -> list[PolicyCurve]:
    """Replays one tier at a few capacities up to what LRU can use, under every policy but LRU."""
    curve = study.curves(chunk_tokens)["prefix"]
    most = curve.capacity_for(curve.ceiling) if curve.ceiling > 0 else None
    if not most or study.cost.groups(chunk_tokens):  # a sample of chunks says nothing of groups
        return []
    sizes = np.unique(np.geomspace(max(1, most // 64), most, _CURVE_POINTS).astype(np.int64))
    share = _share(study, chunk_tokens, _CURVE_REFERENCES)
    references, scale = study.references(chunk_tokens), _scale(study, chunk_tokens)
    found = []
    for name in (*USABLE[1:], BELADY):
        on_step(f"replaying {name} at {len(sizes)} sizes")
        rates = [
            replay_ledger(references, [int(s)], name, rate=share).hit_rate * scale for s in sizes
        ]
        found.append(PolicyCurve(name, chunk_tokens, _ints(sizes), tuple(rates), share))
    return found


def _ints(values: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _share(study: Study, chunk_tokens: int, most: int) -> float:
    return min(1.0, most / max(1, len(study.references(chunk_tokens).ids)))


def _large(study: Study, chunk_tokens: int) -> bool:
    return len(study.references(chunk_tokens).ids) > REPLAYED


def _scale(study: Study, chunk_tokens: int) -> float:
    """Returns the factor from hit rates over full chunks, as replays count, to those over all
    prompt tokens."""
    return study.references(chunk_tokens).tokens / max(1, study.tokens)
