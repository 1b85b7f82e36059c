"""What tokens were seen to lack: how it is measured, kept, and chosen by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_core.blend.seen import SeenTable, sighting_worth
from cache_core.blend.selection import Contexts, budget, chosen, deviation


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@given(st.lists(st.floats(0, 9, width=32), max_size=40), st.floats(0, 1))
def test_the_budget_is_kept_to_the_token_and_nothing_larger_is_left(
    values: list[float], ratio: float
) -> None:
    found = numbers(*values)
    mask = chosen(found, ratio)
    assert mask.sum() == budget(ratio, len(values)) <= len(values)
    if mask.any() and not mask.all():
        assert found[mask].min() >= found[~mask].max()


def test_of_equal_tokens_the_first_is_chosen() -> None:
    assert chosen(numbers(1, 1, 1, 1), 0.5).tolist() == [True, True, False, False]


def test_a_tokens_number_is_that_of_its_worst_layer_k_and_v_alike() -> None:
    torch.manual_seed(0)
    k, v = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 4, 8)
    other_k, other_v = k.clone(), v.clone()
    other_k[1, :, 2] += 1.0
    other_v[2, :, 2] += 2.0
    other_v[0, :, 3] += 1.0
    found = deviation(k, v, other_k, other_v)
    assert found[:2].tolist() == [0, 0]
    assert found[2] == pytest.approx(16 * 4 / float(v[2].square().mean()), rel=1e-4)
    assert found[3] == pytest.approx(16 * 1 / float(v[0].square().mean()), rel=1e-4)
    same = deviation(100 * k, v, 100 * other_k, other_v)
    np.testing.assert_allclose(same, found, rtol=1e-3), "each in its own units"


def test_the_largest_of_all_contexts_is_kept_once_there_were_enough() -> None:
    table = SeenTable(least=2)
    table.add(b"a", numbers(1, 5), 1)
    assert table.get(b"a") is None
    table.add(b"a", numbers(9, 9), 0)
    table.add(b"a", numbers(3, 2), 0.5)
    assert table.get(b"a") is None
    table.add(b"a", numbers(0, 0), 0.5)
    assert table.get(b"a").tolist() == [3, 5]  # type: ignore[union-attr]
    table.add(b"a", numbers(7), 1)
    assert table.get(b"a") is None, "of another length: it begins anew"
    table.clear()
    assert table.get(b"a") is None and len(table) == 0


def test_a_sighting_behind_little_counts_less() -> None:
    assert [sighting_worth(before, 10) for before in (0, 10, 20, 500)] == [0, 0.5, 1, 1]


def test_what_was_not_asked_for_longest_is_forgotten() -> None:
    table = SeenTable(least=1, most_tokens=6)
    for name in (b"a", b"b", b"c"):
        table.add(name, numbers(1, 2), 1)
    table.get(b"a")
    table.add(b"d", numbers(1, 2), 1)
    assert [table.get(name) is None for name in (b"a", b"b", b"c", b"d")] == [0, 1, 0, 0]
    table.add(b"d", numbers(4, 4), 1)  # what it knew is not counted twice
    assert len(table) == 3


def test_a_table_comes_back_from_its_folder(tmp_path: Path) -> None:
    table, again = SeenTable(), SeenTable()
    again.load(tmp_path)
    table.save(tmp_path)
    again.load(tmp_path)
    assert len(again) == 0, "an empty one"
    for i in range(3):
        for _ in range(2):
            table.add(bytes([i]) * 32, numbers(*range(i + 1)), 1)
    table.add(b"once".ljust(32), numbers(1), 1)
    table.save(tmp_path)
    again.load(tmp_path)
    assert len(again) == 3, "what it summed up is gone with the process: it is to be seen anew"
    assert again.get(bytes([2]) * 32).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    damaged = SeenTable()
    damaged.load(tmp_path)
    assert len(damaged) == 0


def test_a_chunk_is_averaged_alone_and_by_what_its_contexts_count() -> None:
    contexts, alone = Contexts(), torch.full((2, 3), 1.0, dtype=torch.bfloat16)
    contexts.add(b"a", torch.full((2, 3), 4.0), 0.5)
    contexts.add(b"b", torch.full((2, 3), 9.0), 1)
    contexts.add(b"a", torch.full((2, 3), 7.0), 1)
    found = contexts.average(b"a", alone)
    assert found.dtype == torch.bfloat16 and found.tolist() == [[(1 + 2 + 7) / 2.5] * 3] * 2
    assert contexts.average(b"a", alone) is alone, "it is forgotten then"
    contexts.clear()
    assert contexts.average(b"b", alone) is alone


def test_a_context_that_counts_nothing_is_in_no_average() -> None:
    """A segment that stands where its BOS would be stands behind less than nothing."""
    contexts, alone = Contexts(), torch.ones(2, 3)
    for counts in (0.0, sighting_worth(-1, 1), sighting_worth(-1, 1)):
        contexts.add(b"a", torch.full((2, 3), 9.0), counts)
    assert contexts.average(b"a", alone) is alone


def test_of_too_many_chunks_that_are_learnt_the_oldest_have_to_be_seen_anew() -> None:
    """So that none is reused whose average lacks a context, which no certificate is of."""
    contexts, alone = Contexts(), torch.zeros(2, 3)
    table = SeenTable(least=3, learning=5)
    for key, forgotten in ((b"a", []), (b"b", []), (b"a", []), (b"c", [b"b"]), (b"a", [])):
        gone = table.add(key, numbers(1, 2), 1)
        contexts.add(key, torch.ones(2, 3), 1)
        contexts.forget(gone)
        assert gone == forgotten
    assert contexts.average(b"b", alone) is alone
    assert table.get(b"a") is not None and not table.completes(b"b", 2)
    assert contexts.average(b"a", alone)[0, 0] == pytest.approx(3 / 4)
    assert contexts.average(b"c", alone)[0, 0] == 0.5
    assert table.add(b"d", numbers(1, 2), 1) == [], "what is known takes none of that room"


def test_a_sum_takes_no_more_than_the_kv_that_it_is_of() -> None:
    contexts, kv = Contexts(), torch.randn(2, 64, dtype=torch.bfloat16)
    for _ in range(3):
        contexts.add(b"a", kv, 1)
    [(total, weight)] = contexts._sums.values()
    assert total.nbytes == kv.nbytes and weight == 3
    torch.testing.assert_close(contexts.average(b"a", kv), kv, rtol=1e-2, atol=0)


def test_the_sighting_that_completes_a_chunk_is_known_before() -> None:
    table = SeenTable(least=1.5)
    assert not table.completes(b"a", 1) and table.completes(b"a", 1.5)
    table.add(b"a", numbers(1), 1)
    assert table.completes(b"a", 0.5)
    table.add(b"a", numbers(1), 1)
    assert table.completes(b"a", 0.1) and not table.completes(b"a", 0)
