"""Leaves tiers that could not be read out of look-ups for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from cache_core.plan import Hit
from cache_core.tiers.remote.breaker import CircuitBreaker

_LONGEST_PAUSE_S = 60.0


class Holder(Protocol):
    """An object that knows which tier has a chunk."""

    def holds(self, key: bytes, tier: int) -> bool: ...


class Suspensions:
    """The breakers of a stack of tiers, one for each. A read that ends with ``LATER`` suspends the
    tier for ``pause_s`` seconds of ``clock``; then one hit may try it, and if it fails the pause is
    twice as long."""

    def __init__(self, tiers: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._breakers = [CircuitBreaker(1, pause_s, _LONGEST_PAUSE_S, clock) for _ in range(tiers)]

    def saw(self, tier: int, later: bool) -> bool:
        """Records that the tier was read; ``later``: it could not give a chunk. Returns whether
        that suspended it."""
        breaker = self._breakers[tier]
        if later:
            return breaker.failed()
        breaker.succeeded()
        return False

    def out(self, tiers: Iterable[int], probe: bool = False) -> frozenset[int]:
        """Returns those of the tiers that are suspended. With ``probe``, one whose pause is over
        may be tried by the caller, and is left out."""
        involved = {tier for tier in set(tiers) if not self._breakers[tier].closed}
        return frozenset(t for t in involved if not (probe and self._breakers[t].allow()))

    def unused(self, probes: Iterable[int]) -> None:
        """Takes back the probes of tiers that a hit might have tried and did not: another one may,
        unless their outcome is known."""
        for tier in probes:
            self._breakers[tier].unused()

    def probes(self, tiers: Iterable[int], out: frozenset[int]) -> frozenset[int]:
        """Returns those of the tiers that are suspended and were let through all the same."""
        return frozenset(t for t in set(tiers) if t not in out and not self._breakers[t].closed)

    def without(self, holder: Holder, hit: Hit, out: frozenset[int], prefix: bool = True) -> Hit:
        """Returns what of a hit is left without some tiers: chunks that another one has come from
        there. A ``prefix`` ends at the first one that none has."""
        if not out:
            return hit
        found: list[tuple[bytes, int]] = []
        others = [
            t for t in range(len(self._breakers)) if t not in out and self._breakers[t].closed
        ]
        for key, tier in zip(hit.keys, hit.tiers, strict=True):
            here = tier
            if tier in out:
                here = next((other for other in others if holder.holds(key, other)), -1)
            if here >= 0:
                found.append((key, here))
            elif prefix:
                break
        return Hit(tuple(key for key, _ in found), tuple(tier for _, tier in found))
