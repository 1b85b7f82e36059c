"""Looks up, loads and stores prompts of models whose layers keep different things: chunks of groups
of layers, in one cache of chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from cache_core.cache import TieredCache
from cache_core.layout import Group, Keeps, KVLayout, reach
from cache_core.plan import Hit, LoadOutcome, StoreOutcome
from cache_core.residency import Recent
from cache_core.transfer.chunks import ChunkBuffers

NumberedChunk = tuple[int, int]
"""A chunk of a group: the group's number, and which chunk of the prompt it is."""
PlaceRows = Callable[[Sequence[NumberedChunk]], ChunkBuffers | None]
"""A function that says where the engine has, or wants, these chunks of groups."""

MOST_WASTE = 0.125
"""The share of a tier's slots that groups may leave empty, where there is a way."""
_MOST_GROUPS = 1 << 10
_SEEN_CHUNKS = 1 << 16
_TRIES = 4
_Kind = tuple[Keeps, int | None]


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What one layer keeps: ``token_bytes`` of each token of a chunk and ``state_bytes`` at its
    end, and of which chunks, as in :class:`cache_core.layout.Group`."""

    name: str
    token_bytes: int
    state_bytes: int = 0
    keeps: Keeps = "all"
    span: int | None = None

    def nbytes(self, chunk_tokens: int) -> int:
        """Returns the bytes of a chunk of that many tokens."""
        return self.token_bytes * chunk_tokens + self.state_bytes


def balanced_groups(layers: Sequence[KeptLayer], chunk_tokens: int) -> tuple[Group, ...]:
    """Returns groups of these layers whose chunks have about the same size, so that a tier with
    slots of the largest one wastes little: layers that keep the same thing may be in several
    groups, and a state, which is opaque bytes, in several as well (:func:`piece`). Those that keep
    everything come first.

    Takes the fewest groups that waste no more than an eighth of their slots (:func:`wasted`), or if
    there are none those that waste least. Raises ``ValueError`` without a layer that keeps
    anything, and for more groups than can be named.
    """
    kinds: dict[_Kind, list[tuple[str, int]]] = {}
    for layer in sorted(layers, key=lambda layer: layer.keeps != "all"):
        size = layer.nbytes(chunk_tokens)
        if size:
            kinds.setdefault((layer.keeps, layer.span), []).append((layer.name, size))
    if not kinds:
        raise ValueError("no layer keeps anything")
    slots = {sum(accumulated) for kind in kinds.values() for accumulated in _heads(kind)}
    least = max((s for of, kind in kinds.items() if of[0] != "state" for _, s in kind), default=0)
    cuts: list[tuple[float, int, float, list[tuple[_Kind, list[tuple[str, int]]]]]] = []
    for slot in sorted(slots):
        if slot >= least:
            parts = [
                (of, part)
                for of, kind in kinds.items()
                for part in (_cut if of[0] == "state" else _parts)(kind, slot)
            ]
            waste = _waste([(of[0], sum(size for _, size in part)) for of, part in parts], slot)
            if len(parts) <= _MOST_GROUPS:
                cuts.append((max(waste, MOST_WASTE), len(parts), waste, parts))
    if not cuts:
        raise ValueError(f"no more than {_MOST_GROUPS} groups of layers can be named")
    *_, parts = min(cuts, key=lambda cut: cut[:3])
    return tuple(
        Group(
            number,
            tuple(name for name, _ in part),
            chunk_tokens,
            sum(size for _, size in part),
            keeps,
            span,
        )
        for number, ((keeps, span), part) in enumerate(parts)
    )


def _heads(kind: Sequence[tuple[str, int]]) -> Iterator[list[int]]:
    for count in range(1, len(kind) + 1):
        yield [size for _, size in kind[:count]]


def _parts(layers: Sequence[tuple[str, int]], slot: int) -> list[list[tuple[str, int]]]:
    parts: list[list[tuple[str, int]]] = []
    room = 0
    for name, size in layers:
        if size > room:
            parts.append([])
            room = slot
        parts[-1].append((name, size))
        room -= size
    return parts


def _cut(layers: Sequence[tuple[str, int]], slot: int) -> list[list[tuple[str, int]]]:
    """Returns parts of states: opaque bytes, which may be cut anywhere."""
    parts: list[list[tuple[str, int]]] = []
    room = 0
    for name, size in layers:
        start = 0
        while start < size:
            if not room:
                parts.append([])
                room = slot
            stop = min(size, start + room)
            whole = (start, stop) == (0, size)
            parts[-1].append((name if whole else f"{name}[{start}:{stop}]", stop - start))
            room -= stop - start
            start = stop
    return parts


def piece(name: str) -> tuple[str, slice]:
    """Returns the layer that a group has by this name, and which bytes of its state: all, but for a
    state that was cut."""
    layer, cut, of = name.partition("[")
    if not cut:
        return layer, slice(None)
    start, _, stop = of.removesuffix("]").partition(":")
    return layer, slice(int(start), int(stop))


def wasted(groups: Sequence[Group]) -> float:
    """Returns the share of a tier's slots that chunks of the groups leave empty, 0 to 1: of groups
    that keep everything, which are stored of each chunk, or of all groups, whichever is more."""
    largest = max(group.chunk_bytes for group in groups)
    return _waste([(group.keeps, group.chunk_bytes) for group in groups], largest)


def _waste(filled: Sequence[tuple[Keeps, int]], slot: int) -> float:
    each = [size for _, size in filled]
    always = [size for keeps, size in filled if keeps == "all"] or each
    return max(1 - sum(sizes) / (len(sizes) * slot) for sizes in (each, always))


def slot_layout(groups: Sequence[Group], chunk_tokens: int) -> KVLayout:
    """Returns the layout of a tier's slot that holds a chunk of any of the groups: whole bytes a
    token."""
    token = -(-max(group.chunk_bytes for group in groups) // chunk_tokens)
    return KVLayout(1, 1, token, "int8", chunk_tokens, planes=1)


def needed_rows(groups: Sequence[Group], chunks: int, chunk_tokens: int) -> list[NumberedChunk]:
    """Returns what a hit of ``chunks`` leading chunks has to have, in the prompt's order: of each
    chunk, what the groups need of it."""
    rows = [(c, g.number) for g in groups for c in g.needed(chunks, chunk_tokens)]
    return [(number, chunk) for chunk, number in sorted(rows)]


def kept_rows(
    groups: Sequence[Group], chunks: int, points: Iterable[int], chunk_tokens: int
) -> list[NumberedChunk]:
    """Returns what is worth storing of a prompt of ``chunks`` chunks, in its order: all of what a
    group keeps everything of, of the others what a hit of each of ``points`` chunks needs."""
    rows = {(c, g.number) for g in groups if g.keeps == "all" for c in range(chunks)}
    for point in points:
        rows |= {(c, g.number) for g in groups for c in g.needed(point, chunk_tokens)}
    return [(number, chunk) for chunk, number in sorted(rows)]


@dataclass(frozen=True, slots=True)
class GroupedLoad(LoadOutcome):
    """The outcome of a load of a prompt's leading ``chunks``, of which every group has what it
    needs; ``by_tier`` splits them by the slowest tier that gave a part of each. ``rows`` are the
    groups' chunks that were loaded, ``bytes`` theirs, and ``from_tiers`` how many of them and how
    many bytes came from each tier. ``seen`` leading chunks are in prompts that
    were stored lately: a hit could have been as long, had it been known."""

    rows: tuple[NumberedChunk, ...] = ()
    seen: int = 0
    from_tiers: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class PromptGroups:
    """The groups of a model over chunks of ``chunk_tokens``, and the prompts that were seen lately:
    which chunks of groups a hit needs, and which are worth storing. Knows no tier."""

    def __init__(self, groups: Sequence[Group], chunk_tokens: int) -> None:
        self.groups, self.chunk_tokens = tuple(groups), chunk_tokens
        self._by_number = {group.number: group for group in groups}
        self._seen = Recent(math.inf, _SEEN_CHUNKS)

    def every_name(self, keys: Sequence[bytes]) -> list[bytes]:
        """Returns the names of all groups' chunks of a prompt."""
        return [group.name(key) for group in self.groups for key in keys]

    def names(self, keys: Sequence[bytes], rows: Iterable[NumberedChunk]) -> list[bytes]:
        """Returns the names of these chunks of groups, where the prompt's chunks have ``keys``."""
        return [self._by_number[number].name(keys[chunk]) for number, chunk in rows]

    def nbytes(self, rows: Iterable[NumberedChunk]) -> int:
        """Returns the bytes of these chunks of groups."""
        return sum(self._by_number[number].chunk_bytes for number, _ in rows)

    def reach(
        self, keys: Sequence[bytes], held: Callable[[bytes], bool]
    ) -> tuple[int, list[NumberedChunk]]:
        """Returns how many leading chunks can be served, and what that needs."""
        chunks = reach(keys, self.groups, self.chunk_tokens, held)
        return chunks, needed_rows(self.groups, chunks, self.chunk_tokens)

    def seen(self, keys: Sequence[bytes]) -> int:
        """Returns how many leading chunks are in a prompt that was remembered."""
        return next((n for n in range(len(keys), 0, -1) if keys[n - 1] in self._seen), 0)

    def remember(self, keys: Sequence[bytes]) -> None:
        """Remembers a prompt, of too many the latest."""
        self._seen.add(reversed(keys))  # the head outlives the tail

    def forget(self) -> None:
        """Forgets all prompts."""
        self._seen.clear()

    def points(self, chunks: int, reusable: int, seen: int, loaded: int) -> list[int]:
        """Returns after how many chunks of a prompt of ``chunks`` another one may go on: at its
        end (``reusable``: where the same prompt can), where it parted from one before (``seen``),
        and where it went on itself (``loaded``). Rising."""
        found = {chunks, reusable, seen, loaded}
        return sorted(point for point in found if point >= max(1, loaded))

    def kept(self, chunks: int, points: Iterable[int]) -> list[NumberedChunk]:
        """Returns :func:`kept_rows` of a prompt."""
        return kept_rows(self.groups, chunks, points, self.chunk_tokens)


