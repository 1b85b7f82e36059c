"""The CUDA code on emulated GPUs that are stricter than real ones: see tests/cuda_emulation."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache_core import _native
from cache_core.transfer.cuda import PinnedMemory
from tests.cache_core import reference as _reference
from tests.cache_core import reference_codecs as _reference_codecs
from tests.cache_core.emulated_cuda import Emulation, emulated
from tests.cache_core.paged_world import Order, large, random_bytes, u64, worlds
from tests.cache_core.test_cuda import FiniteGpuWorld, GpuWorld, on_gpu_paged
from tests.cache_core.test_native_codecs import finite, move_far_apart

ORDERS: list[Order] = ["HND", "NHD"]
SEEDS = range(4)
EXAMPLES = settings(max_examples=40)


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("dma", ["", "_dma"])
@pytest.mark.parametrize("name", ["gather", "scatter"])
@pytest.mark.parametrize(("offset", "width"), [(0, 512), (8, 512), (4, 516), (2, 510), (1, 33)])
def test_moves(
    emulation: Emulation, offset: int, width: int, name: str, dma: str, pinned: bool
) -> None:
    """Staging has room for one chunk in each half, or for none."""
    seeds = cycle(SEEDS)
    for engine in ORDERS:
        world = large(engine, 4, offset, width)
        for order in ORDERS:
            emulation.reset(next(seeds))
            expected = world.run(getattr(_native, name), _native, order)
            staging = 1 << 20 if order == "HND" else 0
            assert GpuWorld(world, pinned, 0, staging).run(name + dma, order) == expected


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_coded(emulation: Emulation, dtype: str, pinned: bool) -> None:
    for seed, offset, width in ((0, 0, 256), (3, 4, 264)):
        emulation.reset(seed)
        world = finite(large("NHD", 3, offset, width), dtype)
        for codec in ("fp8", "int8"):
            for name in ("gather_coded", "scatter_coded"):
                expected = world.run(getattr(_native, name), _native, "HND", dtype, codec)
                assert FiniteGpuWorld(world, pinned).run(name, "HND", dtype, codec) == expected


def drawn(data: st.DataObject) -> tuple[bool, int, int]:
    """Pinned or not, thread blocks, and so few bytes of staging that halves take many turns."""
    ctas, staging = st.sampled_from([0, 1, 3, 2**32 - 1]), st.sampled_from([0, 3000, 20_000])
    return data.draw(st.booleans()), data.draw(ctas), data.draw(staging)


def run(gpu: GpuWorld, refusal: str, name: str, *arguments: Any) -> bytes | None:
    """None if these arguments are refused, and for this reason."""
    try:
        return gpu.run(name, *arguments)
    except ValueError as error:
        if refusal not in str(error):
            raise
        return None


@EXAMPLES
@given(st.data(), st.sampled_from(SEEDS), st.sampled_from(ORDERS))
@pytest.mark.parametrize("item_bytes", [0, 2])
@pytest.mark.parametrize("name", ["gather", "scatter", "gather_dma", "scatter_dma"])
def test_moves_of_any_layout(
    name: str, item_bytes: int, data: st.DataObject, seed: int, order: Order
) -> None:
    with emulated() as emulation:
        emulation.reset(seed)
        world = data.draw(worlds(item_bytes))
        verb = getattr(_reference, name.removesuffix("_dma"))
        expected = world.run(verb, _reference, order)
        found = run(GpuWorld(world, *drawn(data)), "side by side", name, order)
        assert found in (expected, None)


@EXAMPLES
@given(st.data(), st.sampled_from(SEEDS), st.sampled_from(ORDERS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_codecs_of_any_layout(dtype: str, data: st.DataObject, seed: int, order: Order) -> None:
    """What is not aligned to its items is refused, not tried: that would end the context."""
    with emulated() as emulation:
        emulation.reset(seed)
        size = _reference_codecs.ITEM_BYTES[dtype]
        world = finite(data.draw(worlds(size)), dtype)
        codec = data.draw(st.sampled_from(["fp8", "int8"]))
        for name in ("gather_coded", "scatter_coded"):
            expected = world.run(getattr(_native, name), _native, order, dtype, codec)
            gpu = FiniteGpuWorld(world, *drawn(data))
            found = run(gpu, "aligned", name, order, dtype, codec)
            del gpu
            assert found in (expected, None)


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_kernels_with_offsets_past_2_to_31(emulation: Emulation, name: str, tmp_path: Path) -> None:
    transfer = emulation.cuda.Transfer(0)

    def move(memory: NDArray[np.uint8], *where: Any) -> None:
        emulation.cuda.pin(memory.ctypes.data, memory.size)
        getattr(transfer, name)(*where)
        transfer.synchronize()
        emulation.cuda.unpin(memory.ctypes.data)

    move_far_apart(name, tmp_path, move)


def moved_beside_an_engine(emulation: Emulation, before: bool, after: bool) -> bool:
    """An engine writes its KV, we gather it, the engine writes it anew, each on its own stream.
    Whether the chunks have what was written first."""
    world = large("NHD", 2)
    gpu = GpuWorld(world, pinned=True)
    memory = PinnedMemory()
    [old, new, chunks] = memory.addresses(3, max(world.engine_bytes, world.chunk_bytes))
    views = [
        np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(at)))
        for at, size in ((old, world.engine_bytes), (new, world.engine_bytes),
                         (chunks, world.chunk_bytes))
    ]  # fmt: skip
    for i, view in enumerate(views):
        view[:] = random_bytes(view.size, i + 1)
    expected = random_bytes(world.engine_bytes, 1), random_bytes(world.chunk_bytes, 3)
    _native.gather(*world.arguments(_native, *expected), "NHD")
    _, slots, there = world.arguments(_native, views[0], views[2])
    stream = emulation.stream()
    emulation.copy(gpu.device.address, int(old), world.engine_bytes, stream)
    if before:
        gpu.transfer.wait_for(stream)
    gpu.transfer.gather(on_gpu_paged(world, gpu.device.address), slots, there, "NHD")
    if after:
        gpu.transfer.release_to(stream)
    emulation.copy(gpu.device.address, int(new), world.engine_bytes, stream)
    emulation.synchronize()
    same = bool(np.array_equal(views[2], expected[1]))
    emulation.end_stream(stream)
    memory.release()
    return same


def test_an_engine_that_writes_and_overwrites(emulation: Emulation) -> None:
    found: dict[tuple[bool, bool], set[bool]] = {}
    for seed in range(12):
        for order in ((True, True), (False, True), (True, False)):
            emulation.reset(seed)
            found.setdefault(order, set()).add(moved_beside_an_engine(emulation, *order))
    assert found[True, True] == {True}
    # Who leaves one out is caught: the emulation is worth something.
    assert False in found[False, True]
    assert False in found[True, False]


def test_wait_for_the_default_stream(emulation: Emulation) -> None:
    transfer = emulation.cuda.Transfer(0)
    for handle in (0, 1, 2):  # CUDA's names for it: null, legacy, per thread
        transfer.wait_for(handle)
        transfer.release_to(handle)
    transfer.synchronize()
    with pytest.raises(emulation.cuda.CudaError, match=r"looking at a stream.*InvalidResource"):
        transfer.wait_for(4096)


def test_a_stream_that_captures_a_graph_is_refused(emulation: Emulation) -> None:
    """An event of its would pull the transfer's stream into the graph."""
    transfer, stream = emulation.cuda.Transfer(0), emulation.stream()
    emulation.calls.emulation_captures(ctypes.c_void_p(stream), 1)
    for call in (transfer.wait_for, transfer.release_to):
        with pytest.raises(ValueError, match="captures a CUDA graph"):
            call(stream)
    emulation.end_stream(stream)


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_copies_in_all_directions(emulation: Emulation, seed: int, batches: bool) -> None:
    """Neighbours are joined, nothing is copied for sizes of zero; between GPUs, too."""
    emulation.reset(seed)
    cuda = emulation.cuda
    size = 10_000
    devices = [cuda.DeviceMemory(i, size) for i in (0, 0, 1)]
    transfer = cuda.Transfer(0)
    memory = PinnedMemory()
    pinned = [int(at) for at in memory.addresses(2, size)]
    pageable = [random_bytes(size, 7), np.zeros(size, np.uint8)]
    route = [
        pageable[0].ctypes.data, devices[0].address, devices[1].address, pinned[0],
        pinned[1], devices[2].address, devices[0].address, pageable[1].ctypes.data,
    ]  # fmt: skip
    if not batches:
        emulation.calls.emulation_no_batches()
    parts = u64(0, 1, 4096, 5000, 5000)
    sizes = np.append(parts[1:], np.uint64(size)) - parts
    for start, to in pairwise(route):
        transfer.copy(parts + np.uint64(to), parts + np.uint64(start), sizes)
    transfer.synchronize()
    assert np.array_equal(pageable[0], pageable[1])
    memory.release()


