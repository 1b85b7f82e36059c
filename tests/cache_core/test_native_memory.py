"""Slabs, and flat moves."""

from __future__ import annotations

import ast
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core import _native
from tests.cache_core import reference as _reference
from tests.cache_core.paged_world import random_bytes, u64

ROOT = Path(__file__).parents[2]


def test_slab_is_zeroed_aligned_and_outlives_its_object_in_a_view() -> None:
    slab = _native.Slab(3 * 2**20 + 5)
    view = slab.view()
    assert slab.address % 4096 == 0
    assert view.ctypes.data == slab.address
    assert view.shape == (slab.nbytes,) == (3 * 2**20 + 5,)
    assert not view.any()
    del slab
    view[:] = 7
    assert view.sum() == 7 * len(view)


@pytest.mark.parametrize(
    ("nbytes", "error", "text"),
    [(2**50, MemoryError, "1073741824 MiB"), (0, ValueError, "is 0"), (-1, ValueError, "is -1")],
)
def test_slab_refuses(nbytes: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        _native.Slab(nbytes)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 70)), max_size=8), st.randoms())
def test_copy(moves: list[tuple[int, int]], random: Random) -> None:
    """Moves of any size, at any alignment, in any order."""
    order = random.sample(range(len(moves)), len(moves))
    source, to = random_bytes(4096, 1), []
    at = 0
    for size, gap in moves:
        to.append(at + gap)
        at += gap + size
    sizes = u64(*(size for size, _ in moves))
    starts = u64(*(random.randrange(4096 - size) for size, _ in moves))
    results = []
    for verb in (_native.copy, _reference.copy):
        target = random_bytes(at + 64, 2)
        base = np.uint64(target.ctypes.data)
        picked = np.array(order, dtype=np.intp)
        verb(
            (u64(*to) + base)[picked],
            (starts + np.uint64(source.ctypes.data))[picked],
            sizes[picked],
        )
        results.append(target.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize(("to", "start"), [(0, 0), (1, 0), (63, 7), (32, 32)])
def test_large_copies(to: int, start: int, threads: int) -> None:
    """Cut into slices, and by stores that go around the cache: nothing beside the target moves."""
    sizes = [5 * 2**20 + 3, 1, 0, 1023, 4 * 2**20 - 1]
    source = random_bytes(sum(sizes) + 64, 1)
    target = random_bytes(sum(sizes) + 128, 2)
    expected = target.copy()
    expected[to : to + sum(sizes)] = source[start : start + sum(sizes)]
    steps = np.cumsum([0, *sizes[:-1]]).astype(np.uint64)
    _native.copy(
        steps + np.uint64(target.ctypes.data + to),
        steps + np.uint64(source.ctypes.data + start),
        u64(*sizes),
        threads,
    )
    assert np.array_equal(target, expected)


def test_copy_refuses() -> None:
    with pytest.raises(ValueError, match="src has 1 entries where 2 are needed"):
        _native.copy(u64(0, 0), u64(0), u64(0, 0))
    with pytest.raises(ValueError, match="nbytes has 3 entries where 2 are needed"):
        _native.copy(u64(0, 0), u64(0, 0), u64(0, 0, 0))
    with pytest.raises(TypeError):
        _native.copy(u64(0), u64(0), np.zeros(1, np.int64))


def test_the_stub_names_what_there_is() -> None:
    stub = ast.parse((ROOT / "cache_core" / "_native.pyi").read_text())
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    named |= {ast.unparse(node.target) for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert named == {name for name in dir(_native) if not name.startswith("__")}