def slowest_tiers(chunks: int, rows: Sequence[NumberedChunk], tiers: Sequence[int]) -> list[int]:
    """Returns the tier that each of a hit's chunks came from, the slowest where its groups' come
    from several. ``tiers`` are those of ``rows``."""
    slowest = [-1] * chunks
    for (_, chunk), tier in zip(rows, tiers, strict=True):
        slowest[chunk] = max(slowest[chunk], tier)
    # What no group needs any more comes with what stands for it: the first chunk that is needed.
    first = next((tier for tier in slowest if tier >= 0), 0)
    return [tier if tier >= 0 else first for tier in slowest]


class GroupedCache:
    """A cache of prompts over a :class:`.TieredCache` of chunks of ``groups``.

    For one thread at a time. What a group of a window or a state has is stored only where another
    request may go on from: at the end of each prompt, and where two prompts were seen to part
    (:meth:`PromptGroups.points`; Pan et al., Marconi, MLSys 2025).
    """

    def __init__(self, cache: TieredCache, groups: Sequence[Group]) -> None:
        self.cache = cache
        self.prompts = PromptGroups(groups, cache.layout.chunk_tokens)

    def load(
        self, keys: Sequence[bytes], place: PlaceRows | None, wait_s: float = 0.0
    ) -> GroupedLoad:
        """Loads the longest prefix of ``keys`` of which every group has what it needs, to where
        ``place`` wants it (None: tiers without bytes). Waits up to ``wait_s`` seconds for chunks
        that are being stored.

        What can't be read shortens the hit: the rest is looked up and loaded again.
        """
        seen = self.prompts.seen(keys)
        seconds = 0.0
        for _ in range(_TRIES):
            chunks, rows, hit = self._acquire(keys, wait_s)
            if not rows:
                self.cache.release(hit)
                break
            loaded = self.cache.load(hit, place(rows) if place is not None else None)
            seconds += loaded.seconds
            if loaded.chunks == len(rows):
                names = [
                    self.cache.tiers[tier].name for tier in slowest_tiers(chunks, rows, hit.tiers)
                ]
                by_tier = {name: names.count(name) for name in dict.fromkeys(names)}
                moved: dict[str, tuple[int, int]] = {}
                for row, tier in zip(rows, hit.tiers, strict=True):
                    count, size = moved.get(name := self.cache.tiers[tier].name, (0, 0))
                    moved[name] = count + 1, size + self.prompts.nbytes([row])
                nbytes = sum(size for _, size in moved.values())
                return GroupedLoad(chunks, by_tier, nbytes, seconds, tuple(rows), seen, moved)
        return GroupedLoad(0, {}, 0, seconds, (), seen)

    def points(self, chunks: int, reusable: int, loaded: GroupedLoad) -> list[int]:
        """Returns :meth:`PromptGroups.points` after this load."""
        return self.prompts.points(chunks, reusable, loaded.seen, loaded.chunks)

    def store(
        self, keys: Sequence[bytes], points: Iterable[int], place: PlaceRows | None
    ) -> Future[StoreOutcome]:
        """Admits one request's chunks: ``place`` says where the engine has what :func:`kept_rows`
        says. Otherwise as :meth:`.TieredCache.store`; chunks are counted by group."""
        rows = self.prompts.kept(len(keys), points)
        self.prompts.remember(keys)
        names = self.prompts.names(keys, rows)
        return self.cache.store(names, place(rows) if place is not None else None)

    def clear(self) -> None:
        """Forgets every chunk that is not pinned, and what prompts were seen."""
        self.cache.clear()
        self.prompts.forget()

    def lookup(self, keys: Sequence[bytes]) -> int:
        """Returns how many leading chunks a load would give now. Moves and stores nothing."""
        hit, _ = self.cache.acquire_any(self.prompts.every_name(keys))
        self.cache.release(hit)
        return self.prompts.reach(keys, set(hit.keys).__contains__)[0]

    def _acquire(
        self, keys: Sequence[bytes], wait_s: float
    ) -> tuple[int, list[NumberedChunk], Hit]:
        """Pins what the longest hit needs, and nothing else."""
        held, _ = self.cache.acquire_any(self.prompts.every_name(keys), wait_s)
        tiers = dict(zip(held.keys, held.tiers, strict=True))
        chunks, rows = self.prompts.reach(keys, tiers.__contains__)
        wanted = self.prompts.names(keys, rows)
        asked = tuple(tiers.pop(name) for name in wanted)
        probes = held.probes.intersection(asked)
        rest = Hit(tuple(tiers), tuple(tiers.values()), held.probes - probes)
        self.cache.release(rest)
        return chunks, rows, Hit(tuple(wanted), asked, probes)