def test_pageable_scatters_return_before_they_are_done(emulation: Emulation) -> None:
    world = large("NHD", 2)
    gpu = GpuWorld(world, pinned=False, staging=8 << 20)
    engine, chunks = random_bytes(world.engine_bytes, 1), random_bytes(world.chunk_bytes, 2)
    _, slots, there = world.arguments(_native, engine, chunks)
    paged = on_gpu_paged(world, gpu.device.address)
    gpu.transfer.scatter(paged, slots, there, "NHD")
    assert emulation.pending > 0
    gpu.transfer.synchronize()
    gpu.transfer.gather(paged, slots, there, "NHD")
    assert emulation.pending == 0  # the bytes are in pageable memory
    assert np.array_equal(chunks, random_bytes(world.chunk_bytes, 2))


@pytest.mark.parametrize("dma", ["", "_dma"])
def test_pinned_memory_that_the_gpu_sees_elsewhere(emulation: Emulation, dma: str) -> None:
    """Under WSL what was pinned after it was allocated goes by staging."""
    emulation.calls.emulation_aliases()
    world = large("NHD", 4)
    for name in ("gather", "scatter"):
        expected = world.run(getattr(_native, name), _native, "HND")
        assert GpuWorld(world, pinned=True).run(name + dma, "HND") == expected


