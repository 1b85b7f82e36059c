"""Blocks of groups of layers to and from host memory, however vLLM lays them out; and to and from
an emulated GPU's, with what their moves wait for there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cache_core.adapters.vllm.identity import Unsupported
from cache_core.adapters.vllm.kv_shape import GroupedShape
from cache_core.adapters.vllm.worker import group_blocks
from cache_core.adapters.vllm.worker.group_blocks import GroupBlocks
from cache_core.layout import Group
from cache_core.tiers.memory import MemoryTier
from cache_core.tiers.tier import Read
from cache_core.transfer.gpu import CopyStreams
from tests.cache_core.emulated_cuda import Emulation, emulated
from tests.cache_core.paged_world import u64
from tests.cache_core.test_cuda_users import PLANS

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


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


class OnGpu:
    """A tensor in an emulated GPU's memory, as far as the connector looks at it."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, view: torch.Tensor, base: int) -> None:
        self._view, self._base = view, base
        self.shape, self.ndim = view.shape, view.ndim
        self.stride, self.element_size = view.stride, view.element_size

    def data_ptr(self) -> int:
        return self._base + int(self._view.storage_offset()) * self.element_size()

    def __getitem__(self, at: Any) -> OnGpu:
        return OnGpu(self._view[at], self._base)


class Gpu:
    """What vLLM keeps there: layers with all KV, planes of K and V apart; a window's; a recurrent
    layer's two states in padded pages, of eight blocks each."""

    shape = shape(
        Group(0, ("a", "b"), TOKENS, 0),
        Group(1, ("w",), TOKENS, 0, "window", 20),
        Group(2, ("s",), CHUNK, 0, "state"),
    )
    rows = np.array([[0, 7, 2], [1, 3, -1], [2, 5, -1]])
    keys = (b"a", b"w", b"s")

    def __init__(self, emulation: Emulation) -> None:
        self.emulation, self.stream = emulation, emulation.stream()
        self.words = torch.zeros(4 * BLOCKS * HEADS * TOKENS * DIM)
        self.memory = emulation.cuda.DeviceMemory(0, 4 * self.words.numel())
        self.transfer = emulation.cuda.Transfer(0)
        self.blocks = GroupBlocks(
            self.lay(lambda view: OnGpu(view, self.memory.address)), self.shape, 1, False
        )
        self.tier = MemoryTier("cpu", 3, self.blocks.chunk_bytes, self.blocks.memory())

    def lay(self, put: Callable[[torch.Tensor], Any] = lambda view: view) -> dict[str, Any]:
        """The layers' tensors, by views of all words."""
        a, b, w, s = self.words.chunk(4)
        laid = {"a": plain(a), "b": planes_apart(b), "w": heads_last(w)}
        # torch counts an offset from the storage of all words.
        pages = s.view(BLOCKS, -1)
        states = [put(pages[:, :24]), put(pages[:, 24:64].view(-1, 8, 5))]
        return {name: put(view) for name, view in laid.items()} | {"s": states}

    def write(self, words: torch.Tensor, stream: int | None = None) -> None:
        """At once, or behind what is queued on a stream; the words are to live until it is done."""
        size = 4 * self.words.numel()
        if stream is None:
            self.transfer.copy(u64(self.memory.address), u64(words.data_ptr()), u64(size))
            self.transfer.synchronize()
        else:
            self.emulation.copy(self.memory.address, words.data_ptr(), size, stream)

    def read(self) -> dict[str, torch.Tensor]:
        """The words of each layer's blocks."""
        size = 4 * self.words.numel()
        self.transfer.copy(u64(self.words.data_ptr()), u64(self.memory.address), u64(size))
        self.transfer.synchronize()
        laid = self.lay()
        laid["s"] = torch.cat([state.reshape(BLOCKS, -1) for state in laid["s"]], 1)
        return {name: blocks_of(view).clone() for name, view in laid.items()}

    def held(self, words: torch.Tensor) -> list[torch.Tensor]:
        """What those words have in the chunks' blocks."""
        self.words.copy_(words)
        laid = self.lay()
        laid["s"] = torch.cat([state.reshape(BLOCKS, -1) for state in laid["s"]], 1)
        return chunks(laid)

    def end(self) -> None:
        self.emulation.synchronize()
        self.emulation.end_stream(self.stream)
        self.tier.close()


def chunks(laid: dict[str, Any]) -> list[torch.Tensor]:
    at = {"a": [7, 2], "b": [7, 2], "w": [3], "s": [5]}
    return [blocks_of(laid[name])[blocks].clone() for name, blocks in at.items()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def drawn(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4 * BLOCKS * HEADS * TOKENS * DIM, generator=generator)


@pytest.mark.parametrize("way", ["dma", "kernel"])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_groups_of_a_gpu_go_through_pinned_memory(
    emulation: Emulation, way: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulation.reset(seed)
    monkeypatch.setattr(group_blocks, "CopyStreams", lambda device: CopyStreams(device, PLANS[way]))
    gpu = Gpu(emulation)
    there, here = drawn(1), drawn(2)
    gpu.write(there)
    given = gpu.read()
    assert gpu.tier.write(gpu.keys, gpu.blocks.place(gpu.rows)) == [True] * 3
    gpu.write(here)
    before = gpu.read()
    into = np.array([[0, 1, 6], [1, 4, -1], [2, 0, -1]])
    assert gpu.tier.read(gpu.keys, gpu.blocks.place(into)) == [Read.HERE] * 3
    now = gpu.read()
    came = {"a": {1: 7, 6: 2}, "b": {1: 7, 6: 2}, "w": {4: 3}, "s": {0: 5}}
    for name, moved in came.items():
        for block in range(BLOCKS):
            whence = given[name][moved[block]] if block in moved else before[name][block]
            assert torch.equal(now[name][block], whence), (name, block)
    gpu.end()


@pytest.mark.parametrize("loading", [True, False])
def test_moves_of_groups_come_behind_the_engines_steps(
    emulation: Emulation, loading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is still queued writes to blocks that a load gets, and to those that are saved.
    Without the fence the emulation sees a wrong order."""
    found: dict[bool, set[bool]] = {True: set(), False: set()}
    first, step = drawn(1), drawn(2)
    for seed in range(24):
        for fenced in (True, False) if False not in found[False] else (True,):
            emulation.reset(seed)
            gpu = Gpu(emulation)
            monkeypatch.setattr(group_blocks, "current_stream", lambda device, gpu=gpu: gpu.stream)
            gpu.write(first)
            if loading:
                assert gpu.tier.write(gpu.keys, gpu.blocks.place(gpu.rows)) == [True] * 3
            gpu.write(step, gpu.stream)
            if fenced:
                gpu.blocks.fence(loading)()
            if not loading:
                assert gpu.tier.write(gpu.keys, gpu.blocks.place(gpu.rows)) == [True] * 3
                emulation.synchronize()
                gpu.write(torch.zeros_like(first))
            assert gpu.tier.read(gpu.keys, gpu.blocks.place(gpu.rows)) == [Read.HERE] * 3
            emulation.synchronize()
            got = chunks(gpu.read())
            found[fenced].add(same(got, gpu.held(first if loading else step)))
            gpu.end()
    assert found[True] == {True}
    assert False in found[False]
