"""Blocks of groups of layers to and from host memory, however vLLM lays them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cache_core.adapters.vllm.identity import Unsupported
from cache_core.adapters.vllm.kv_shape import GroupedShape
from cache_core.adapters.vllm.worker.group_blocks import GroupBlocks
from cache_core.layout import Group

BLOCKS, TOKENS, CHUNK, HEADS, DIM = 8, 16, 32, 2, 4
Cache = Callable[[torch.Tensor], Any]


def plain(words: torch.Tensor) -> torch.Tensor:
    return words.view(BLOCKS, HEADS, TOKENS, DIM)


def smaller_kernel_blocks(words: torch.Tensor) -> torch.Tensor:
    """Two of the kernel's in a row are one of vLLM's."""
    return words.view(2 * BLOCKS, HEADS, TOKENS // 2, DIM)


def smaller_blocks_apart(words: torch.Tensor) -> torch.Tensor:
    """As before, with what another layer has between each two."""
    return torch.stack([words.view(2 * BLOCKS, -1), torch.zeros(2 * BLOCKS, 64)], 1)[:, 0]


def planes_apart(words: torch.Tensor) -> torch.Tensor:
    """K of all blocks, then V of all blocks."""
    return words.view(2, BLOCKS, TOKENS, DIM).transpose(0, 1)


def heads_last(words: torch.Tensor) -> torch.Tensor:
    """Dense, in another order of its axes."""
    return words.view(BLOCKS, TOKENS, HEADS, DIM).transpose(1, 2)


CACHES: list[Cache] = [plain, smaller_kernel_blocks, smaller_blocks_apart, planes_apart, heads_last]


def filled(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BLOCKS * HEADS * TOKENS * DIM, generator=generator)


def blocks_of(cache: Any) -> torch.Tensor:
    """The words of each of vLLM's blocks."""
    return torch.as_tensor(cache).reshape(BLOCKS, -1)


def shape(*groups: Group) -> GroupedShape:
    return GroupedShape(groups, CHUNK, (1,) * len(groups), BLOCKS)


def moved(
    source: dict[str, Any], target: dict[str, Any], kv: GroupedShape, there: Any, here: Any
) -> GroupBlocks:
    out, back = GroupBlocks(source, kv, 1, False), GroupBlocks(target, kv, 1, False)
    memory = np.zeros((len(there), out.chunk_bytes), dtype=np.uint8)
    addresses = np.array([row.ctypes.data for row in memory], dtype=np.uint64)
    out.place(np.array(there, dtype=np.int64)).copy_to(addresses)
    back.place(np.array(here, dtype=np.int64)).copy_from(addresses)
    return out


@pytest.mark.parametrize("lay", CACHES)
def test_a_block_goes_to_another_whole_however_it_lies(lay: Cache) -> None:
    kv = shape(Group(0, ("a", "b"), TOKENS, 0))
    source = {"a": lay(filled(1)), "b": plain(filled(2))}
    target = {"a": lay(filled(3)), "b": plain(filled(4))}
    before = {name: blocks_of(cache).clone() for name, cache in target.items()}
    blocks = moved(source, target, kv, [[0, 7, 2], [0, 5, 1]], [[0, 1, 3], [0, -1, 6]])
    assert blocks.chunk_bytes == 2 * 2 * HEADS * TOKENS * DIM * 4
    for name, cache in target.items():
        now, given = blocks_of(cache), blocks_of(source[name])
        for old, new in ((7, 1), (2, 3), (1, 6)):
            assert torch.equal(now[new], given[old]), (name, new)
        for untouched in (0, 2, 4, 5, 7):
            assert torch.equal(now[untouched], before[name][untouched]), (name, untouched)


def test_a_state_in_two_tensors_of_padded_pages_and_a_window_beside_it() -> None:
    kv = shape(Group(0, ("w",), TOKENS, 0, "window", 20), Group(1, ("s",), CHUNK, 0, "state"))

    def made(seed: int) -> dict[str, Any]:
        pages = filled(seed).view(BLOCKS, -1)
        return {"w": plain(filled(seed + 1)), "s": [pages[:, :24], pages[:, 24:64].view(-1, 8, 5)]}

    source, target = made(10), made(20)
    before = [state.clone() for state in target["s"]]
    blocks = moved(source, target, kv, [[1, 5, -1], [0, 3, 4]], [[1, 2, -1], [0, 6, 7]])
    assert [group.chunk_bytes for group in blocks.groups] == [2 * HEADS * TOKENS * DIM * 4, 256]
    assert blocks.row_bytes(np.array([[1, 5, -1], [0, 3, 4]])).tolist() == [256, blocks.chunk_bytes]
    for now, given, old in zip(target["s"], source["s"], before, strict=True):
        assert torch.equal(now[2], given[5])
        assert torch.equal(now[[0, 1, 3, 4, 5, 6, 7]], old[[0, 1, 3, 4, 5, 6, 7]])
    assert torch.equal(target["w"][[6, 7]], source["w"][[3, 4]])


def test_what_can_not_be_moved_is_refused_by_name() -> None:
    kv = shape(Group(0, ("a",), TOKENS, 0))
    shreds = torch.zeros(BLOCKS, 64)[:, ::2]
    with pytest.raises(Unsupported, match="a keeps a block in shreds of 4 bytes"):
        GroupBlocks({"a": shreds}, kv, 1, False)
    with pytest.raises(Unsupported, match="a has 9 blocks, not 8"):
        GroupBlocks({"a": torch.zeros(9, 64)}, kv, 1, False)
