"""Who holds what: lookup, pins, placement. Decides everything and moves no byte.

The same Ledger runs under the engines, under the simulator (tiers without bytes) and, later, in
an engine's scheduler process. It is not thread-safe: :class:`cache_core.cache.TieredCache` holds
one lock around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cache_core.admission import Admission
from cache_core.invariants import broken_invariant
from cache_core.plan import ENGINE, NOWHERE, PLACEMENTS, Hit, Move, Placement, Plan
from cache_core.policy import LRU, PolicyMaker
from cache_core.use import Use, Uses

__all__ = [
    "ENGINE",
    "NOWHERE",
    "PLACEMENTS",
    "Hit",
    "Ledger",
    "LedgerError",
    "Move",
    "Placement",
    "Plan",
]


class LedgerError(AssertionError):
    """An invariant does not hold: a defect in the cache, never the user's fault."""


class Ledger:
    """Decides for a stack of tiers, fastest first.

    ``capacities`` are in chunks; None is unbounded. ``write_on_insertion`` keeps a copy in every
    tier (inclusive, write-through); ``write_on_eviction`` keeps one, which moves down when it is
    evicted and up when it is used (exclusive). Each tier has an order of its own, made by
    ``policy``; a policy that never evicts makes every tier unbounded. ``admission``, if given, has
    for each tier what decides which new chunks may enter it (None: all).
    """

    def __init__(
        self,
        capacities: Sequence[int | None],
        policy: PolicyMaker = LRU,
        placement: Placement = "write_on_insertion",
        admission: Sequence[Admission | None] | None = None,
    ) -> None:
        if placement not in PLACEMENTS:
            raise ValueError(f"placement {placement!r} is not known; use {' or '.join(PLACEMENTS)}")
        self._policies = [policy(capacity) for capacity in capacities]
        self.capacities = tuple(
            capacity if order.evicts else None
            for capacity, order in zip(capacities, self._policies, strict=True)
        )
        self.placement = placement
        self.evictions = [0] * len(self.capacities)
        self.refusals = [0] * len(self.capacities)
        """New chunks that a tier's admission kept out, counted at each use."""
        self._admission = list(admission or [None] * len(self.capacities))
        if len(self._admission) != len(self.capacities):
            raise ValueError(f"{len(self._admission)} admissions for {len(capacities)} tiers")
        self._uses = Uses()  # of every chunk that is held or pending
        self._held: dict[bytes, int] = {}  # key -> bit per tier that can serve it
        self._pending: dict[bytes, int] = {}  # key -> bit per tier that it is being written to
        self._pins: dict[bytes, int] = {}
        # Fastest tier of a bit mask, so that a lookup is one dict access per chunk.
        self._fastest = [(m & -m).bit_length() - 1 for m in range(1 << len(self.capacities))]

    def __len__(self) -> int:
        """Distinct chunks that can be served."""
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        """Whether any tier can serve the key now."""
        return key in self._held

    def count(self, tier: int) -> int:
        """Chunks that ``tier`` holds or has reserved room for."""
        return len(self._policies[tier])

    def keys(self, tier: int) -> list[bytes]:
        """Keys that ``tier`` holds or has reserved room for, the next victim first."""
        return list(self._policies[tier])

    def holds(self, key: bytes, tier: int) -> bool:
        """Whether ``tier`` can serve the key now."""
        return bool(self._held.get(key, 0) >> tier & 1)

    def lookup(self, keys: Sequence[bytes]) -> Hit:
        """The longest held run from the first key on. Changes nothing."""
        held = self._held
        fastest = self._fastest
        tiers: list[int] = []
        for key in keys:
            mask = held.get(key)
            if mask is None:
                break
            tiers.append(fastest[mask])
        return Hit(tuple(keys[: len(tiers)]), tuple(tiers))

    def held(self, keys: Sequence[bytes]) -> Hit:
        """Those of the keys that any tier can serve, in their order. Changes nothing."""
        found = [key for key in keys if key in self._held]
        return Hit(tuple(found), tuple(self._fastest[self._held[key]] for key in found))

    def restore(self, tier: int, keys: Iterable[bytes]) -> list[bytes]:
        """``tier`` holds these chunks from an earlier process, least recently used first. Returns
        those that it must discard: the oldest beyond its capacity, what another tier of an
        exclusive stack has. Counts no eviction."""
        policy = self._policies[tier]
        surplus: list[bytes] = []
        for key in keys:
            if self.placement == "write_on_eviction" and self._only_tier(key) not in (-1, tier):
                surplus.append(key)
                continue
            # Which chunk it continues is known again when a request uses it.
            self._uses.setdefault(key, Use())
            policy.touch(key, self._uses[key])
            self._held[key] = self._held.get(key, 0) | 1 << tier
        capacity = self.capacities[tier]
        while capacity is not None and len(policy) > capacity:
            victim = policy.victim(self._spared)
            if victim is None:
                raise LedgerError(f"tier {tier} is over its capacity and nothing can leave")
            policy.drop(victim)
            self._release(victim, tier)
            surplus.append(victim)
        self._forget_uses(surplus)
        return surplus

    def pending(self, keys: Iterable[bytes]) -> bool:
        """Whether any of the keys is on its way into a tier and can't be served by one yet."""
        return any(key in self._pending and key not in self._held for key in keys)

    def protected(self) -> tuple[int, int]:
        """Chunks that are pinned, and chunks that are pending."""
        return len(self._pins), len(self._pending)

    def pin(self, hit: Hit) -> Hit:
        """Protects what still stands of ``hit`` from eviction until :meth:`unpin`. Returns that
        part: a hit that was looked up earlier may have lost its tail since."""
        current = self.lookup(hit.keys)
        for key in current.keys:
            self._pins[key] = self._pins.get(key, 0) + 1
        return current

    def unpin(self, hit: Hit) -> None:
        """Ends one :meth:`pin` of exactly this hit."""
        for key in hit.keys:
            count = self._pins[key] - 1
            if count:
                self._pins[key] = count
            else:
                del self._pins[key]

    def admit(self, keys: Sequence[bytes], counted: int = 0) -> Plan:
        """One request used these chunks (hits and misses alike, in prompt order), and the engine
        has the KV of all: orders them and makes room.

        Chunks are touched tail first, so that the head of a prefix outlives its tail and what is
        held stays prefix-closed; then each tier is cut to its capacity. Evicted chunks can't be
        served from here on; admitted ones can after :meth:`settle`. A request that is admitted in
        parts gives all its chunks so far, of which ``counted`` have counted as used before.
        """
        # A chunk may stand twice in a request (content keys): its first place counts.
        index: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            index.setdefault(key, place)
        self._uses.record(index, counted)
        tail_first = list(reversed(index))
        if self.placement == "write_on_insertion":
            plan = self._insert(tail_first, index)
        else:
            plan = self._cascade(tail_first, index)
        self._forget_uses(index)
        self._forget_uses(move.key for move in plan.moves if move.target == NOWHERE)
        return plan

    def touch(self, keys: Sequence[bytes]) -> None:
        """One request used these chunks, and the engine has no KV that could be stored for them:
        orders them where they are. Keys that no tier has are ignored."""
        index: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key in self._held or key in self._pending:
                index.setdefault(key, place)
        self._uses.record(index)
        for policy in self._policies:
            for key in reversed(index):
                if key in policy:
                    policy.touch(key, self._uses[key])

    def adopt(self, keys: Sequence[bytes], tier: int) -> Plan:
        """``tier``, which others fill too, was found to hold these chunks (in prompt order): they
        can be served from now on. Makes room for them; returns what leaves for it. In an exclusive
        stack a chunk that any tier has stays there alone."""
        policy = self._policies[tier]
        new: dict[bytes, int] = {}
        exclusive = self.placement == "write_on_eviction"
        self._uses.introduce(keys)
        for key in reversed(keys):
            if key not in policy:
                if exclusive and self._only_tier(key) >= 0:
                    continue
                new[key] = ENGINE
            policy.touch(key, self._uses[key])
        gone = [Move(key, s, NOWHERE, -1) for key, s in self._cut(tier, new) if s != ENGINE]
        for key in new:
            self._held[key] = self._held.get(key, 0) | 1 << tier
        self._forget_uses((*keys, *(move.key for move in gone)))
        return Plan(tuple(gone))

    def settle(self, moves: Iterable[Move], stored: bool) -> None:
        """The moves were carried out (or failed): publishes the chunks, or gives the room back."""
        for move in moves:
            if move.target == NOWHERE:
                continue
            bit = 1 << move.target
            rest = self._pending[move.key] & ~bit
            if rest:
                self._pending[move.key] = rest
            else:
                del self._pending[move.key]
            if stored:
                self._held[move.key] = self._held.get(move.key, 0) | bit
            else:
                self._policies[move.target].drop(move.key)
                self._forget_uses([move.key])

    def forget(self, key: bytes, tier: int) -> bool:
        """The tier could not serve the key: takes it out, unless another request has pinned it
        (its bytes may be being read: the last one to fail takes it out). Returns whether it did."""
        if not self.holds(key, tier) or self._pins.get(key, 0) > 1:
            return False
        self._policies[tier].drop(key)
        self._release(key, tier)
        self._forget_uses([key])
        return True

    def clear(self) -> list[Move]:
        """Forgets every chunk that is neither pinned nor pending; returns the moves that free
        their bytes."""
        moves = []
        for tier, policy in enumerate(self._policies):
            for key in list(policy):
                if not self._spared(key):
                    policy.drop(key)
                    self._release(key, tier)
                    moves.append(Move(key, tier, NOWHERE, -1))
        self._forget_uses(move.key for move in moves)
        return moves

    def check(self) -> None:
        """Proves the invariants; raises :class:`LedgerError` naming the broken one."""
        broken = broken_invariant(
            self._policies,
            self.capacities,
            self._held,
            self._pending,
            exclusive=self.placement == "write_on_eviction",
        )
        if broken is None and any(count < 1 for count in self._pins.values()):
            broken = "a chunk is pinned less than once"
        if broken is None and self._uses.keys() != self._held.keys() | self._pending.keys():
            broken = "uses are kept of other chunks than the held and pending ones"
        if broken is not None:
            raise LedgerError(broken)

    def _spared(self, key: bytes) -> bool:
        return key in self._pins or key in self._pending

    def _forget_uses(self, keys: Iterable[bytes]) -> None:
        """Of those chunks that no tier has any more."""
        for key in keys:
            if key not in self._held and key not in self._pending:
                self._uses.pop(key, None)

    def _refused(self, tier: int, keys: Sequence[bytes]) -> set[bytes]:
        """Those of the new chunks, last chunk first, that the tier's admission keeps out."""
        admission = self._admission[tier]
        if admission is None or not keys:
            return set()
        in_order = keys[::-1]
        selected = admission.select(in_order, [self._uses[key] for key in in_order])
        refused = {key for key, enters in zip(in_order, selected, strict=True) if not enters}
        self.refusals[tier] += len(refused)
        return refused

    def _release(self, key: bytes, tier: int) -> None:
        rest = self._held[key] & ~(1 << tier)
        if rest:
            self._held[key] = rest
        else:
            del self._held[key]

    def _reserve(self, key: bytes, tier: int) -> None:
        self._pending[key] = self._pending.get(key, 0) | 1 << tier

    def _insert(self, tail_first: list[bytes], index: dict[bytes, int]) -> Plan:
        """Inclusive: every tier takes every chunk and evicts on its own."""
        leaving: list[Move] = []
        coming: list[Move] = []
        for tier, policy in enumerate(self._policies):
            new = {key: ENGINE for key in tail_first if key not in policy}
            refused = self._refused(tier, list(new))
            for key in tail_first:
                if key not in refused:
                    policy.touch(key, self._uses[key])
            for key in refused:
                del new[key]
            for key, source in self._cut(tier, new):
                if source != ENGINE:
                    leaving.append(Move(key, source, NOWHERE, -1))
            self._entered(tier, new)
            coming += [Move(key, ENGINE, tier, index[key]) for key in reversed(new)]
        # Only now: a chunk that one tier cancelled must not look pending to the next.
        for move in coming:
            self._reserve(move.key, move.target)
        return Plan((*leaving, *coming))

    def _cascade(self, tail_first: list[bytes], index: dict[bytes, int]) -> Plan:
        """Exclusive: chunks enter the fastest tier; what it evicts enters the next one as its most
        recent, and so on, which keeps one recency order over all tiers. What a tier's admission
        refuses goes on to the next one. A chunk below that another request has pinned, or that is
        on its way, stays there."""
        home: dict[bytes, int] = {}  # chunks that a slower tier holds: they leave it, or come back
        incoming: list[tuple[bytes, int]] = []
        for key in tail_first:
            tier = self._only_tier(key)
            if tier > 0 and self._spared(key):
                self._policies[tier].touch(key, self._uses[key])
                continue
            if tier > 0:
                self._policies[tier].drop(key)
                home[key] = tier
            incoming.append((key, ENGINE))
        demoted: list[Move] = []
        coming: list[Move] = []
        for tier, policy in enumerate(self._policies):
            new = {k: s for k, s in incoming if k not in policy and home.get(k) != tier}
            refused = self._refused(tier, list(new))
            for key, _ in incoming:
                if key not in refused:
                    policy.touch(key, self._uses[key])
                if home.get(key) == tier:
                    del home[key]
            onward = [(key, new.pop(key)) for key, _ in incoming if key in refused]
            incoming = self._cut(tier, new) + onward
            self._entered(tier, new)
            for key, source in new.items():
                if source == ENGINE:
                    coming.append(Move(key, ENGINE, tier, index[key]))
                else:
                    demoted.append(Move(key, source, tier, -1))
        gone = [Move(k, source, NOWHERE, -1) for k, source in incoming if source != ENGINE]
        for key, tier in home.items():
            self._release(key, tier)
            gone.append(Move(key, tier, NOWHERE, -1))
        demoted.sort(key=lambda m: -m.source)
        coming.sort(key=lambda m: (m.target, m.index))
        for move in (*demoted, *coming):
            self._reserve(move.key, move.target)
        return Plan((*gone, *demoted, *coming))

    def _only_tier(self, key: bytes) -> int:
        """The one tier of an exclusive stack that has the key, held or on its way; -1 if none."""
        mask = self._held.get(key, 0) | self._pending.get(key, 0)
        return mask.bit_length() - 1

    def _cut(self, tier: int, new: dict[bytes, int]) -> list[tuple[bytes, int]]:
        """Evicts until the tier fits, as its policy says; returns (key, where its bytes are). New
        keys can fall out again (they are taken from ``new``); if nothing else can go, they must,
        last chunk first."""
        policy = self._policies[tier]
        capacity = self.capacities[tier]
        out: list[tuple[bytes, int]] = []
        while capacity is not None and len(policy) > capacity:
            key = policy.victim(self._spared)
            if key is not None:
                policy.evict(key)
            elif new:
                key = next(iter(new))
                policy.drop(key)
            else:
                raise LedgerError(f"tier {tier} is over its capacity and nothing can leave")
            if key in new:
                out.append((key, new.pop(key)))
            else:
                self._release(key, tier)
                self.evictions[tier] += 1
                out.append((key, tier))
        return out

    def _entered(self, tier: int, new: dict[bytes, int]) -> None:
        """Tells the tier's admission what is going to be written."""
        admission = self._admission[tier]
        if admission is not None:
            admission.entered(len(new))
