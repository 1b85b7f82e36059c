"""What must always hold of a Ledger's books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cache_core.policy import Policy


def broken_invariant(
    policies: Sequence[Policy],
    capacities: Sequence[int | None],
    held: Mapping[bytes, int],
    pending: Mapping[bytes, int],
    exclusive: bool,
) -> str | None:
    """The first that does not hold, in words, or None. ``held`` and ``pending`` map keys to a bit
    per tier; ``exclusive``: a chunk has one copy."""
    for tier, (policy, capacity) in enumerate(zip(policies, capacities, strict=True)):
        owned = {k for k, mask in held.items() if mask >> tier & 1}
        coming = {k for k, mask in pending.items() if mask >> tier & 1}
        ordered = set(policy)
        if len(ordered) != len(policy):
            return f"tier {tier}: the policy lists a key twice"
        if ordered != owned | coming:
            return f"tier {tier}: {len(ordered)} keys ordered, {len(owned | coming)} owned"
        if owned & coming:
            return f"tier {tier}: a key is both held and being written"
        if capacity is not None and len(ordered) > capacity:
            return f"tier {tier}: {len(ordered)} chunks over capacity {capacity}"
    if exclusive:
        for key in held.keys() | pending.keys():
            have, come = held.get(key, 0), pending.get(key, 0)
            if (have | come).bit_count() != 1 or have & come:
                return f"exclusive chunk {key.hex()[:12]} is in several tiers"
    if 0 in held.values() or 0 in pending.values():
        return "a key with an empty tier mask is kept"
    return None
