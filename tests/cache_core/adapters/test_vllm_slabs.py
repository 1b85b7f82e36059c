"""How groups of layers are cut, so that tiers, whose slabs are of one size, waste little."""

from __future__ import annotations

import pytest

from cache_core.adapters.vllm.kv_shape import GroupedShape, sized
from cache_core.layout import Group, Keeps

Layers = tuple[Keeps, int, int]  # what they keep, how many, and the bytes of one in a chunk


def shape(*kinds: Layers) -> tuple[GroupedShape, dict[str, int]]:
    groups: list[Group] = []
    sizes: dict[str, int] = {}
    for number, (keeps, count, nbytes) in enumerate(kinds):
        names = tuple(f"{number}.{layer}" for layer in range(count))
        sizes |= dict.fromkeys(names, nbytes)
        span = 128 if keeps in ("window", "local") else None
        groups.append(Group(number, names, 32, 0, keeps, span))
    return GroupedShape(tuple(groups), 32, (1,) * len(kinds), 8), sizes


def waste(groups: tuple[Group, ...]) -> float:
    used = sum(group.chunk_bytes for group in groups)
    return len(groups) * max(group.chunk_bytes for group in groups) / used - 1


@pytest.mark.parametrize(
    "kinds",
    [
        (("all", 12, 4096), ("window", 12, 4096)),
        (("all", 10, 8192), ("window", 52, 8192)),
        (("all", 12, 65536), ("state", 36, 70000)),
    ],
)
def test_little_of_a_slab_is_empty(kinds: tuple[Layers, ...]) -> None:
    given, sizes = shape(*kinds)
    groups, tables = sized(given, sizes, pieces=True)
    assert waste(groups) <= 1 / 16
    assert [group.number for group in groups] == list(range(len(groups)))
    for number, whole in enumerate(given.groups):
        pieces = [g for g, table in zip(groups, tables, strict=True) if table == number]
        assert sum((piece.layers for piece in pieces), ()) == whole.layers
        assert {(p.keeps, p.span, p.block_tokens) for p in pieces} == {
            (whole.keeps, whole.span, whole.block_tokens)
        }
        assert all(p.chunk_bytes == sum(sizes[name] for name in p.layers) for p in pieces)


def test_the_largest_slab_is_taken_that_wastes_little() -> None:
    given, sizes = shape(("all", 12, 4096), ("window", 12, 4096))
    assert len(sized(given, sizes, pieces=True)[0]) == 2


def test_where_every_cut_wastes_more_the_least_is_taken() -> None:
    given, sizes = shape(("all", 1, 100), ("window", 7, 100), ("state", 3, 230))
    groups, _ = sized(given, sizes, pieces=True)
    whole = sized(given, sizes, pieces=False)[0]
    assert [group.chunk_bytes for group in groups] == [100, 200, 200, 200, 100, 230, 230, 230]
    assert waste(groups) < waste(whole)


def test_a_layer_is_never_cut() -> None:
    given, sizes = shape(("all", 1, 1000), ("window", 1, 10))
    groups, tables = sized(given, sizes, pieces=True)
    assert [group.chunk_bytes for group in groups] == [1000, 10] and tables == (0, 1)


def test_stages_have_the_same_groups_whatever_their_layers_are() -> None:
    first = sized(*shape(("all", 2, 4096), ("window", 9, 4096)), pieces=False)
    second = sized(*shape(("all", 3, 4096), ("window", 0, 4096)), pieces=False)
    assert first[1] == second[1] == (0, 1)
    assert [len(group.layers) for group in second[0]] == [3, 0]
