"""Hashes prompts beside the scheduler, which waits only so long for it in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from cache_core.adapters.vllm.tracked import Tracked

# Waiting holds up every request that runs, and none if none does.
_PASS_S, _IDLE_PASS_S = 0.001, 0.02


class Hashing:
    """One thread, which hashes prompts in the order in which they come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pool = ThreadPoolExecutor(1, "lmcache-hash")
        self._left = _IDLE_PASS_S

    def begin(self, tracked: Tracked) -> None:
        """A request has come, or has other keys from now on."""
        self.ended(tracked)
        tokens = tracked.request.num_prompt_tokens
        if tokens >= tracked.hasher.chunk_tokens:
            tracked.hashing = self._pool.submit(tracked.hashed, (), 0, tokens)

    def next_pass(self, busy: bool) -> None:
        """A pass of the scheduler is over; ``busy``: the next one has requests that run."""
        self._left = _PASS_S if busy else _IDLE_PASS_S

    def ready(self, tracked: Tracked) -> bool:
        """Whether the request's keys are known. Raises what hashing raised."""
        job = tracked.hashing
        if job is None:
            return True
        if not job.done() and self._left > 0:
            began = self._clock()
            wait([job], self._left)
            self._left -= self._clock() - began
        if not job.done():
            return False
        tracked.hashing = None
        tracked.keys = job.result()
        return True

    def ended(self, tracked: Tracked) -> None:
        """The request needs no keys any more."""
        if tracked.hashing is not None:
            tracked.hashing.cancel()
            tracked.hashing = None

    def close(self) -> None:
        """Hashes nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
