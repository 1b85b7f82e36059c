"""Chunks to and from vLLM's blocks, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.adapters.vllm.worker.kv_blocks import (
    EngineBlocks,
    HostBlocks,
    TensorBlocks,
    WholeBlocks,
    slots_of,
    slots_within,
)

LAYERS, HEADS, DIM, BLOCKS = 3, 2, 8, 11


def caches(block: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (BLOCKS, HEADS, block, 2 * DIM)
    return [torch.randn(shape, generator=generator) for _ in range(LAYERS)]


def rows_of_host(cache: torch.Tensor, slots: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """K and V of tokens, ``[tokens, heads, 2, dim]``, as the CPU backend keeps them."""
    block = cache.shape[2]
    flat = cache.numpy().reshape(BLOCKS, HEADS, 2, block * DIM)
    k = flat[:, :, 0].reshape(BLOCKS, HEADS, DIM, block)
    v = flat[:, :, 1].reshape(BLOCKS, HEADS, block, DIM)
    at, off = slots // block, slots % block
    return np.stack([k[at, :, :, off], v[at, :, off, :]], axis=2)


def rows_of_tensor(cache: torch.Tensor, slots: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    block = cache.shape[2]
    found: np.ndarray[Any, Any] = cache.numpy()[slots // block, :, slots % block, :]
    return found


Rows = Callable[[torch.Tensor, np.ndarray[Any, Any]], np.ndarray[Any, Any]]
MAKERS: dict[str, tuple[Callable[[list[torch.Tensor], int], EngineBlocks], Rows]] = {
    "host": (lambda c, chunk: HostBlocks(c, chunk, 2), rows_of_host),
    "tensor": (TensorBlocks, rows_of_tensor),
}


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=25, deadline=None)
@given(
    block=st.sampled_from([4, 8, 32]),
    chunk=st.sampled_from([3, 8, 20]),
    seed=st.integers(0, 1000),
    by_layer=st.booleans(),
)
def test_any_token_goes_to_any_place(
    kind: str, block: int, chunk: int, seed: int, by_layer: bool
) -> None:
    make, rows = MAKERS[kind]
    source, target = caches(block, seed), caches(block, seed + 1)
    before = [cache.clone() for cache in target]
    rng = np.random.default_rng(seed)
    count = 2
    there = rng.permutation(BLOCKS * block)[: count * chunk].reshape(count, chunk)
    here = rng.permutation(BLOCKS * block)[: count * chunk].reshape(count, chunk)
    left_out = rng.random((count, chunk)) < 0.3
    wanted = np.where(left_out, -1, here)
    out, back = make(source, chunk), make(target, chunk)
    memory = np.zeros((count, out.chunk_bytes), dtype=np.uint8)
    addresses = np.array([row.ctypes.data for row in memory], dtype=np.uint64)
    parts = [range(i, i + 1) for i in range(LAYERS)] if by_layer else [None]
    for part in parts:
        out.place(there, part).copy_to(addresses)
    for part in parts:
        back.place(wanted, part).copy_from(addresses)
    kept = ~left_out.ravel()
    untouched = np.setdiff1d(np.arange(BLOCKS * block), here.ravel()[kept])
    for layer in range(LAYERS):
        got = rows(target[layer], here.ravel()[kept])
        np.testing.assert_array_equal(got, rows(source[layer], there.ravel()[kept]))
        old = rows(before[layer], untouched)
        np.testing.assert_array_equal(rows(target[layer], untouched), old)


def test_whole_blocks_move_as_they_are() -> None:
    source, target = caches(4, 0), caches(4, 1)
    out, back = WholeBlocks(source, 4, 8, 1), WholeBlocks(target, 4, 8, 1)
    memory = np.zeros((2, out.chunk_bytes), dtype=np.uint8)
    addresses = np.array([row.ctypes.data for row in memory], dtype=np.uint64)
    there = slots_of(np.array([7, 2, 9, 0], dtype=np.int32), 4, range(16)).reshape(2, 8)
    here = slots_of(np.array([1, 3, 5, 6], dtype=np.int32), 4, range(16)).reshape(2, 8)
    here[1, 4:] = -1
    before = target[0][6].clone()
    out.place(there).copy_to(addresses)
    back.place(here).copy_from(addresses)
    for layer in range(LAYERS):
        for old, new in ((7, 1), (2, 3), (9, 5)):
            assert torch.equal(source[layer][old], target[layer][new])
    assert torch.equal(target[0][6], before)


def test_whole_blocks_need_whole_chunks() -> None:
    with pytest.raises(ValueError, match="no multiple of vLLM's block of 4"):
        WholeBlocks(caches(4, 0), 4, 6, 1)


@pytest.mark.parametrize("wanted", [(0, 64), (16, 48), (21, 22), (0, 17), (40, 200), (64, 64)])
def test_slots_outside_what_is_wanted_are_left_out(wanted: tuple[int, int]) -> None:
    blocks, tokens = np.array([7, 3, 9, 4, 1, 8, 2, 6], dtype=np.int32), range(16, 64)
    expected = [int(blocks[at // 8]) * 8 + at % 8 if at in range(*wanted) else -1 for at in tokens]
    assert slots_within(blocks, 8, tokens, range(*wanted)).tolist() == expected
