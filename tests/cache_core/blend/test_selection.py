"""Selections keep exactly their budget, of the right rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_core.blend.selection import (
    KV,
    SELECTIONS,
    Choice,
    Reused,
    budget,
    make_selection,
)

LAYERS = 6


def prompt(chunks: list[tuple[int, int]], tokens: int) -> Reused:
    kv = KV(torch.zeros(LAYERS, tokens, 1, 2), torch.zeros(LAYERS, tokens, 1, 2))
    return Reused(torch.zeros(tokens, dtype=torch.int64), (0, tokens - 3), 2, tuple(chunks), kv)


def run(name: str, choice: Choice, reused: Reused) -> list[torch.Tensor]:
    """The rows of each layer, as the forward would ask for them."""
    selection = make_selection(name, choice)
    rows, kept = selection.begin(reused), []
    generator = torch.Generator().manual_seed(choice.seed)
    for layer in range(LAYERS):
        see = getattr(selection, "see", None)
        if see is not None:
            see(layer, torch.randn(2, 3, 2), torch.randn(1, len(reused.ids), 2))
        shape = (len(rows), 1, 2)
        new, old = (
            KV(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
            for _ in range(2)
        )
        rows = rows[selection.narrow(layer, rows, new, old)]
        kept.append(rows)
    return kept


@given(
    name=st.sampled_from(list(SELECTIONS)),
    ratio=st.floats(0, 1),
    lengths=st.lists(st.integers(1, 20), max_size=5),
    check=st.integers(0, 3),
    steps=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_the_budget_is_kept_to_the_token(
    name: str, ratio: float, lengths: list[int], check: int, steps: int, seed: int
) -> None:
    chunks, end = [], 2
    for length in lengths:
        chunks.append((end, end + length))
        end += length
    reused = prompt(chunks, end + 3)
    total = sum(lengths)
    kept = run(name, Choice(ratio, check, steps, seed), reused)
    expected = {"none": 0, "full": total}.get(name, budget(ratio, total))
    assert len(kept[-1]) == expected
    for below, above in pairwise(kept):
        assert set(above.tolist()) <= set(below.tolist())
    for rows in kept:
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert set(rows.tolist()) <= set(reused.candidates.tolist())


def test_the_largest_deviations_are_kept() -> None:
    selection = make_selection("hkvd", Choice(0.5, check_layer=1))
    rows = selection.begin(prompt([(2, 6)], 9))
    old = KV(torch.zeros(4, 1, 2), torch.zeros(4, 1, 2))
    size = torch.tensor([1.0, 4.0, 2.0, 3.0])[:, None, None].expand(4, 1, 2)
    assert selection.narrow(0, rows, KV(size, size), old).all()
    assert selection.narrow(1, rows, KV(size, size), old).tolist() == [False, True, False, True]


def test_gradual_narrowing_falls_layer_by_layer() -> None:
    kept = run("hkvd", Choice(0.2, check_layer=1, steps=2), prompt([(2, 102)], 105))
    assert [len(rows) for rows in kept] == [100, 30, 20, 20, 20, 20]


def test_the_first_share_of_each_chunk() -> None:
    [rows, *_] = run("first", Choice(0.25), prompt([(2, 10), (10, 18)], 21))
    assert rows.tolist() == [2, 3, 10, 11]


def test_random_repeats_with_its_seed() -> None:
    reused = prompt([(2, 102)], 105)
    draws = [run("random", Choice(0.2, seed=seed), reused)[0].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_what_the_question_attends_to_is_kept() -> None:
    selection = make_selection("query", Choice(0.25, check_layer=0))
    rows = selection.begin(prompt([(2, 6)], 9))
    keys = torch.zeros(1, 9, 2)
    keys[0, 4] = torch.tensor([9.0, 0.0])
    keys[0, 8] = torch.tensor([99.0, 0.0])  # the question's own last token: not a candidate
    selection.see(0, torch.tensor([1.0, 0.0]).expand(2, 3, 2), keys)  # type: ignore[attr-defined]
    empty = KV(torch.zeros(4, 1, 2), torch.zeros(4, 1, 2))
    assert selection.narrow(0, rows, empty, empty).tolist() == [False, False, True, False]


def test_unknown_names_and_ratios_are_refused() -> None:
    with pytest.raises(ValueError, match="hkvd, first, query, random, none, full"):
        make_selection("best", Choice(0.1))
    with pytest.raises(ValueError, match="from 0 to 1"):
        make_selection("hkvd", Choice(1.5))
