"""Tiers that could not be read are left out of look-ups for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cache_core.carry import Fetched
from cache_core.plan import Hit
from cache_core.tiers.breaker import CircuitBreaker

_LONGEST_PAUSE_S = 60.0


class Holder(Protocol):
    """Who knows which tier has a chunk."""

    def holds(self, key: bytes, tier: int) -> bool: ...


class Suspensions:
    """One breaker for each tier. A read that ends with ``LATER`` suspends the tier for ``pause_s``
    seconds of ``clock``; then one hit may try it, and if it fails the pause is twice as long."""

    def __init__(self, tiers: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._breakers = [CircuitBreaker(1, pause_s, _LONGEST_PAUSE_S, clock) for _ in range(tiers)]

    def saw(self, run: Fetched) -> bool:
        """A tier was read. Returns whether that suspended it."""
        breaker = self._breakers[run.tier]
        if run.later:
            return breaker.failed()
        breaker.succeeded()
        return False

    def without(self, holder: Holder, hit: Hit, *, prefix: bool = True, probe: bool = False) -> Hit:
        """What of a hit is left without suspended tiers: chunks that another tier has come from
        there. A ``prefix`` ends at the first one that none has. With ``probe``, a tier whose pause
        is over may be tried by this hit."""
        involved = {tier for tier in set(hit.tiers) if not self._breakers[tier].closed}
        out = {tier for tier in involved if not (probe and self._breakers[tier].allow())}
        if not out:
            return hit
        found: list[tuple[bytes, int]] = []
        others = [tier for tier in range(len(self._breakers)) if self._breakers[tier].closed]
        for key, tier in zip(hit.keys, hit.tiers, strict=True):
            if tier in out:
                here = next((other for other in others if holder.holds(key, other)), None)
                if here is None:
                    if prefix:
                        break
                    continue
                tier = here
            found.append((key, tier))
        return Hit(tuple(key for key, _ in found), tuple(tier for _, tier in found))
