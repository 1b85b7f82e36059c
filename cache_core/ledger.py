"""Knows who holds what: lookup, pins, placement. Decides everything and moves no byte.

The same Ledger runs under the engines, under the simulator (tiers without bytes) and in an engine's
scheduler process. It is not thread-safe: :class:`cache_core.cache.TieredCache` holds one lock
around it. The books themselves are csrc/ledger/ledger.cpp: a record per chunk, an order per tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cache_core import _native
from cache_core.plan import ENGINE, NOWHERE, PLACEMENTS, Hit, Move, Placement, Plan
from cache_core.policies import LRU, Admission, PolicyMaker

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
    """Decides what a stack of tiers holds, fastest first.

    ``capacities`` are in chunks; None is unbounded. ``write_on_insertion`` keeps a copy in every
    tier (inclusive, write-through); ``write_on_eviction`` keeps one, which moves down when it is
    evicted and up when it is used (exclusive). Each tier has an order of its own, made by
    ``policy``; a policy that never evicts makes every tier unbounded. ``admission``, if given, has
    for each tier what decides which new chunks may enter it (None: all).

    A chunk takes 64 bytes, and in each tier 16 to 40, by the policy. No call's time grows with the
    chunks that are held, pinned or on their way, but for those that are about all of them. Keys are
    of 32 bytes; a ``ValueError`` says so.
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
        self.capacities = tuple(capacities) if policy.evicts else (None,) * len(capacities)
        self.placement = placement
        self._admission = list(admission or [None] * len(self.capacities))
        if len(self._admission) != len(self.capacities):
            raise ValueError(f"{len(self._admission)} admissions for {len(capacities)} tiers")
        self._books = _native.Ledger(
            self.capacities, policy.name, policy.future, placement == "write_on_eviction", Move
        )

    def __len__(self) -> int:
        """Returns the number of distinct chunks that can be served."""
        return len(self._books)

    def __contains__(self, key: bytes) -> bool:
        """Returns whether any tier can serve the key now."""
        return self._books.fastest([key], run=False)[0] >= 0

    @property
    def evictions(self) -> list[int]:
        """Returns how many chunks each tier evicted to make space."""
        return self._books.evictions

    @property
    def refusals(self) -> list[int]:
        """Returns how many new chunks each tier's admission kept out, counted at each use."""
        return self._books.refusals

    @property
    def arriving(self) -> list[int]:
        """Returns how many chunks are on their way into each tier, all with reserved space."""
        return self._books.arriving

    @property
    def pinned(self) -> int:
        """Returns how many chunks requests have pinned, each counted once."""
        return self._books.pinned

    @property
    def steps(self) -> int:
        """Returns the steps that searches for victims took: their cost on any machine."""
        return self._books.steps

    def count(self, tier: int) -> int:
        """Returns how many chunks ``tier`` holds or has reserved space for."""
        return self._books.count(tier)

    def keys(self, tier: int) -> list[bytes]:
        """Returns the keys that ``tier`` holds or has reserved space for, the next victim first."""
        return self._books.keys(tier)

    def holds(self, key: bytes, tier: int) -> bool:
        """Returns whether ``tier`` can serve the key now."""
        return self._books.holds(key, tier)

    def where(self, keys: Iterable[bytes]) -> list[tuple[int, int]]:
        """Returns for each key the tiers that can serve it now and those that it is on its way
        into, as bits: tier 0 is 1, tier 1 is 2, and so on."""
        return self._books.where(keys)

    def follow(self) -> None:
        """Starts to record what changes, for :meth:`changed`."""
        self._books.follow()

    def changed(self) -> list[bytes]:
        """Returns the chunks that a tier got, lost or failed to get since the last call, in that
        order; one may be there twice. Empty without :meth:`follow`, after which it grows until it
        is returned."""
        return self._books.changed()

    def lookup(self, keys: Sequence[bytes]) -> Hit:
        """Returns the longest held run from the first key on. Changes nothing."""
        tiers = self._books.fastest(keys, run=True)
        return Hit(tuple(keys[: len(tiers)]), tuple(tiers))

    def held(self, keys: Sequence[bytes]) -> Hit:
        """Returns those of the keys that any tier can serve, in their order. Changes nothing."""
        tiers = self._books.fastest(keys, run=False)
        found = [(key, tier) for key, tier in zip(keys, tiers, strict=True) if tier >= 0]
        return Hit(tuple(key for key, _ in found), tuple(tier for _, tier in found))

    def restore(self, tier: int, keys: Iterable[bytes]) -> list[bytes]:
        """Takes in the chunks that ``tier`` holds from an earlier process, least recently used
        first. Returns those that it must discard: the oldest beyond its capacity, and what another
        tier of an exclusive stack has. Counts no eviction."""
        return self._books.restore(tier, keys)

    def pending(self, keys: Iterable[bytes]) -> bool:
        """Returns whether any key is on its way into a tier and can't be served by one yet."""
        return self._books.pending(keys)

    def pin(self, hit: Hit) -> Hit:
        """Protects what still stands of ``hit`` from eviction until :meth:`unpin`. Returns that
        part: a hit that was looked up earlier may have lost its tail since. A chunk that stands in
        it twice is pinned once: pins count requests."""
        current = self.lookup(hit.keys)
        self._books.pin(current.keys)
        return current

    def unpin(self, hit: Hit) -> None:
        """Ends one :meth:`pin`, which returned exactly this hit. Raises ``ValueError`` for another,
        and changes nothing then."""
        self._books.unpin(hit.keys)

    def prepare_store(
        self,
        keys: Sequence[bytes],
        counted: int = 0,
        *,
        parent: bytes | None = None,
        depth: int = 0,
    ) -> Plan:
        """Admits the chunks that one request used (hits and misses alike, in prompt order), all of
        whose KV the engine has: orders them and makes space.

        Chunks are touched tail first, so that the head of a prefix outlives its tail and what is
        held stays prefix-closed; then each tier is cut to its capacity. Evicted chunks can't be
        served from here on; admitted ones can after :meth:`complete_store`.

        A request that is admitted in parts gives all its chunks so far, of which ``counted`` have
        counted as used before. Or only those after the first ``depth``, the last of which is
        ``parent``, for as much work as those are; then the ones before keep their positions in the
        orders, until :meth:`touch` with ``counted`` moves them.
        """
        return Plan(tuple(self._books.prepare_store(keys, counted, parent, depth, self._admission)))

    def touch(self, keys: Sequence[bytes], counted: int = 0) -> None:
        """Orders the chunks that one request used where they are: the engine has no KV that could
        be stored for them. Keys that no tier has are ignored. The first ``counted`` have counted as
        used by the same request before."""
        self._books.touch(keys, counted)

    def register(self, keys: Sequence[bytes], tier: int) -> Plan:
        """Takes in chunks (in prompt order) that ``tier``, which others fill too, was found to
        hold: they can be served from now on. Makes space for them; returns what leaves for it. In
        an exclusive stack a chunk that any tier has stays there alone."""
        return Plan(tuple(self._books.register(keys, tier)))

    def complete_store(self, moves: Iterable[Move], stored: bool) -> None:
        """Ends moves that were carried out (or failed): publishes the chunks, or gives the space
        back. Raises ``ValueError`` for a move that is not under way."""
        self._books.complete_store(moves, stored)

    def forget(self, key: bytes, tier: int) -> bool:
        """Takes out a key that the tier could not serve, unless another request has pinned it or it
        is on its way into another tier (its bytes may be being read: the last one to fail takes it
        out). Returns whether it did."""
        return self._books.forget(key, tier)

    def clear(self) -> list[Move]:
        """Forgets every chunk that is neither pinned nor pending; returns the moves that free
        their bytes."""
        return self._books.clear()

    def check(self) -> None:
        """Proves the invariants; raises :class:`LedgerError` naming the broken one."""
        broken = self._books.broken()
        if broken is not None:
            raise LedgerError(broken)
