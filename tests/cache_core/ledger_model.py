"""The Ledger on plain dicts, with no thought of speed: what csrc/ledger/ledger.cpp must answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cache_core.plan import ENGINE, NOWHERE, Move
from cache_core.policies import Admission
from tests.cache_core.order_models import LRUModel, Use


class LedgerModel:
    def __init__(
        self,
        capacities: Sequence[int | None],
        orders: Sequence[LRUModel],
        exclusive: bool,
        admissions: Sequence[Admission | None],
    ) -> None:
        self.capacities, self.orders, self.exclusive = capacities, orders, exclusive
        self.admissions = admissions
        self.uses: dict[bytes, Use] = {}
        self.held: set[tuple[bytes, int]] = set()
        self.pending: set[tuple[bytes, int]] = set()
        self.pins: list[frozenset[bytes]] = []
        self.turn = 0
        self.evictions = [0] * len(orders)
        self.refusals = [0] * len(orders)

    def tiers_of(self, key: bytes, of: set[tuple[bytes, int]]) -> list[int]:
        return [tier for tier in range(len(self.orders)) if (key, tier) in of]

    def lookup(self, keys: Sequence[bytes]) -> list[tuple[bytes, int]]:
        hit: list[tuple[bytes, int]] = []
        for key in keys:
            tiers = self.tiers_of(key, self.held)
            if not tiers:
                break
            hit.append((key, tiers[0]))
        return hit

    def waits(self, keys: Sequence[bytes]) -> bool:
        return any(
            self.tiers_of(key, self.pending) and not self.tiers_of(key, self.held) for key in keys
        )

    def spared(self, key: bytes) -> bool:
        return bool(self.tiers_of(key, self.pending)) or any(key in pin for pin in self.pins)

    def forget_uses(self) -> None:
        owned = {key for key, _ in self.held | self.pending}
        self.uses = {key: use for key, use in self.uses.items() if key in owned}

    def record(self, index: dict[bytes, int], counted: int, parent: bytes | None = None) -> None:
        for key, depth in index.items():
            times = self.uses[key].times if key in self.uses else 0
            times = max(1, times + (depth >= counted))
            self.uses[key] = Use(parent, depth, times, self.turn)
            parent = key
        self.turn += not counted

    def restore(self, tier: int, keys: Sequence[bytes]) -> list[bytes]:
        surplus = []
        for key in keys:
            elsewhere = {*self.tiers_of(key, self.held)} - {tier}
            if self.exclusive and elsewhere:
                surplus.append(key)
                continue
            self.uses.setdefault(key, Use())
            self.orders[tier].touch(key, self.uses[key])
            self.held.add((key, tier))
        capacity, order = self.capacities[tier], self.orders[tier]
        while capacity is not None and len(order) > capacity:
            key = order.victim(self.spared) or next(iter(order))
            order.drop(key)
            self.held.remove((key, tier))
            surplus.append(key)
        self.forget_uses()
        return surplus

    def prepare_store(
        self, keys: Sequence[bytes], counted: int, parent: bytes | None = None, depth: int = 0
    ) -> list[Move]:
        index: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            index.setdefault(key, depth + place)
        self.record(index, counted, parent)
        tail_first = list(reversed(index))
        plan = (self.cascade if self.exclusive else self.insert)(tail_first, index)
        self.forget_uses()
        return plan

    def touch(self, keys: Sequence[bytes], counted: int) -> None:
        index: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key in self.uses:
                index.setdefault(key, place)
        self.record(index, counted)
        for order in self.orders:
            for key in reversed(index):
                if key in order:
                    order.touch(key, self.uses[key])

    def register(self, keys: Sequence[bytes], tier: int) -> list[Move]:
        order = self.orders[tier]
        new: dict[bytes, int] = {}
        for depth, key in enumerate(keys):
            parent = keys[depth - 1] if depth else None
            self.uses.setdefault(key, Use(parent, depth, 1, self.turn))
        for key in reversed(keys):
            if key not in order:
                if self.exclusive and self.tiers_of(key, self.held | self.pending):
                    continue
                new[key] = ENGINE
            order.touch(key, self.uses[key])
        gone = [Move(key, s, NOWHERE, -1) for key, s in self.cut(tier, new) if s != ENGINE]
        self.held |= {(key, tier) for key in new}
        self.forget_uses()
        return gone

    def complete_store(self, moves: Iterable[Move], stored: bool) -> None:
        for move in moves:
            if move.target == NOWHERE:
                continue
            self.pending.remove((move.key, move.target))
            if stored:
                self.held.add((move.key, move.target))
            else:
                self.orders[move.target].drop(move.key)
            self.forget_uses()

    def forget(self, key: bytes, tier: int) -> bool:
        if (key, tier) not in self.held or sum(key in pin for pin in self.pins) > 1:
            return False
        if any(pending == key for pending, _ in self.pending):
            return False
        self.orders[tier].drop(key)
        self.held.remove((key, tier))
        self.forget_uses()
        return True

    def clear(self) -> list[Move]:
        moves = []
        for tier, order in enumerate(self.orders):
            for key in list(order):
                if not self.spared(key):
                    order.drop(key)
                    self.held.remove((key, tier))
                    moves.append(Move(key, tier, NOWHERE, -1))
        self.forget_uses()
        return moves

    def refused(self, tier: int, keys: list[bytes]) -> set[bytes]:
        """Those of the new keys, last chunk first, that the tier's admission keeps out."""
        admission = self.admissions[tier]
        if admission is None or not keys:
            return set()
        in_order = keys[::-1]
        selected = admission.select(in_order, [self.uses[key].times for key in in_order])
        refused = {key for key, enters in zip(in_order, selected, strict=True) if not enters}
        self.refusals[tier] += len(refused)
        return refused

    def insert(self, tail_first: list[bytes], index: dict[bytes, int]) -> list[Move]:
        leaving: list[Move] = []
        coming: list[Move] = []
        for tier, order in enumerate(self.orders):
            new = {key: ENGINE for key in tail_first if key not in order}
            refused = self.refused(tier, list(new))
            for key in tail_first:
                if key not in refused:
                    order.touch(key, self.uses[key])
            new = {key: source for key, source in new.items() if key not in refused}
            for key, source in self.cut(tier, new):
                if source != ENGINE:
                    leaving.append(Move(key, source, NOWHERE, -1))
            self.entered(tier, new)
            coming += [Move(key, ENGINE, tier, index[key]) for key in reversed(new)]
        self.pending |= {(move.key, move.target) for move in coming}
        return [*leaving, *coming]

    def cascade(self, tail_first: list[bytes], index: dict[bytes, int]) -> list[Move]:
        home: dict[bytes, int] = {}
        incoming: list[tuple[bytes, int]] = []
        for key in tail_first:
            tier = max(self.tiers_of(key, self.held | self.pending), default=-1)
            if tier > 0 and self.spared(key):
                self.orders[tier].touch(key, self.uses[key])
                continue
            if tier > 0:
                self.orders[tier].drop(key)
                home[key] = tier
            incoming.append((key, ENGINE))
        demoted: list[Move] = []
        coming: list[Move] = []
        for tier, order in enumerate(self.orders):
            new = {k: s for k, s in incoming if k not in order and home.get(k) != tier}
            refused = self.refused(tier, list(new))
            for key, _ in incoming:
                if key not in refused:
                    order.touch(key, self.uses[key])
                if home.get(key) == tier:
                    del home[key]
            onward = [(key, new.pop(key)) for key, _ in incoming if key in refused]
            incoming = self.cut(tier, new) + onward
            self.entered(tier, new)
            for key, source in new.items():
                place = index[key] if source == ENGINE else -1
                (coming if source == ENGINE else demoted).append(Move(key, source, tier, place))
        gone = [Move(key, source, NOWHERE, -1) for key, source in incoming if source != ENGINE]
        for key, tier in home.items():
            self.held.remove((key, tier))
            gone.append(Move(key, tier, NOWHERE, -1))
        demoted.sort(key=lambda move: -move.source)
        coming.sort(key=lambda move: (move.target, move.index))
        self.pending |= {(move.key, move.target) for move in (*demoted, *coming)}
        return [*gone, *demoted, *coming]

    def cut(self, tier: int, new: dict[bytes, int]) -> list[tuple[bytes, int]]:
        order, capacity = self.orders[tier], self.capacities[tier]
        out: list[tuple[bytes, int]] = []
        while capacity is not None and len(order) > capacity:
            key = order.victim(self.spared)
            if key is not None:
                order.evict(key)
            else:
                key = next(iter(new))
                order.drop(key)
            if key not in new:
                self.held.remove((key, tier))
                self.evictions[tier] += 1
            out.append((key, new.pop(key, tier)))
        return out

    def entered(self, tier: int, new: dict[bytes, int]) -> None:
        admission = self.admissions[tier]
        if admission is not None:
            admission.entered(len(new))
