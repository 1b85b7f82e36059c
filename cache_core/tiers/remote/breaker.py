"""Stops asking a server that does not answer, and finds out when it does again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


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
