"""Asks a tier that other processes fill too what it has, without holding up the scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile

from cache_core.tiers import Tier

logger = logging.getLogger("lmcache")


class Asking:
    """Questions by request; each request asks once. ``tier`` is a connection of its own."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._pool = ThreadPoolExecutor(2, "lmcache-ask")
        self._open: dict[str, tuple[Sequence[bytes], Future[list[bool]]] | None] = {}

    def answer(
        self, request: str, rest: Sequence[bytes], held: Callable[[bytes], bool]
    ) -> list[bytes] | None:
        """Chunks of ``rest`` that the tier has and that can be used; None: not known yet. ``held``
        says what other tiers have: that is no gap. Empty from the second answer on."""
        if request not in self._open:
            if not rest:
                return []
            self._open[request] = (rest, self._pool.submit(self._tier.contains, rest))
        asked = self._open[request]
        if asked is None:
            return []
        keys, future = asked
        if not future.done():
            return None
        self._open[request] = None
        try:
            found = future.result()
        except Exception:  # a tier of a third party may raise: it costs hits, never a request
            logger.exception("asking for %d chunks failed", len(keys))
            return []
        pairs = zip(keys, found, strict=True)
        return [key for key, ok in takewhile(lambda p: p[1] or held(p[0]), pairs) if ok]

    def forget(self, request: str) -> None:
        """The request has ended."""
        self._open.pop(request, None)

    def forget_all(self) -> None:
        """What was asked is not wanted any more: each request may ask again."""
        self._open.clear()

    def close(self) -> None:
        """Ends the questions and the connection."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tier.close()
