"""The scheduler side for models whose groups of layers keep different things of a prompt: what of
them makes a hit, where it goes, and what is worth keeping."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cache_core.adapters.vllm.metadata import BlendSpec, Grown, SaveSpec, TiersOpened
from cache_core.adapters.vllm.scheduler.kept import Kept
from cache_core.adapters.vllm.scheduler.lookup import PlannedLoad, Tables, TierLookup
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.adapters.vllm.scheduler.saver import Saver
from cache_core.adapters.vllm.scheduler.scheduler import SchedulerSide
from cache_core.layout import Group, reach
from cache_core.ledger import Hit, Ledger, Move

GroupChunk = tuple[Group, int]
"""A chunk of a group: the group, and the number of the chunk in its prompt."""


class GroupRows:
    """The groups of a model: their ``tables`` are vLLM's numbers for them, a chunk has
    ``chunk_tokens`` tokens."""

    def __init__(self, groups: Sequence[Group], tables: Sequence[int], chunk_tokens: int) -> None:
        self.all = tuple(groups)
        self.whole = [group for group in groups if group.keeps == "all"]
        self.rest = [group for group in groups if group.keeps != "all"]
        self.size = chunk_tokens
        self._tables = tuple(tables)
        self._most = max(self._blocks(group) for group in groups)

    def needed(self, chunks: int, first: int) -> Iterator[GroupChunk]:
        """Yields what a hit of ``chunks`` chunks needs, if vLLM has what a hit of ``first`` does.
        Groups that keep everything come first."""
        for group in (*self.whole, *self.rest):
            for chunk in group.needed(chunks, self.size):
                if chunk >= first:
                    yield group, chunk

    def row(
        self, part: GroupChunk, tables: Tables, chunks: int, computed: int = 0
    ) -> list[int] | None:
        """Returns the row of a chunk of a group, by a request's blocks in vLLM: those that it has,
        but for the ones of the first ``computed`` tokens. None if it lacks any that is read behind
        a hit of ``chunks`` chunks."""
        group, chunk = part
        table = tables[self._tables[group.number]]
        count = self._blocks(group)
        if group.keeps == "state":
            last = (chunk + 1) * self.size // group.block_tokens
            blocks = list(table[last - 1 : last])
            read = 0
        else:
            blocks = list(table[chunk * count : (chunk + 1) * count])
            read = self._read_from(group, chunk, chunks)
        if len(blocks) < count or 0 in blocks[read:]:
            return None
        known = max(0, computed // group.block_tokens - chunk * count)
        if group.keeps != "state" and known:
            blocks[:known] = [-1] * min(known, count)
        return self._row(group, [block or -1 for block in blocks])

    def state_row(self, group: Group, block: int) -> list[int]:
        """Returns the row of a recurrent state that lies in this block."""
        return self._row(group, [block])

    def numbered(self, number: int) -> list[Group]:
        """Returns the groups that vLLM counts as one, of this number."""
        return [group for group in self.all if self._tables[group.number] == number]

    def written(self, tables: Tables, computed: int) -> list[int]:
        """Returns the blocks that a request with so many computed tokens will write to."""
        found: list[int] = []
        for number in dict.fromkeys(self._tables):
            first = computed // self.numbered(number)[0].block_tokens
            found += [block for block in tables[number][first:] if block]
        return found

    def _blocks(self, group: Group) -> int:
        return 1 if group.keeps == "state" else self.size // group.block_tokens

    def _row(self, group: Group, blocks: Sequence[int]) -> list[int]:
        return [group.number, *blocks, *[-1] * (self._most - len(blocks))]

    def _read_from(self, group: Group, chunk: int, chunks: int) -> int:
        """Returns the first block of a chunk that is read behind a hit of ``chunks`` chunks."""
        tokens, begin = chunks * self.size, chunk * self.size
        if group.span is None:
            return 0
        first = tokens - (group.span - 1)
        if group.keeps == "local":
            first = tokens // group.span * group.span
        return min(self._blocks(group), max(0, first - begin) // group.block_tokens)


class GroupedLookup(TierLookup):
    """Finds the longest hit of which each group has what it needs."""

    rows: GroupRows
    kept: Kept

    def find(self, state: RequestState, computed: int) -> bool:
        if self.awaits(state, computed):
            return False
        first = computed // self.rows.size
        # A state is of one place: what computes the last token anew begins before it.
        keys = state.keys[: (state.request.num_tokens - 1) // self.rows.size]
        known = self._known(state, keys, first)
        names = _Names(self._ledger, self.rows, keys, first)
        chunks = names.held()
        state.awaited = names.missing(names.coming(), chunks)
        state.branches = self.kept.branches(state, keys, names.whole, max(chunks, first))
        self._stop_at(state, max(chunks, first))
        if self._has_to_wait(state, known):
            return False
        hit = names.hit(chunks)
        unsure, out = self._unsure(hit), self._out(state, hit)
        if unsure or out:
            # A shorter hit needs others: of windows and states those at its own end.
            unsure = self._unsure(self._ledger.held(self._named(keys[first:])))
            suspended = self._suspensions.out(tiers := range(len(self._options.tier_names)))
            out, spare = suspended - state.tried, frozenset(tiers) - suspended
            shared = self._options.tier_names.index("remote") if unsure else 0
            chunks = names.usable(out, spare, unsure, shared)
            hit = self._suspensions.without(self._ledger, names.hit(chunks), out)
        state.found, state.reach = hit, max(chunks, first)
        return True

    def ahead(self, state: RequestState, computed: int) -> Hit | None:
        size = self.rows.size
        keys = state.keys[: (state.request.num_tokens - 1) // size]
        if not self._known(state, keys, 0, ahead=True):
            return None
        names = _Names(self._ledger, self.rows, keys, computed // size)
        return self._sound(names.hit(names.held()))

    def _stop_at(self, state: RequestState, chunks: int) -> None:
        """Has vLLM end a step at the request's next branch point behind a hit of so many chunks: a
        recurrent state can be kept only where a step ends."""
        ahead = [chunk for chunk in state.branches if chunk > chunks]
        if ahead and any(group.keeps == "state" for group in self.rows.rest):
            request = state.request
            request.shared_prefix_boundary = max(
                request.shared_prefix_boundary, min(ahead) * self.rows.size
            )

    def held(self, state: RequestState) -> int:
        return max(state.computed, state.reach * self.rows.size)

    def planned(
        self, state: RequestState, tables: Tables, end: int, last: int, blend: BlendSpec | None
    ) -> PlannedLoad:
        rows, size, start = self.rows, self.rows.size, state.computed
        parts = list(rows.needed(end // size, start // size))
        found = [rows.row(part, tables, end // size, start) for part in parts]
        blocks = np.array([row for row in found if row is not None], dtype=np.int32)
        assert len(blocks) == len(parts) == len(state.found), "vLLM gave no blocks for a hit"
        self.kept.keep(state.found.keys)
        written = blocks[:, 1:][blocks[:, 1:] > 0].tolist()
        return PlannedLoad(state.found, 0, blocks, self.split(state, end - start), written)

    def split(self, state: RequestState, external: int) -> dict[str, int]:
        """Returns the latest look-up's tokens by tier: that of the slowest of what a chunk's tokens
        need; behind the last one of all that is left."""
        rows, size, names = self.rows, self.rows.size, self._options.tier_names
        first = state.computed // size
        if external <= 0 or not state.found:
            return {}
        slowest = [0] * (state.reach - first)
        parts = rows.needed(state.reach, first)
        for (_, chunk), tier in zip(parts, state.found.tiers, strict=True):
            slowest[chunk - first] = max(slowest[chunk - first], tier)
        found: dict[str, int] = {}
        for place, tier in enumerate(slowest):
            begin, stop = (first + place) * size, (first + place + 1) * size
            tokens = stop - max(begin, state.computed)
            found[names[tier]] = found.get(names[tier], 0) + tokens
        return found

    def _known(
        self, state: RequestState, keys: Sequence[bytes], first: int, ahead: bool = False
    ) -> bool:
        """Returns whether the remote's answer is in (or none is needed); adopts what it has."""
        known = self._remote_lookup is None
        return known or self._asked(state, self._named(keys[first:]), run=False, ahead=ahead)

    def _named(self, keys: Sequence[bytes]) -> list[bytes]:
        return [group.name(key) for key in keys for group in self.rows.all]


