"""What moves wait for, on emulated GPUs: loads for the engine, whose blocks they get; the engine
for loads, layer by layer. Each order is left out once, to show that the emulation sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cache_core import _native
from cache_core.adapters.vllm.worker import kv_cuda as cuda_blocks
from cache_core.adapters.vllm.worker.kv_blocks import TensorBlocks
from cache_core.adapters.vllm.worker.kv_cuda import CudaBlocks
from cache_core.tiers.memory import MemoryTier
from cache_core.tiers.tier import Read
from cache_core.transfer.cuda import PinnedMemory
from cache_core.transfer.gpu import CopyStreams, GpuBuffers
from cache_core.transfer.planner import Planner
from lmcache_cli.engines.transformers import kv_buffer as embedded_gpu
from tests.cache_core.emulated_cuda import Emulation, emulated
from tests.cache_core.test_cuda_rules import LAYOUT
from tests.cache_core.test_cuda_users import CHUNK, LAYERS, PLANS, Tensors, numbers, tokens_of

SLOTS = np.array([[5, 6, 7, 8, 20, 21, 22, 23]])
KEY = b"k" * 32
SEEDS = range(40)  # each orders what nothing orders as it likes


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


class Engine:
    """vLLM's tensors on a GPU, and the stream of its forward pass, which is always late."""

    def __init__(self, emulation: Emulation, planner: Planner) -> None:
        self.emulation = emulation
        self.tensors = Tensors(emulation, tokens_first=True, device=0)
        self.blocks = CudaBlocks(self.tensors.caches, CHUNK, planner)
        self.tier = MemoryTier("cpu", 2, self.blocks.chunk_bytes, self.blocks.memory())
        self.nbytes = LAYERS * self.tensors.nbytes
        self.pinned = PinnedMemory()
        self.kept = [int(at) for at in self.pinned.addresses(2, self.nbytes)]
        self.stream = emulation.stream()

    def computes(self, seed: int) -> None:
        """Queues a forward pass that writes other KV over all blocks."""
        values = np.ascontiguousarray(numbers(seed).transpose(0, 1, 3, 2, 4))
        ctypes.memmove(self.kept[0], values.ctypes.data, self.nbytes)
        address = self.tensors.memory.address
        self.emulation.copy(address, self.kept[0], self.nbytes, self.stream)

    def reads(self, layer: int) -> None:
        """Queues the attention of a layer: what it reads is kept."""
        at = layer * self.tensors.nbytes
        address = self.tensors.memory.address + at
        self.emulation.copy(self.kept[1] + at, address, self.tensors.nbytes, self.stream)

    def read(self) -> np.ndarray[Any, Any]:
        """What attention has read, ``[layers, blocks, heads, tokens, content]``."""
        flat = (ctypes.c_uint16 * (self.nbytes // 2)).from_address(self.kept[1])
        there = (LAYERS, *self.tensors.there)
        return np.ctypeslib.as_array(flat).reshape(there).transpose(0, 1, 3, 2, 4).copy()

    def end(self) -> None:
        self.emulation.synchronize()
        self.emulation.end_stream(self.stream)
        self.tier.close()
        self.pinned.release()


@contextmanager
def engine_of(
    emulation: Emulation, seed: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """With a chunk of ``numbers(1)`` in the tier, and zeros in the blocks."""
    emulation.reset(seed)
    engine = Engine(emulation, PLANS[way])
    monkeypatch.setattr(cuda_blocks, "current_stream", lambda device: engine.stream)
    engine.tensors.write(numbers(1))
    assert engine.tier.write([KEY], engine.blocks.place(SLOTS)) == [True]
    engine.tensors.write(np.zeros_like(numbers(1)))
    try:
        yield engine
    finally:
        engine.end()


@pytest.mark.parametrize("way", ["dma", "kernel"])
def test_a_load_comes_behind_the_steps_that_may_use_its_blocks(
    emulation: Emulation, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were another request's: a forward pass that is still queued may write to them."""
    found: dict[bool, set[bool]] = {True: set(), False: set()}
    for seed in SEEDS:
        for fenced in (True, False):
            with engine_of(emulation, seed, way, monkeypatch) as engine:
                engine.computes(2)
                if fenced:
                    engine.blocks.fence(loading=True)()
                assert engine.tier.read([KEY], engine.blocks.place(SLOTS)) == [Read.HERE]
                emulation.synchronize()
                same = np.array_equal(
                    tokens_of(engine.tensors.read(), SLOTS), tokens_of(numbers(1), SLOTS)
                )
                found[fenced].add(same)
    assert found[True] == {True}
    assert False in found[False]


@pytest.mark.parametrize("way", ["dma", "kernel"])
def test_a_save_comes_behind_the_step_that_computes_it(
    emulation: Emulation, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[bool, set[bool]] = {True: set(), False: set()}
    other = b"o" * 32
    for seed in SEEDS:
        for fenced in (True, False):
            with engine_of(emulation, seed, way, monkeypatch) as engine:
                engine.computes(2)
                if fenced:
                    engine.blocks.fence()()
                assert engine.tier.write([other], engine.blocks.place(SLOTS)) == [True]
                emulation.synchronize()
                engine.tensors.write(np.zeros_like(numbers(1)))
                engine.tier.read([other], engine.blocks.place(SLOTS))
                same = np.array_equal(
                    tokens_of(engine.tensors.read(), SLOTS), tokens_of(numbers(2), SLOTS)
                )
                found[fenced].add(same)
    assert found[True] == {True}
    assert False in found[False]


@pytest.mark.parametrize(("loading", "free"), [(True, "out"), (False, "in")])
def test_a_fence_holds_one_direction(
    emulation: Emulation, loading: bool, free: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load need not wait for the step whose save is under way, nor the other way round."""
    with engine_of(emulation, 0, "kernel", monkeypatch) as engine:
        engine.computes(2)
        engine.blocks.fence(loading)()
        before = emulation.pending
        with engine.blocks._ways.way(free):
            pass
        assert emulation.pending == before


@pytest.mark.parametrize("way", ["dma", "kernel"])
def test_the_engine_waits_for_a_layer_without_the_host(
    emulation: Emulation, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention of a layer is queued while its KV is on its way: it reads what was loaded."""
    found: dict[bool, set[bool]] = {True: set(), False: set()}
    for seed in SEEDS:
        for held in (True, False):
            with engine_of(emulation, seed, way, monkeypatch) as engine:
                engine.blocks.fence(loading=True)()
                told: list[int] = []

                def loaded(
                    layers: int,
                    hold: Callable[[], None],
                    *,
                    engine: Engine = engine,
                    told: list[int] = told,
                    held: bool = held,
                ) -> None:
                    told.append(layers)
                    if held:
                        hold()
                    engine.reads(layers - 1)

                where: list[np.ndarray[Any, Any]] = []
                place = SimpleNamespace(copy_from=where.append)
                engine.tier.read([KEY], place)
                engine.blocks.load_layers(SLOTS, where[0], loaded)
                assert told == [1, 2, 3]
                # The load has ended: its chunk may go.
                assert emulation.pending == 0 or seed % 4 != 1  # others are late with attention
                emulation.synchronize()
                same = np.array_equal(tokens_of(engine.read(), SLOTS), tokens_of(numbers(1), SLOTS))
                found[held].add(same)
    assert found[True] == {True}
    assert False in found[False]


def test_no_layer_is_waited_for_on_the_host(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are queued before the first has run; at the end all of them have."""
    with engine_of(emulation, 0, "kernel", monkeypatch) as engine:
        queued: list[int] = []
        where: list[np.ndarray[Any, Any]] = []
        place = SimpleNamespace(copy_from=where.append)
        engine.tier.read([KEY], place)
        engine.blocks.load_layers(SLOTS, where[0], lambda *_: queued.append(emulation.pending))
        assert queued == sorted(queued)
        assert queued[0] > 0
        assert queued[-1] > queued[0]
        assert emulation.pending == 0


def test_chunks_stay_until_their_layers_are_there(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a load its chunk in the tier may be overwritten at once."""
    for seed in SEEDS:
        with engine_of(emulation, seed, "kernel", monkeypatch) as engine:
            where: list[np.ndarray[Any, Any]] = []
            place = SimpleNamespace(copy_from=where.append)
            engine.tier.read([KEY], place)
            engine.blocks.load_layers(SLOTS, where[0], lambda *_: None)
            ctypes.memset(int(where[0][0]), 0, engine.blocks.chunk_bytes)
            moved = tokens_of(engine.tensors.read(), SLOTS)
            assert np.array_equal(moved, tokens_of(numbers(1), SLOTS))


def test_the_embedded_engine_is_waited_for(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of what a forward is still to compute; ``after_now`` is the order."""
    device = torch.device("cuda", 0)
    tokens, head = LAYOUT.chunk_tokens, LAYOUT.head_bytes
    plane = LAYOUT.kv_heads * tokens * head
    nbytes = LAYOUT.layers * 2 * plane
    found: dict[bool, set[bool]] = {True: set(), False: set()}
    for seed in SEEDS:
        for ordered in (True, False):
            emulation.reset(seed)
            stream, memory = emulation.stream(), emulation.cuda.DeviceMemory(0, nbytes)
            monkeypatch.setattr(embedded_gpu, "current_stream", lambda _, stream=stream: stream)
            pinned = PinnedMemory()
            source, chunk = (int(at) for at in pinned.addresses(2, nbytes))
            ctypes.memset(source, 7, nbytes)
            emulation.copy(memory.address, source, nbytes, stream)
            k = np.uint64(memory.address) + np.arange(LAYOUT.layers, dtype=np.uint64) * np.uint64(
                2 * plane
            )
            paged = _native.Paged(
                k, k + np.uint64(plane), tokens, tokens * head, head, tokens * head,
                LAYOUT.kv_heads, head, tokens,
            )  # fmt: skip
            ready = embedded_gpu.after_now(device) if ordered else lambda stream: None
            slots = np.arange(tokens, dtype=np.int64)[None]
            place = GpuBuffers(CopyStreams(0), paged, slots, LAYOUT, ready)
            place.copy_to(np.array([chunk], dtype=np.uint64))
            found[ordered].add(ctypes.string_at(chunk, nbytes) == b"\7" * nbytes)
            emulation.synchronize()
            emulation.end_stream(stream)
            pinned.release()
    assert found[True] == {True}
    assert False in found[False]


def test_a_mark_refuses_a_stream_that_captures_a_graph(emulation: Emulation) -> None:
    """It would pull the other one into the graph."""
    stream, other = emulation.stream(), emulation.stream()
    mark = emulation.cuda.Mark(0, stream)
    emulation.calls.emulation_captures(ctypes.c_void_p(other), 1)
    with pytest.raises(ValueError, match="captures a CUDA graph"):
        mark.hold(other)
    with pytest.raises(ValueError, match="captures a CUDA graph"):
        emulation.cuda.Mark(0, other)
    del mark
    for one in (stream, other):
        emulation.end_stream(one)


def test_a_mark_makes_no_context_on_another_gpu(emulation: Emulation) -> None:
    transfer = emulation.cuda.Transfer(1)
    mark = emulation.cuda.Mark(1, transfer.stream)
    mark.hold(transfer.stream)
    del mark
    assert [emulation.has_context(i) for i in (0, 1)] == [False, True]


def test_a_mark_of_a_lost_gpu_leaves_no_error(emulation: Emulation) -> None:
    transfer, memory = emulation.cuda.Transfer(0), PinnedMemory()
    mark = emulation.cuda.Mark(0, transfer.stream)
    [at] = memory.addresses(1, 64)
    emulation.fail_work(1)
    size = np.array([32], dtype=np.uint64)
    transfer.copy(np.array([at]), np.array([at + np.uint64(32)]), size)
    with pytest.raises(emulation.cuda.CudaError, match="context is lost"):
        transfer.synchronize()
    del mark
    assert emulation.unread_error() == 0
    with pytest.raises(emulation.cuda.CudaError, match="unpinning"):
        memory.release()


class OnGpu(torch.Tensor):
    """Claims to be a GPU's: `TensorBlocks` then orders its stream."""

    is_cuda = True


class Streams:
    """As much of ``torch.cuda`` as `TensorBlocks` uses; notes the order that is asked for."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        streams = self

        class Stream:
            def __init__(self, device: Any = None, name: str = "ours") -> None:
                self.name = name

            def wait_event(self, event: Any) -> None:
                streams.log.append((self.name, "waits for", event.recorded))

            def synchronize(self) -> None:
                streams.log.append((self.name, "synchronize"))

        class Event:
            recorded = "nothing"

            def record(self, stream: Any = None) -> None:
                self.recorded = stream.name

        @contextmanager
        def stream(chosen: Any) -> Iterator[None]:
            streams.log.append((chosen.name, "moves"))
            yield

        self.Stream, self.Event, self.stream = Stream, Event, stream
        self.current_stream = lambda device: Stream(name="the engine's")


def test_torch_waits_for_the_engine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads and saves, where the kernels are not built."""
    caches = [torch.zeros(4, 2, 4, 8).as_subclass(OnGpu)]
    streams = Streams()
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    blocks = TensorBlocks(caches, 4)
    room = np.zeros(blocks.chunk_bytes, np.uint8)
    address = np.array([room.ctypes.data], dtype=np.uint64)
    place = blocks.place(np.arange(4)[None])
    for loading in (True, False):
        streams.log.clear()
        blocks.fence(loading)()
        (place.copy_from if loading else place.copy_to)(address)
        assert streams.log == [
            ("ours", "waits for", "the engine's"), ("ours", "moves"), ("ours", "synchronize")
        ]  # fmt: skip
