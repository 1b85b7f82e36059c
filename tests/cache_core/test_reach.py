"""How long a hit is where layers keep different things, against what each token reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core.layout import Group, Keeps, reach

SIZE, CHUNKS = 4, 8
KEYS = [bytes(31) + bytes([16 * (number + 1)]) for number in range(CHUNKS)]
KINDS: list[tuple[Keeps, int | None]] = [("all", None), ("state", None)]
KINDS += [("window", span) for span in (1, 2, 5, 9, 100)]
KINDS += [("local", span) for span in (1, 3, 4, 8, 10, 100)]


def group(number: int, keeps: Keeps, span: int | None) -> Group:
    return Group(number, (f"layer {number}",), SIZE, 64, keeps, span)


def read_behind(keeps: Keeps, span: int | None, tokens: int) -> set[int]:
    """The tokens, of the first ``tokens``, that the next one reads; of a state its last."""
    before = range(tokens)
    if keeps == "state":
        return set(before[-1:])
    if keeps == "window":
        assert span is not None
        return {at for at in before if tokens - at < span}
    if keeps == "local":
        assert span is not None
        return {at for at in before if at // span == tokens // span}
    return set(before)


@pytest.mark.parametrize(("keeps", "span"), KINDS)
def test_what_is_needed_is_what_is_read(keeps: Keeps, span: int | None) -> None:
    for chunks in range(CHUNKS + 1):
        needed = group(0, keeps, span).needed(chunks, SIZE)
        read = read_behind(keeps, span, chunks * SIZE)
        assert list(needed) == sorted({at // SIZE for at in read})


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    holes=st.sets(st.tuples(st.integers(0, 2), st.integers(0, CHUNKS - 1))),
    known=st.integers(0, CHUNKS),
)
def test_a_hit_is_as_long_as_every_group_can_serve(
    kinds: list[tuple[Keeps, int | None]], holes: set[tuple[int, int]], known: int
) -> None:
    groups = [group(number, *kind) for number, kind in enumerate(kinds)]
    names = {each.name(key): (each.number, n) for each in groups for n, key in enumerate(KEYS)}
    asked: list[bytes] = []

    def held(name: bytes) -> bool:
        asked.append(name)
        return names[name] not in holes

    def served(chunks: int) -> bool:
        return all(
            (each.number, at // SIZE) not in holes
            for each in groups
            for at in read_behind(each.keeps, each.span, chunks * SIZE)
            if at // SIZE >= known
        )

    longest = max(n for n in range(known, CHUNKS + 1) if n == known or served(n))
    assert reach(KEYS, groups, SIZE, held, known) == longest
    assert len(asked) == len(set(asked)), "each name is asked for once"
    assert all(names[name][1] >= known for name in asked), "the engine has those"
