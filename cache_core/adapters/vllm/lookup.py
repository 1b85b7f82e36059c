"""What tiers can give a request now: the Ledger's hit, less what can't be promised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cache_core.adapters.vllm.asking import Asking
from cache_core.adapters.vllm.options import ConnectorOptions
from cache_core.adapters.vllm.tracked import Tracked
from cache_core.ledger import Hit, Ledger, Plan
from cache_core.residency import Residency
from cache_core.suspensions import Suspensions

if TYPE_CHECKING:
    from cache_core.adapters.vllm.messages import LoadDone

_PAUSE_S = 1.0


class Lookup:
    """Looks requests up in ``ledger``: leaves out tiers that could not be read lately, and what a
    remote tier was not heard of for long, which ``asking`` asks for; ``free`` is given what leaves
    the Ledger for what it answers."""

    def __init__(
        self,
        options: ConnectorOptions,
        ledger: Ledger,
        asking: Asking | None,
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

    def hit(self, tracked: Tracked, keys: Sequence[bytes]) -> Hit:
        """What can be loaded of the request's chunks. A tier whose pause is over may be tried."""
        hit = self._ledger.lookup(keys)
        if self._residency is not None:
            hit = self._residency.sure(hit)
        # Asked again, for want of blocks, say, a request keeps the try that it was given.
        suspended = self._suspensions.out(hit.tiers) - tracked.tried
        tracked.out = self._suspensions.out(set(hit.tiers) - tracked.tried, probe=True)
        tracked.tried |= suspended - tracked.out
        return self._suspensions.without(self._ledger, hit, tracked.out)

    def again(self, tracked: Tracked) -> Hit:
        """As at the latest :meth:`hit`."""
        hit = self._ledger.lookup(tracked.upto(tracked.request.num_tokens))
        return self._suspensions.without(self._ledger, hit, tracked.out)

    def must_wait(self, tracked: Tracked, keys: Sequence[bytes]) -> bool:
        """Whether what continues the request's hit is being stored or asked for right now, and the
        request has not waited for that for too long."""
        # What is stored behind a gap makes no prefix longer.
        coming = self._ledger.pending(keys[len(self._ledger.lookup(keys)) :][:1])
        coming = coming or not self._asked(tracked, keys)
        now = self._clock()
        if not coming:
            tracked.waiting_since = None
            return False
        if tracked.waiting_since is None:
            tracked.waiting_since = now
        return now - tracked.waiting_since < self._options.wait_s

    def remembered(self, plan: Plan, keys: Sequence[bytes]) -> Plan:
        """The plan of an admission of ``keys`` without what only leaves our memory: the remote tier
        keeps that."""
        if self._residency is None:
            return plan
        return self._residency.without_forgotten(plan, keys)

    def lost(self, key: bytes, tier: int) -> None:
        """A tier could not give the chunk, and never will."""
        if self._residency is not None:
            self._residency.lost(key, tier)

    def suspended(self, done: LoadDone) -> list[int]:
        """A load was carried out: tiers that are left out of look-ups for a while from now on."""
        return [tier for tier, later in done.asked if self._suspensions.saw(tier, later)]

    def _asked(self, tracked: Tracked, keys: Sequence[bytes]) -> bool:
        """Whether the remote's answer is in (or none is needed); adopts what it has."""
        if self._asking is None or self._residency is None:
            return True
        plan = self._asking.plan(tracked.request.request_id, keys, self._residency)
        if plan is not None:
            self._free(plan)
        return plan is not None
