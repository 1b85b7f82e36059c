"""Finds what tiers can give a request now: the Ledger's hit, less what can't be promised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.scheduler.remote_lookup import RemoteLookup
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.ledger import Ledger, Plan
from cache_core.residency import Residency
from cache_core.tiers.suspensions import Suspensions

if TYPE_CHECKING:
    from cache_core.adapters.vllm.metadata import LoadDone

_PAUSE_S = 1.0


class TierLookup:
    """Looks requests up in ``ledger``: leaves out tiers that could not be read lately, and what a
    remote tier was not heard of for long, which ``asking`` asks for; ``free`` is given what leaves
    the Ledger for what it answers."""

    def __init__(
        self,
        options: ConnectorOptions,
        ledger: Ledger,
        asking: RemoteLookup | None,
        free: Callable[[Plan], None],
        clock: Callable[[], float],
    ) -> None:
        self._options, self._ledger, self._asking = options, ledger, asking
        self._free, self._clock = free, clock
        self._suspensions = Suspensions(len(options.tier_names), _PAUSE_S, clock)
        self._residency: Residency | None = None
        if asking is not None:
            shared = options.tier_names.index("remote")
            self._residency = Residency(ledger, shared, clock=clock)

    def find(self, tracked: RequestState, computed: int) -> bool:
        """Looks for the request's chunks after those that ``computed`` tokens cover, which vLLM
        has: ``tracked.found`` is what can be loaded. A tier whose pause is over may be tried.
        Returns False while the request has to wait, for what continues its hit and is being stored
        or asked for right now, and has not waited for that for too long."""
        if computed != tracked.computed:
            tracked.computed, tracked.awaited = computed, b""
        if tracked.awaited and self._ledger.pending([tracked.awaited]) and self._may_wait(tracked):
            return False
        first = computed // tracked.hasher.chunk_tokens
        keys = tracked.keys[first:]
        known = self._asked(tracked, keys)
        hit = self._ledger.lookup(keys)
        # What is stored after a gap makes no prefix longer.
        rest = keys[len(hit) : len(hit) + 1]
        tracked.awaited = rest[0] if rest and self._ledger.pending(rest) else b""
        if known and not tracked.awaited:
            tracked.waiting_since = None
        elif self._may_wait(tracked):
            return False
        if self._residency is not None:
            hit = self._residency.sure(hit)
        # Asked again, for want of blocks, say, a request keeps the try that it was given.
        suspended = self._suspensions.out(hit.tiers) - tracked.tried
        out = self._suspensions.out(set(hit.tiers) - tracked.tried, probe=True)
        tracked.tried |= suspended - out
        tracked.found = self._suspensions.without(self._ledger, hit, out)
        return True

    def remembered(self, plan: Plan, keys: Sequence[bytes]) -> Plan:
        """Returns the plan of an admission of ``keys`` without what only leaves our memory: the
        remote tier keeps that."""
        if self._residency is None:
            return plan
        return self._residency.without_forgotten(plan, keys)

    def lost(self, key: bytes, tier: int) -> None:
        """Records that a tier could not give the chunk, and never will."""
        if self._residency is not None:
            self._residency.lost(key, tier)

    def suspended(self, done: LoadDone) -> list[int]:
        """Records a load that was carried out. Returns the tiers that are left out of look-ups for
        a while from now on."""
        return [tier for tier, later in done.asked if self._suspensions.saw(tier, later)]

    def _may_wait(self, tracked: RequestState) -> bool:
        now = self._clock()
        if tracked.waiting_since is None:
            tracked.waiting_since = now
        return now - tracked.waiting_since < self._options.wait_s

    def _asked(self, tracked: RequestState, keys: Sequence[bytes]) -> bool:
        """Returns whether the remote's answer is in (or none is needed); adopts what it has."""
        if self._asking is None or self._residency is None:
            return True
        plan = self._asking.plan(tracked.request.request_id, keys, self._residency)
        if plan is not None:
            self._free(plan)
        return plan is not None
