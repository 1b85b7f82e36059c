"""What all ranks hold, and what of it a hit takes from where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from cache_core.adapters.vllm.messages import TiersOpened
from cache_core.adapters.vllm.options import ConnectorOptions
from cache_core.ledger import Hit, Ledger
from cache_core.policy import POLICIES
from cache_core.residency import remembered


def agreed(
    ranks: Sequence[TiersOpened], options: ConnectorOptions, shared: bool
) -> tuple[Ledger, list[tuple[bytes, int]]]:
    """A Ledger of what every rank holds from earlier processes, and chunks (key, tier) that are to
    be discarded: those that only some have, or that don't fit. ``shared``: others fill the remote
    tier too."""
    capacities: list[int | None] = []
    tiers = zip(*(rank.capacities for rank in ranks), strict=True)
    for name, rooms in zip(options.tier_names, tiers, strict=True):
        bounded = [room for room in rooms if room is not None]
        capacities.append(min(bounded) if bounded else None)
        if name == "remote" and shared:
            capacities[-1] = remembered(capacities[-1])
    ledger = Ledger(capacities, POLICIES[options.policy], options.placement)
    surplus: list[tuple[bytes, int]] = []
    for tier in range(len(capacities)):
        others = [set(rank.recovered[tier]) for rank in ranks[1:]]
        everywhere = [k for k in ranks[0].recovered[tier] if all(k in other for other in others)]
        kept = set(everywhere)
        gone = ledger.restore(tier, everywhere)
        for rank in ranks:
            gone += [key for key in rank.recovered[tier] if key not in kept]
        surplus += [(key, tier) for key in dict.fromkeys(gone)]
    return ledger, surplus


def by_tier(
    options: ConnectorOptions, hit: Hit, start: int, end: int, first: int
) -> dict[str, int]:
    """Tokens ``start`` .. ``end`` of a hit whose first chunk begins at token ``first``, by tier."""
    found: dict[str, int] = {}
    size, at = options.chunk_tokens, first
    # In runs: a hit of thousands of chunks has a few.
    for tier, run in groupby(hit.tiers):
        past = at + size * sum(1 for _ in run)
        tokens = min(past, end) - max(at, start)
        if tokens > 0:
            name = options.tier_names[tier]
            found[name] = found.get(name, 0) + tokens
        at = past
    return found
