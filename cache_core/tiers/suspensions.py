"""Leaves tiers that could not be read out of look-ups for a while: stops
asking what does not answer, and finds out when it does again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from cache_core.plan import Hit


class CircuitBreaker:
    """A breaker for calls that fail. While it is closed every call may go. After ``failures`` in a
    row it opens: no call may go for ``pause_s`` seconds, then one probe may; its success closes the
    breaker; without it the next pause, twice as long up to ``longest_pause_s``, has begun with the
    probe.

    Safe for any number of threads. ``clock`` in seconds, monotonic.
    """

    def __init__(
        self,
        failures: int = 3,
        pause_s: float = 5.0,
        longest_pause_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1 or pause_s < 0:
            raise ValueError(f"a breaker of {failures} failures and {pause_s} s makes no sense")
        self.opened = 0
        self._failures = failures
        self._first_pause_s = self._pause_s = pause_s
        self._longest_pause_s = max(pause_s, longest_pause_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._retry_at: float | None = None  # None: closed
        self._before_probe: tuple[float, float] | None = None

    @property
    def closed(self) -> bool:
        """Returns whether calls go through as usual."""
        with self._lock:
            return self._retry_at is None

    def allow(self) -> bool:
        """Returns whether a call may go now. A True while open makes that call the probe."""
        with self._lock:
            if self._retry_at is None:
                return True
            now = self._clock()
            if now < self._retry_at:
                return False
            self._before_probe = self._pause_s, self._retry_at
            self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
            self._retry_at = now + self._pause_s
            return True

    def unused(self) -> None:
        """Takes back the last probe, which was not made, so that another may go, unless its outcome
        is known."""
        with self._lock:
            if self._before_probe is not None:
                self._pause_s, self._retry_at = self._before_probe
                self._before_probe = None

    def succeeded(self) -> bool:
        """Records that a call came through. Returns whether that closed the breaker."""
        with self._lock:
            self._before_probe = None
            self._in_a_row = 0
            self._pause_s = self._first_pause_s
            was_open, self._retry_at = self._retry_at is not None, None
            return was_open

    def failed(self) -> bool:
        """Records that a call failed. Returns whether that opened a closed breaker."""
        with self._lock:
            self._before_probe = None
            self._in_a_row += 1
            if self._retry_at is not None:
                return False
            if self._in_a_row < self._failures:
                return False
            self._retry_at = self._clock() + self._pause_s
            self.opened += 1
            return True


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
