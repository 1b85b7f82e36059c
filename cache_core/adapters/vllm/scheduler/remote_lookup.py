"""Asks a tier that other processes fill too what it has, without holding up the scheduler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from cache_core.plan import Plan
from cache_core.residency import Residency
from cache_core.tiers import Tier
from cache_core.tiers.tier import Read

logger = logging.getLogger("lmcache")


class RemoteLookup:
    """The open questions to a tier that other processes fill too, by request. ``tier`` is a
    connection of its own."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._pool = ThreadPoolExecutor(2, "lmcache-ask")
        self._open: dict[str, tuple[Sequence[bytes], Future[list[Read]]]] = {}
        self._asked: set[str] = set()
        self._unheard: set[str] = set()

    def plan(
        self, request: str, keys: Sequence[bytes], residency: Residency, run: bool = True
    ) -> Plan | None:
        """Asks what the tier has of the request's chunks, and adopts them: of a ``run`` those up to
        the first that nobody has. Returns what leaves the tier for them; None: not known yet. One
        round trip for what nobody here knows of, asked for once, and for what was not heard of for
        long; again if that is so once more, unless the tier did not answer."""
        hit = residency.lookup(keys, run)
        rest = keys[len(hit) :]
        if not run:
            known = set(hit.keys)
            rest = [key for key in keys if key not in known]
        if request not in self._open:
            unsure = [] if request in self._unheard else residency.unsure(hit)
            asked = unsure if request in self._asked else [*unsure, *rest]
            if not asked:
                return Plan(())
            self._asked.add(request)
            self._open[request] = (asked, self._pool.submit(self._tier.read, asked, None))
        question, future = self._open[request]
        if not future.done():
            return None
        del self._open[request]
        try:
            answers = [Read(answer) for answer in future.result()]
        except Exception:  # a tier of a third party may raise: it costs hits, never a request
            logger.exception("asking for %d chunks failed", len(question))
            answers = [Read.LATER] * len(question)
        if Read.LATER in answers:
            self._unheard.add(request)
        register = residency.register_run if run else residency.register
        return register(rest, residency.heard(question, answers))

    def forget(self, request: str) -> None:
        """Forgets the questions of a request that has ended."""
        self._open.pop(request, None)
        self._asked.discard(request)
        self._unheard.discard(request)

    def forget_all(self) -> None:
        """Drops the open questions, which are not wanted any more: each request may ask again."""
        self._open.clear()

    def close(self) -> None:
        """Ends the questions and the connection."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tier.close()