@pytest.mark.parametrize("dma", ["", "_dma"])
@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_a_chunk_without_tokens_is_not_touched(emulation: Emulation, name: str, dma: str) -> None:
    """It may have any address, as on the CPU; an engine of which nothing is moved, too."""
    world = large("NHD", 4)
    world.slots[1] = -1
    expected = world.run(getattr(_native, name), _native, "HND")
    for address in (0, 4096, 2**63):
        gpu = GpuWorld(world, pinned=False)
        run = getattr(gpu.transfer, name + dma)

        def spoilt(paged: Any, slots: Any, chunks: Any, order: str, run: Any = run) -> None:
            chunks[1] = address  # noqa: B023
            run(paged, slots, chunks, order)

        gpu.transfer = Replaced(gpu.transfer, name + dma, spoilt)
        assert gpu.run(name + dma, "HND") == expected
    nothing = np.full((1, 4), -1)
    paged = _native.Paged(u64(0), u64(), 4, 4, 1, 1, 1, 1, 16)
    getattr(emulation.cuda.Transfer(0), name + dma)(paged, nothing, u64(0), "NHD")


class Replaced:
    """An object with one attribute of another."""

    def __init__(self, whole: Any, name: str, value: Any) -> None:
        self._whole = whole
        setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def test_device_memory_is_none_of_the_host(emulation: Emulation, tmp_path: Path) -> None:
    """A host that touches it crashes, as on a machine with a GPU."""
    program = (
        "import ctypes\n"
        "from tests.cache_core.emulated_cuda import emulated\n"
        "with emulated() as e:\n"
        "    memory = e.cuda.DeviceMemory(0, 64)\n"
        "    print('there', flush=True)\n"
        "    ctypes.string_at(memory.address, 1)\n"
        "    print('read', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parents[2],
        # Under AddressSanitizer: this crash is meant, and needs no report.
        env=os.environ | {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":handle_segv=0"},
    )  # fmt: skip
    assert (done.stdout, done.returncode != 0) == ("there\n", True), done.stderr