class _Names:
    """What the Ledger has of a prompt's chunks, by group, after the ``first`` that vLLM has."""

    def __init__(self, ledger: Ledger, rows: GroupRows, keys: Sequence[bytes], first: int) -> None:
        self._ledger, self._rows, self._keys, self._first = ledger, rows, keys, first
        self._at: dict[bytes, tuple[int, int]] = {}
        self.whole = len(keys)
        """How many chunks the groups that keep everything have."""
        for group in rows.whole:
            run = ledger.lookup([group.name(key) for key in keys[first : self.whole]])
            self.whole = min(self.whole, first + len(run))

    def held(self) -> int:
        """Returns the most chunks of which each group has what it needs."""
        return self._reach(self.whole, lambda name: self._where(name)[0] > 0)

    def coming(self) -> int:
        """Returns how many that will be when what is on its way has come."""
        longest = len(self._keys)
        for group in self._rows.whole:
            chunks = range(self.whole, longest)
            names = ((chunk, group.name(self._keys[chunk])) for chunk in chunks)
            longest = next((c for c, name in names if self._where(name) == (0, 0)), longest)
        return self._reach(longest, lambda name: self._where(name) != (0, 0))

    def usable(
        self, out: Iterable[int], spare: Iterable[int], unsure: Collection[bytes], shared: int
    ) -> int:
        """Returns how many that are without what is ``unsure`` to be in the tier ``shared``, and
        without the tiers ``out``: of chunks whose fastest is one of those, those which a ``spare``
        one has too."""
        left, others = (sum(1 << tier for tier in tiers) for tiers in (out, spare))

        def has(name: bytes) -> bool:
            held = self._where(name)[0]
            if name in unsure:
                held &= ~(1 << shared)
            fastest = held & -held
            return bool(fastest & ~left or held & others)

        rows = self._rows
        return reach(self._keys, rows.all, rows.size, has, self._first)

    def _reach(self, longest: int, has: Callable[[bytes], bool]) -> int:
        """Returns how many of the first ``longest`` chunks can be used, by groups that don't keep
        everything."""
        rows = self._rows
        return reach(self._keys[:longest], rows.rest, rows.size, has, self._first)

    def missing(self, chunks: int, less: int) -> bytes:
        """Returns a name that is on its way and that a hit of ``chunks`` needs; nothing if those
        are no more than ``less``."""
        for group, chunk in self._rows.needed(chunks, self._first) if chunks > less else ():
            name = group.name(self._keys[chunk])
            if not self._where(name)[0]:
                return name
        return b""

    def hit(self, chunks: int) -> Hit:
        """Returns what is loaded for a hit of so many chunks."""
        parts = self._rows.needed(chunks, self._first)
        return self._ledger.held([group.name(self._keys[chunk]) for group, chunk in parts])

    def _where(self, name: bytes) -> tuple[int, int]:
        found = self._at.get(name)
        if found is None:
            found = self._at[name] = self._ledger.where([name])[0]
        return found


