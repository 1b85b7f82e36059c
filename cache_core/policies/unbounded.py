"""Nothing ever goes: what a tier without a limit would hit."""

from __future__ import annotations

from typing import ClassVar

from cache_core.policies.lru import LRU


class Unbounded(LRU):
    """Nothing ever goes. The Ledger then takes the tier as unbounded, whatever its capacity: the
    ceiling for every other policy. A tier of real bytes has a limit of its own and refuses what is
    over it, so this is for tiers without bytes. Its order is LRU's."""

    evicts: ClassVar[bool] = False