@pytest.mark.parametrize("dma", ["", "_dma"])
def test_a_transfer_that_ends_has_done_all(emulation: Emulation, dma: str) -> None:
    """Its staging goes with it: not before it was read."""
    world = large("NHD", 2)
    gpu = GpuWorld(world, False, staging=8 << 20)
    engine = random_bytes(world.engine_bytes, 1)
    chunks = random_bytes(world.chunk_bytes, 2)
    address, size = u64(gpu.device.address), u64(world.engine_bytes)
    gpu.transfer.copy(address, u64(engine.ctypes.data), size)
    _, slots, there = world.arguments(_native, engine, chunks)
    verb = getattr(gpu.transfer, "scatter" + dma)
    verb(on_gpu_paged(world, gpu.device.address), slots, there, "NHD")
    del verb
    gpu.transfer = emulation.cuda.Transfer(0)
    assert emulation.pending == 0
    _native.scatter(*world.arguments(_native, engine, chunks), "NHD")
    found = np.zeros_like(engine)
    gpu.transfer.copy(u64(found.ctypes.data), address, size)
    gpu.transfer.synchronize()
    assert np.array_equal(found, engine)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dma", ["", "_dma"])
def test_many_moves_before_one_wait(emulation: Emulation, seed: int, dma: str) -> None:
    """Each has slots of its own, and more than the one before."""
    emulation.reset(seed)
    world = large("NHD", 8, 0, 64)
    gpu = GpuWorld(world, pinned=True)
    engine, expected = random_bytes(world.engine_bytes, 1), np.zeros(world.chunk_bytes, np.uint8)
    address, size = u64(gpu.device.address), u64(world.engine_bytes)
    gpu.transfer.copy(address, u64(engine.ctypes.data), size)
    memory = PinnedMemory()
    [at] = memory.addresses(1, world.chunk_bytes)
    found = np.ctypeslib.as_array((ctypes.c_uint8 * world.chunk_bytes).from_address(int(at)))
    paged = on_gpu_paged(world, gpu.device.address)
    verb = getattr(gpu.transfer, "gather" + dma)
    for first, last in pairwise((0, 1, 2, 4, 8)):
        rows = slice(first, last)
        verb(paged, world.slots[rows], world.chunks[rows] + at, "NHD")
    gpu.transfer.synchronize()
    _native.gather(*world.arguments(_native, engine, expected), "NHD")
    assert np.array_equal(found, expected)
    memory.release()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dma", ["", "_dma"])
def test_many_pageable_moves_before_one_wait(emulation: Emulation, seed: int, dma: str) -> None:
    """An odd number of halves each time: the next call begins with one that is on its way."""
    emulation.reset(seed)
    world = large("NHD", 8, 0, 64)
    gpu = GpuWorld(world, pinned=False, staging=1 << 18)
    engine, chunks = random_bytes(world.engine_bytes, 1), random_bytes(world.chunk_bytes, 2)
    address, size = u64(gpu.device.address), u64(world.engine_bytes)
    gpu.transfer.copy(address, u64(engine.ctypes.data), size)
    paged = on_gpu_paged(world, gpu.device.address)
    verb = getattr(gpu.transfer, "scatter" + dma)
    _, slots, there = world.arguments(_native, engine, chunks)
    for first, last in pairwise((0, 1, 2, 5, 8)):
        verb(paged, slots[first:last], there[first:last], "NHD")
    found = np.zeros_like(engine)
    gpu.transfer.copy(u64(found.ctypes.data), address, size)
    gpu.transfer.synchronize()
    _native.scatter(*world.arguments(_native, engine, chunks), "NHD")
    assert np.array_equal(found, engine)