class GroupedSaver(Saver):
    """Saves chunks of groups: of those that keep everything all, of others what is worth it.

    A window's blocks are given to others while their request still runs. They are read for saves
    like any others: whoever is given them waits for that.
    """

    rows: GroupRows
    kept: Kept
    forget: Callable[[bytes], None]

    def due(self, state: RequestState, chunks: int) -> bool:
        return chunks > state.saved or state.request.request_id in self.offer.states

    def save(self, state: RequestState, chunks: int) -> SaveSpec | None:
        name, size = state.request.request_id, self.rows.size
        tables = self.offer.tables(name)
        states = [offer for offer in self.offer.states.get(name, ()) if offer[2] % size == 0]
        last = max([chunks, *(tokens // size for _, _, tokens in states)])
        if tables is None or not self._ready(state, last):
            return None
        found: list[tuple[GroupChunk, list[int]]] = []
        for part in self._computed(state, chunks):
            row = self.rows.row(part, tables, part[1] + 1)
            if row is not None:
                found.append((part, row))
        for number, block, tokens in states:
            for group in self.rows.numbered(number):
                chunk = tokens // size - 1
                if chunk >= self.kept.prompt(state) or chunk in self.kept.worth(state, group):
                    found.append(((group, chunk), self.rows.state_row(group, block)))
        self.kept.seen(state.keys[state.saved : min(chunks, self.kept.prompt(state))])
        if chunks > state.saved:
            self._saved(state, chunks)
        return self._admitted(state, found) if found else None

    def order(self, state: RequestState) -> None:
        if state.saved > state.ordered and not state.mixed:
            self._ledger.touch([*self._names(state)], len(state.keys))
            state.ordered = state.saved

    def failed(self, state: RequestState, moves: Iterable[Move]) -> None:
        if any(m.index >= 0 and m.key not in self._ledger for m in moves):
            state.saved = state.ordered = 0

    def grown(self, grown: Iterable[Grown], requests: Mapping[str, RequestState]) -> set[int]:
        after: set[int] = set()
        for _, tables, computed, anew in grown:
            after |= self.before_writing(self.rows.written(tables, computed if anew else 0))
        return after

    def _computed(self, state: RequestState, chunks: int) -> Iterator[GroupChunk]:
        """Yields chunks that are computed now and worth keeping, in the order of one use: what is
        reached first is to outlive what is reached by it."""
        rows, prompt = self.rows, self.kept.prompt(state)
        windows = [(g, self.kept.worth(state, g)) for g in rows.rest if g.keeps != "state"]
        for chunk in range(state.saved, chunks):
            for group in rows.whole:
                yield group, chunk
            for group, worth in windows:
                if chunk >= prompt or chunk in worth:
                    yield group, chunk

    def _names(self, state: RequestState) -> Iterator[bytes]:
        rows, prompt = self.rows, self.kept.prompt(state)
        rest = [(group, self.kept.worth(state, group)) for group in rows.rest]
        for chunk in range(state.saved):
            for group in rows.whole:
                yield group.name(state.keys[chunk])
            for group, worth in rest:
                if chunk >= prompt or chunk in worth:
                    yield group.name(state.keys[chunk])

    def _admitted(
        self, state: RequestState, found: Sequence[tuple[GroupChunk, list[int]]]
    ) -> SaveSpec | None:
        names = [group.name(state.keys[chunk]) for (group, chunk), _ in found]
        places = zip(names, self._ledger.where(names), strict=True)
        known = {name for name, place in places if place != (0, 0)}
        plan = self._lookup.remembered(self._ledger.prepare_store(names), names)
        passed, prompt = list[bytes](), self.kept.prompt(state)
        for name, ((group, chunk), _) in zip(names, found, strict=True):
            if group.keeps == "all":
                continue
            if chunk < prompt:
                self.kept.keep([name])
            else:
                gone = self.kept.passed(state, group, chunk, name in known)
                passed += [group.name(state.keys[old]) for old in gone]
        for name in passed:
            if not self.kept.theirs(state, name):
                self.forget(name)
        if not plan.moves:
            return None
        number, request = self._transfers.number(), state.request.request_id
        self._transfers.save(number, request, plan)
        rows = np.array([row for _, row in found], dtype=np.int32)
        moved = sorted({move.index for move in plan.moves if move.index >= 0})
        blocks = np.unique(rows[moved, 1:])
        self.reads(number, blocks[blocks > 0].tolist())
        return SaveSpec(number, request, state.epoch, plan, rows)


class GroupedSide(SchedulerSide):
    """The scheduler side of a model with several groups of layers. Hits are loaded between steps,
    whole or not at all: vLLM takes a request back whose load failed, and no part of it."""

    def _open_books(self, ranks: Sequence[TiersOpened], ledger: Ledger) -> None:
        opened = ranks[0]
        rows = GroupRows(opened.groups, opened.tables, self._size)
        kept = Kept(self._size, bool(rows.whole))
        far, size = self._remote_lookup, self._block_tokens
        lookup = GroupedLookup(self.options, ledger, far, size, self._free, self._clock)
        books = ledger, lookup, self._hashers, self._transfers
        most = self._most_pending * len(rows.all)
        saver = GroupedSaver(*books, size, most, self._count)
        lookup.rows = saver.rows = rows
        lookup.kept = saver.kept = self._kept = kept
        saver.forget = self._forget
        self._lookup, self._saver, self._rows = lookup, saver, rows

    def renew(self, why: str) -> None:
        super().renew(why)
        if self._ledger is not None:
            self._kept.renew()

    def finished(self, request: Any) -> None:
        state = self._requests.get(request.request_id)
        if state is not None and self._ledger is not None:
            self._kept.ended(state, self._rows.rest)
        super().finished(request)

    def _forget(self, name: bytes) -> None:
        assert self._ledger is not None
        tiers = range(len(self.options.tier_names))
        self._discard([(name, tier) for tier in tiers if self._ledger.forget(name, tier)])
