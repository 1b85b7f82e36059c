"""Groups of layers that keep different things: what a hit needs, what is stored, what is wasted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache_core.cache import TieredCache
from cache_core.groups import (
    MOST_WASTE,
    GroupedCache,
    KeptLayer,
    PromptGroups,
    balanced_groups,
    kept_rows,
    needed_rows,
    piece,
    slot_layout,
    slowest_tiers,
    wasted,
)
from cache_core.layout import Group, reach
from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.replay import one_order, replay_groups, replay_ledger
from cache_core.tiers import MemoryTier, NullTier
from cache_core.transfer.chunks import FlatBuffers

CHUNK = 4


def key(*names: int) -> bytes:
    return hashlib.sha256(repr(names).encode()).digest()


def keys_of(prompt: Sequence[int]) -> list[bytes]:
    return [key(*prompt[: n + 1]) for n in range(len(prompt))]


FULL = Group(0, ("a",), CHUNK, 64)
WINDOW = Group(1, ("b",), CHUNK, 48, "window", 6)
LOCAL = Group(2, ("c",), CHUNK, 64, "local", 8)
STATE = Group(3, ("d",), CHUNK, 32, "state")
GROUPS = (FULL, WINDOW, LOCAL, STATE)


def test_what_a_hit_needs_of_each_group() -> None:
    assert [list(group.needed(5, CHUNK)) for group in GROUPS] == [
        [0, 1, 2, 3, 4],
        [3, 4],  # 5 tokens before the 20th: the 15th is in the fourth chunk
        [4],  # spans begin at 16
        [4],
    ]
    assert list(LOCAL.needed(4, CHUNK)) == []
    assert [list(group.needed(0, CHUNK)) for group in GROUPS] == [[], [], [], []]
    assert list(Group(1, (), CHUNK, 1, "window", 1).needed(5, CHUNK)) == []
    assert list(Group(1, (), CHUNK, 1, "window", 5).needed(5, CHUNK)) == [4]


@pytest.mark.parametrize(("keeps", "span"), [("window", None), ("local", 0), ("all", 4)])
def test_a_span_belongs_to_a_window(keeps: str, span: int | None) -> None:
    with pytest.raises(ValueError, match="has span"):
        Group(0, (), CHUNK, 1, keeps, span)  # type: ignore[arg-type]


def test_each_group_has_names_of_its_own() -> None:
    keys = keys_of(range(20))
    names = PromptGroups(GROUPS, CHUNK).every_name(keys)
    assert len(set(names)) == 4 * 20 and names[:20] == keys
    many = [Group(number, (), CHUNK, 1).name(keys[0]) for number in range(1024)]
    assert len(set(many)) == 1024 and {len(name) for name in many} == {32}


@given(
    st.integers(0, 9),
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 8))),
    st.lists(st.sampled_from(GROUPS), min_size=1, unique=True),
)
def test_the_longest_hit(chunks: int, held: set[tuple[int, int]], groups: list[Group]) -> None:
    keys = keys_of(range(chunks))
    names = {GROUPS[number].name(keys[chunk]) for number, chunk in held if chunk < chunks}
    found = reach(keys, groups, CHUNK, names.__contains__)

    def served(n: int) -> bool:
        return all(g.name(keys[c]) in names for g in groups for c in g.needed(n, CHUNK))

    assert found == max(n for n in range(chunks + 1) if served(n))
    assert {(g.number, c) for g in groups for c in g.needed(found, CHUNK)} == set(
        needed_rows(groups, found, CHUNK)
    )


def test_what_is_stored_of_a_prompt() -> None:
    rows = kept_rows(GROUPS, 6, [2, 6], CHUNK)
    assert rows == sorted(rows, key=lambda row: (row[1], row[0]))
    by_group = {g.number: [c for number, c in rows if number == g.number] for g in GROUPS}
    assert by_group == {0: list(range(6)), 1: [0, 1, 4, 5], 2: [], 3: [1, 5]}


layers = st.lists(
    st.builds(
        KeptLayer,
        st.uuids().map(str),
        st.sampled_from([0, 64, 96, 512]),
        st.sampled_from([0, 1000, 4096]),
        st.sampled_from(["all", "state"]),
    ),
    min_size=1,
    max_size=40,
)


@given(layers, st.sampled_from([1, 16, 64]))
def test_groups_are_of_about_one_size(layers: list[KeptLayer], chunk: int) -> None:
    sizes = {layer.name: layer.nbytes(chunk) for layer in layers if layer.nbytes(chunk)}
    if not sizes:
        with pytest.raises(ValueError, match="no layer keeps anything"):
            balanced_groups(layers, chunk)
        return
    groups = balanced_groups(layers, chunk)
    assert [group.number for group in groups] == list(range(len(groups)))
    keeps = [group.keeps for group in groups]
    assert keeps == sorted(keeps)  # those of all first
    of = {layer.name: layer.keeps for layer in layers}
    pieces: dict[str, int] = dict.fromkeys(sizes, 0)
    for group in groups:
        found = 0
        for name, cut in map(piece, group.layers):
            assert of[name] == group.keeps
            size = sizes[name] if cut == slice(None) else cut.stop - cut.start
            pieces[name] += size
            found += size
        assert group.chunk_bytes == found
    assert pieces == sizes
    # No worse than a group for each kind.
    whole = {kind: sum(sizes[n] for n in sizes if of[n] == kind) for kind in set(of.values())}
    whole = {kind: size for kind, size in whole.items() if size}
    slot = max(whole.values())
    plain = 1 - sum(whole.values()) / (len(whole) * slot)
    plain = max(plain, 1 - whole.get("all", slot) / slot)
    assert wasted(groups) <= max(plain, MOST_WASTE) + 1e-9
    layout = slot_layout(groups, chunk)
    largest = max(group.chunk_bytes for group in groups)
    assert largest <= layout.chunk_bytes < largest + chunk


def test_a_small_window_wastes_no_large_slot() -> None:
    # Gemma 3: five layers with a window to each with all.
    kept = [
        KeptLayer(str(i), 100, 0, *(("window", 1024) if i % 6 else ("all",))) for i in range(60)
    ]
    groups = balanced_groups(kept, 64)
    assert [(len(g.layers), g.keeps) for g in groups] == [(10, "all"), *[(10, "window")] * 5]
    assert wasted(groups) == 0
    assert len(balanced_groups(kept[:1], 64)) == 1


def test_a_large_state_is_cut_to_the_slots_of_a_small_chunk() -> None:
    # Like Nemotron 3: 6 KiB a token, and 23 states of 2 MiB each.
    kept = [KeptLayer(f"a{i}", 1024) for i in range(6)]
    kept += [KeptLayer(f"s{i}", 0, 2_100_000, "state") for i in range(23)]
    groups = balanced_groups(kept, 64)
    assert wasted(groups) <= MOST_WASTE and groups[0].layers == tuple(f"a{i}" for i in range(6))
    covered: dict[str, list[slice]] = {}
    for group in groups[1:]:
        assert group.keeps == "state" and group.chunk_bytes <= groups[0].chunk_bytes
        for name in group.layers:
            layer, cut = piece(name)
            covered.setdefault(layer, []).append(cut)
    for i in range(23):
        cuts = covered[f"s{i}"]
        assert cuts[0].start == 0 and cuts[-1].stop == 2_100_000
        assert all(a.stop == b.start for a, b in pairwise(cuts))
    assert piece("s1") == ("s1", slice(None))
    with pytest.raises(ValueError, match="no more than 1024 groups"):
        balanced_groups([KeptLayer(str(i), 1, 0, "window", i + 2) for i in range(2000)], 1)


def flat(data: NDArray[np.uint8]) -> FlatBuffers:
    """Of the rows of an array that lives on."""
    addresses = np.arange(len(data), dtype=np.uint64) * np.uint64(data.shape[1])
    return FlatBuffers(addresses + np.uint64(data.ctypes.data), data.shape[1])


class Engine:
    """KV of every token of a prompt: its bytes name the prompt, the group and the chunk."""

    def of(self, prompt: Sequence[int], row: tuple[int, int], size: int) -> bytes:
        number, chunk = row
        seed = hashlib.sha256(repr((number, tuple(prompt[: chunk + 1]))).encode()).digest()
        return (seed * (size // 32 + 1))[:size]


class World:
    """A grouped cache over memory with bytes, and prompts that are checked as they are served."""

    def __init__(self, chunks: int = 1000, groups: Sequence[Group] = GROUPS) -> None:
        layout = slot_layout(groups, CHUNK)
        self.size, self.engine = layout.chunk_bytes, Engine()
        self.cache = TieredCache(layout, [MemoryTier("cpu", chunks, self.size)], synchronous=True)
        self.grouped = GroupedCache(self.cache, groups)

    def serve(self, prompt: Sequence[int]) -> tuple[int, int, int]:
        """Returns the chunks that were hit, and the chunks of groups loaded and stored."""
        keys = keys_of(prompt)
        buffers: dict[tuple[tuple[int, int], ...], NDArray[np.uint8]] = {}
        held: list[NDArray[np.uint8]] = []

        def place(rows: Sequence[tuple[int, int]]) -> FlatBuffers:
            buffers[tuple(rows)] = found = np.zeros((len(rows), self.size), np.uint8)
            return flat(found)

        loaded = self.grouped.load(keys[:-1], place)
        for row, data in zip(loaded.rows, buffers.get(loaded.rows, ()), strict=True):
            assert data.tobytes() == self.engine.of(prompt, row, self.size)
        points = self.grouped.points(len(keys), len(keys) - 1, loaded)

        def full(rows: Sequence[tuple[int, int]]) -> FlatBuffers:
            data = b"".join(self.engine.of(prompt, row, self.size) for row in rows)
            held.append(np.frombuffer(data, np.uint8).reshape(len(rows), -1).copy())
            return flat(held[-1])

        before = len(self.cache)
        self.grouped.store(keys, points, full).result()
        self.cache.check()
        return loaded.chunks, len(loaded.rows), len(self.cache) - before


def test_a_prompt_is_served_again_from_what_it_needs() -> None:
    world = World()
    hit, rows, stored = world.serve(range(10))
    # All of one group; of the others what two hits need, of 9 chunks and of 10.
    assert (hit, rows) == (0, 0) and stored == len(kept_rows(GROUPS, 10, [9, 10], CHUNK))
    assert stored < 2 * 10
    hit, rows, stored = world.serve(range(10))
    assert (hit, rows, stored) == (9, len(needed_rows(GROUPS, 9, CHUNK)), 0)
    assert world.serve([*range(10), 77, 78])[0] == 10  # and whatever goes on from its end


def test_a_branch_point_is_kept_once_it_is_seen() -> None:
    world = World()
    world.serve([*range(6), 100, 101, 102])
    # Nothing says yet that others go on from the sixth chunk.
    assert world.serve([*range(6), 200, 201, 202])[0] == 0
    assert world.serve([*range(6), 300, 301, 302])[0] == 6


def test_what_is_lost_shortens_a_hit() -> None:
    world = World()
    world.serve(range(10))
    world.serve([*range(10), 50])
    state = STATE.name(keys_of(range(10))[-1])
    world.cache.tiers[0].discard([state])
    assert world.serve([*range(10), 60])[0] == 9
    assert world.cache.counters["cpu"].failures == 1


def test_no_bytes_are_moved_for_what_no_group_has() -> None:
    world = World()
    assert world.grouped.lookup(keys_of(range(4))) == 0
    assert world.grouped.load([], lambda rows: None).chunks == 0
    world.serve(range(4))
    assert world.grouped.lookup(keys_of(range(4))) == 4
    world.grouped.clear()
    assert world.grouped.lookup(keys_of(range(4))) == 0 == len(world.cache)
    assert world.serve(range(4))[2] > 0


def test_the_slowest_tier_names_a_chunk() -> None:
    rows = [(0, 2), (1, 2), (0, 3)]
    assert slowest_tiers(4, rows, [0, 2, 1]) == [2, 2, 2, 1]
    assert slowest_tiers(0, [], []) == []


prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=14)


@settings(deadline=None, max_examples=60)
@given(prompts, st.integers(1, 40), st.sampled_from([GROUPS, (FULL, WINDOW), (FULL, STATE)]))
def test_a_replay_does_what_the_cache_does(
    prompts: list[list[int]], capacity: int, groups: tuple[Group, ...]
) -> None:
    layout = slot_layout(groups, CHUNK)
    cache = TieredCache(layout, [NullTier("cpu", capacity)], synchronous=True)
    grouped, expected = GroupedCache(cache, groups), []
    for prompt in prompts:
        keys = keys_of(prompt)
        loaded = grouped.load(keys[:-1], None)
        expected.append(loaded.chunks)
        grouped.store(keys, grouped.points(len(keys), len(keys) - 1, loaded), None)
    names = {k: i for i, k in enumerate({k for p in prompts for k in keys_of(p)})}
    trace = AccessTrace.of([[names[k] for k in keys_of(p)] for p in prompts], CHUNK)
    usable = [len(prompt) - 1 for prompt in prompts]
    found = replay_groups(trace, groups, [capacity], usable=usable)
    assert found.hits[:, 0].tolist() == expected
    assert found.hit_rate == pytest.approx(sum(expected) * CHUNK / trace.tokens)
    half = replay_groups(trace, groups, [capacity], usable=usable, requests=len(prompts) // 2 or 1)
    assert half.hits[:, 0].tolist() == expected[: len(prompts) // 2 or 1]


@settings(deadline=None, max_examples=60)
@given(prompts, st.integers(0, 30), st.integers(1, 3), st.sampled_from(["lru", "belady"]))
def test_one_order_decides_where_all_keep_everything(
    prompts: list[list[int]], capacity: int, count: int, policy: str
) -> None:
    groups = [Group(n, (str(n),), CHUNK, 64) for n in range(count)]
    assert one_order(groups) and not one_order(GROUPS)
    names = {k: i for i, k in enumerate({k for p in prompts for k in keys_of(p)})}
    trace = AccessTrace.of([[names[k] for k in keys_of(p)] for p in prompts], CHUNK)
    plain = replay_ledger(trace, [capacity], policy)
    found = replay_groups(trace, groups, [capacity * count], policy)
    if policy == "lru":  # others rank a chunk's parts apart
        assert found.hits.tolist() == plain.hits.tolist()
        assert found.written == (plain.written[0] * count,)
    elif count == 1:
        assert found.hits.tolist() == plain.hits.tolist()


def test_what_the_first_requests_write_is_scaled_up_to_all() -> None:
    trace = AccessTrace.of([[3 * i, 3 * i + 1, 3 * i + 2] for i in range(8)], CHUNK)
    whole = replay_groups(trace, GROUPS, [None])
    part = replay_groups(trace, GROUPS, [None], requests=2)
    assert part.rate == 0.25 and part.written == whole.written and whole.written[0] > 0


def test_tails_of_the_first_requests_are_tokens_too() -> None:
    rows, tokens = [[0, 1, 2], [0, 1, 2], [0, 1, 3]], [14, 15, 12]
    trace = AccessTrace.of(rows, CHUNK, prompt_tokens=tokens, arrivals=[0.0, 1.0, 2.0])
    part = replay_groups(trace, GROUPS, [None], requests=2)
    assert part.hit_rate == pytest.approx(3 * CHUNK / (14 + 15))
    alone = replay_groups(trace.first(2), GROUPS, [None])
    assert (alone.hits.tolist(), alone.hit_rate) == (part.hits.tolist(), part.hit_rate)
    assert len(trace.first(9)) == 3 and trace.first(0).tokens == 0
    assert replay_groups(trace, GROUPS, [None], requests=0).hit_rate == 0


def test_the_future_helps_groups_too() -> None:
    rng = np.random.default_rng(0)
    trace = AccessTrace.of(
        [
            [int(d), 100 + int(d), 200 + int(d), 300 + i]
            for i, d in enumerate(rng.zipf(1.3, 300) % 40)
        ],
        CHUNK,
    )
    rates = {p: replay_groups(trace, GROUPS, [60], p).hit_rate for p in ("lru", "belady")}
    free = replay_groups(trace, GROUPS, [None]).hit_rate
    assert rates["lru"] < rates["belady"] < free
