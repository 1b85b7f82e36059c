"""Generations of weights: which one keys are of, and what is left in tiers of earlier ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from cache_core.adapters.vllm.identity import Hashers
from cache_core.adapters.vllm.tracked import Tracked
from cache_core.adapters.vllm.transfers import Transfers
from cache_core.ledger import NOWHERE, Ledger, Move, Plan

logger = logging.getLogger("lmcache")


class Generations:
    """Begins a new one when weights are, or may be, others."""

    def __init__(self, hashers: Hashers, transfers: Transfers, tiers: int) -> None:
        self.number = 0
        self._hashers, self._transfers, self._tiers = hashers, transfers, tiers
        self._last = 0  # transfers up to this number are of earlier generations

    def renew(self, why: str, requests: Iterable[Tracked], ledger: Ledger | None) -> Plan:
        """From here on nothing that was kept is found. What ``requests`` have computed is not
        saved. Returns what frees the rest; chunks in use are freed by :meth:`ended`."""
        logger.info("%s: nothing that was kept until now is used again", why)
        self._hashers.renew()
        self.number += 1
        self._last = self._transfers.last
        for tracked in requests:
            tracked.renew(self._hashers.hasher(tracked.adapter, tracked.salt))
        return Plan(tuple(ledger.clear()) if ledger is not None else ())

    def ended(self, number: int, keys: Iterable[bytes], ledger: Ledger) -> Plan:
        """A load or save of these chunks has ended. Returns what frees those of an earlier
        generation, but for what is still read."""
        if number > self._last:
            return Plan(())
        reading = self._transfers.reading()
        return Plan(
            tuple(
                Move(key, tier, NOWHERE, -1)
                for key in dict.fromkeys(keys)
                if key not in reading
                for tier in range(self._tiers)
                if ledger.forget(key, tier)
            )
        )
