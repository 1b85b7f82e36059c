"""Keeps what is believed of a tier that other processes fill too, and for how long: keys of late,
held and missing ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from cache_core.ledger import NOWHERE, Ledger
from cache_core.plan import Hit, Plan
from cache_core.tiers.tier import Read


class Recent:
    """Keys that were added within the last ``seconds``; of more than ``most`` the latest.

    Adding a key again renews it. Not thread-safe. ``clock`` in seconds, monotonic.
    """

    def __init__(
        self, seconds: float, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._added: dict[bytes, float] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._added)

    def __contains__(self, key: bytes) -> bool:
        added = self._added.get(key)
        return added is not None and self._clock() - added < self._seconds

    def add(self, keys: Iterable[bytes]) -> None:
        """Adds or renews keys, and forgets what is too old or too many."""
        now = self._clock()
        for key in keys:
            self._added.pop(key, None)
            self._added[key] = now
        surplus = list(islice(self._added, max(0, len(self._added) - self._most)))
        self.discard(surplus)
        while self._added:
            oldest = next(iter(self._added))
            if now - self._added[oldest] < self._seconds:
                break
            del self._added[oldest]

    def discard(self, keys: Iterable[bytes]) -> None:
        """Forgets keys; unknown ones are ignored."""
        for key in keys:
            self._added.pop(key, None)

    def clear(self) -> None:
        """Forgets all keys."""
        self._added.clear()


MOST_REMEMBERED = 1 << 20
FRESH_S = 10.0


def remembered(capacity: int | None) -> int:
    """Returns how many chunks a Ledger may keep in mind of a shared tier: an unbounded one's fill
    no memory without end."""
    return MOST_REMEMBERED if capacity is None else capacity


class Residency:
    """A Ledger's picture of its shared tier number ``tier``.

    A server evicts without a word. What was last heard of more than ``fresh_s`` seconds ago is not
    promised before the tier was asked again, together with what the Ledger doesn't know: one round
    trip for both. What it answers ``LATER`` is not promised either, and stays remembered. Not
    thread-safe: who guards the Ledger guards this. ``clock`` in seconds, monotonic.
    """

    def __init__(
        self,
        ledger: Ledger,
        tier: int,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._tier = tier
        self._heard = Recent(fresh_s, MOST_REMEMBERED, clock)

    def lookup(self, keys: Sequence[bytes], run: bool = True) -> Hit:
        """Returns what the Ledger believes: the longest held run from the first key on, or without
        ``run`` all keys that are held."""
        return self._ledger.lookup(keys) if run else self._ledger.held(keys)

    def unsure(self, hit: Hit) -> list[bytes]:
        """Returns the hit's chunks that would come from the tier, and were not heard of lately."""
        pairs = zip(hit.keys, hit.tiers, strict=True)
        return [key for key, tier in pairs if tier == self._tier and key not in self._heard]

    def heard(self, keys: Iterable[bytes], answers: Iterable[Read]) -> set[bytes]:
        """Takes in what the tier answered for chunks that it was asked for, or gave: forgets what
        is gone. Returns what the tier has."""
        found: dict[Read, list[bytes]] = {answer: [] for answer in Read}
        for key, answer in zip(keys, answers, strict=True):
            found[Read(answer)].append(key)
        self._heard.add(found[Read.HERE])
        self._heard.discard(found[Read.GONE])
        for key in found[Read.GONE]:
            self._ledger.forget(key, self._tier)
        return set(found[Read.HERE])

    def lost(self, key: bytes, tier: int) -> None:
        """Records that a tier, perhaps this one, could not give the chunk."""
        if tier == self._tier:
            self._heard.discard([key])

    def register(self, keys: Iterable[bytes], here: set[bytes]) -> Plan:
        """Lets those of the keys that the tier has be served from now on. Returns what the tier's
        capacity lets go for them."""
        new = [key for key in keys if key in here and not self._ledger.holds(key, self._tier)]
        return self.without_forgotten(self._ledger.register(new, self._tier)) if new else Plan(())

    def register_run(self, keys: Sequence[bytes], here: set[bytes]) -> Plan:
        """Lets the keys that the tier has be served from now on, up to the first gap: what is after
        it can't be used. What another tier holds is no gap. Returns what leaves the tier for
        them."""
        gaps = (n for n, key in enumerate(keys) if key not in here and key not in self._ledger)
        return self.register(keys[: next(gaps, len(keys))], here)

    def sure(self, hit: Hit, *, prefix: bool = True) -> Hit:
        """Returns what of the hit can be promised: its leading chunks, or with ``prefix`` False all
        those that are not unsure."""
        unsure = set(self.unsure(hit))
        if not unsure:
            return hit
        rows = [row for row, key in enumerate(hit.keys) if key not in unsure]
        if prefix:
            rows = [row for place, row in enumerate(rows) if place == row]
        return Hit(tuple(hit.keys[row] for row in rows), tuple(hit.tiers[row] for row in rows))

    def without_forgotten(self, plan: Plan, used: Iterable[bytes] = ()) -> Plan:
        """Returns the plan of an admission of the ``used`` chunks without what left the tier only
        because no more is kept in mind: the server has that, and it may be anybody's."""
        if self._ledger.capacities[self._tier] != MOST_REMEMBERED:
            return plan
        spared = set(used)
        return Plan(
            tuple(
                move
                for move in plan.moves
                if (move.source, move.target) != (self._tier, NOWHERE) or move.key in spared
            )
        )
