"""What is refused, and what must be, on emulated GPUs: see tests/cuda_emulation."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

from cache_core import _native
from cache_core.transfer.cuda import CudaMissing, PinnedMemory, cuda_devices
from tests.cache_core.emulated_cuda import VERBS, Emulation, emulated
from tests.cache_core.paged_world import large, random_bytes, u64
from tests.cache_core.test_cuda import on_gpu_paged
from tests.cache_core.test_native_fuzz import (
    BASE,
    CHUNKS,
    GOOD,
    PLACES,
    REFUSED,
    SIZE,
    SLOTS,
    SPOILT,
    stays_inside,
)


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


def on_device(arguments: dict[str, Any], address: int) -> dict[str, Any]:
    """The same descriptor, of a GPU's memory instead of ENGINE's."""
    found = dict(arguments)
    for plane in ("k_bases", "v_bases"):
        bases = [int(base) for base in arguments[plane]]
        moved = [b + address - BASE if BASE <= b < BASE + SIZE else b for b in bases]
        found[plane] = u64(*moved)
    return found


@pytest.mark.parametrize("name", sorted(VERBS))
@settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
@given(spoilt=SPOILT, slots=SLOTS, chunks=PLACES)
def test_bad_descriptors(
    name: str, spoilt: dict[str, Any], slots: list[int], chunks: list[int]
) -> None:
    arguments = GOOD | spoilt
    try:
        _native.Paged(**arguments)
    except REFUSED:
        return
    if stays_inside(arguments):
        table = np.array(slots, dtype=np.int64).reshape(2, 4)
        with emulated() as emulation:
            refused_or_run(emulation, name, arguments, table, u64(*chunks))


def refused_or_run(
    emulation: Emulation, name: str, arguments: dict[str, Any], *places: NDArray[Any]
) -> None:
    """Refused before anything is queued, or run without a fault."""
    memory = emulation.cuda.DeviceMemory(0, SIZE)
    transfer = emulation.cuda.Transfer(0, 0, 4096)
    paged = _native.Paged(**on_device(arguments, memory.address))
    try:
        getattr(transfer, name)(paged, *places, "HND", *VERBS[name])
    except REFUSED:
        assert emulation.pending == 0
    transfer.synchronize()


def test_pin_refuses(emulation: Emulation) -> None:
    cuda, slab = emulation.cuda, _native.Slab(8192)
    for address, nbytes in ((0, 4096), (slab.address, 0), (2**63, 4096), (slab.address, 2**63)):
        with pytest.raises(ValueError, match="no such memory"):
            cuda.pin(address, nbytes)
    cuda.pin(slab.address, 4096)
    for address in (slab.address, slab.address + 100):
        with pytest.raises(cuda.CudaError, match="pinned already"):
            cuda.pin(address, 64)
    with pytest.raises(cuda.CudaError, match="InvalidDevice"):
        cuda.pin(slab.address + 4096, 4096, 7)
    with pytest.raises(cuda.CudaError, match="InvalidDevice"):
        cuda.Transfer(7)
    cuda.unpin(slab.address)


def test_a_graph_that_another_thread_captures(emulation: Emulation) -> None:
    """CUDA then refuses what is not captured, of the default stream."""
    transfer = emulation.cuda.Transfer(0)
    emulation.fail_call(2, 906)
    with pytest.raises(emulation.cuda.CudaError, match=r"StreamCapture.*; move KV before or after"):
        transfer.wait_for(0)


def test_memory_of_another_gpu(emulation: Emulation) -> None:
    """As KV and as chunks: a kernel that touches it ends the context."""
    world = large("NHD", 2)
    cuda = emulation.cuda
    own, other = (cuda.DeviceMemory(i, world.engine_bytes) for i in (0, 1))
    transfer = cuda.Transfer(0)
    host = random_bytes(world.chunk_bytes, 2)
    _, slots, there = world.arguments(_native, host, host)
    paged = on_gpu_paged(world, own.address)
    for name in ("gather", "scatter", "gather_dma", "scatter_dma"):
        verb = getattr(transfer, name)
        with pytest.raises(ValueError, match=r"a base is memory of GPU 1, and this is .* GPU 0"):
            verb(on_gpu_paged(world, other.address), slots, there, "NHD")
        with pytest.raises(ValueError, match=r"a chunk is memory of GPU 1, and this is .* GPU 0"):
            verb(paged, slots, world.chunks + np.uint64(other.address), "NHD")
        mixed = there.copy()
        mixed[0] = own.address
        with pytest.raises(ValueError, match="all on the GPU or all in host memory"):
            verb(paged, slots, mixed, "NHD")
        with pytest.raises(ValueError, match="not memory that the GPU can reach"):
            verb(on_gpu_paged(world, host.ctypes.data), slots, there, "NHD")
    assert emulation.pending == 0


@pytest.mark.parametrize("dma", ["", "_dma"])
def test_chunks_on_the_gpu(emulation: Emulation, dma: str) -> None:
    world = large("NHD", 2)
    engine, chunks = random_bytes(world.engine_bytes, 1), random_bytes(world.chunk_bytes, 2)
    memory = emulation.cuda.DeviceMemory(0, world.engine_bytes + world.chunk_bytes + 256)
    room = memory.address + (world.engine_bytes + 255) // 256 * 256
    transfer = emulation.cuda.Transfer(0)
    places = u64(memory.address, room)
    sizes = u64(world.engine_bytes, world.chunk_bytes)
    transfer.copy(places, u64(engine.ctypes.data, chunks.ctypes.data), sizes)
    found: NDArray[np.uint8] = np.zeros_like(chunks)
    paged = on_gpu_paged(world, memory.address)
    getattr(transfer, "gather" + dma)(paged, world.slots, world.chunks + np.uint64(room), "HND")
    transfer.copy(u64(found.ctypes.data), u64(room), u64(world.chunk_bytes))
    transfer.synchronize()
    _native.gather(*world.arguments(_native, engine, chunks), "HND")
    assert np.array_equal(found, chunks)


def test_a_thread_that_uses_one_gpu_takes_nothing_of_the_first(emulation: Emulation) -> None:
    """Restoring a device that has no context would make one: hundreds of MB of every process."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            memory = PinnedMemory(1)
            memory.addresses(1, 4096)
            device, transfer = emulation.cuda.DeviceMemory(1, 4096), emulation.cuda.Transfer(1)
            transfer.copy(u64(device.address), memory.addresses(1, 4096), u64(4096))
            transfer.synchronize()
            memory.release()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert [emulation.has_context(i) for i in (0, 1)] == [False, True]


def test_the_current_gpu_stays_what_it_was(emulation: Emulation) -> None:
    assert emulation.calls.cudaSetDevice(0) == 0
    transfer, memory = emulation.cuda.Transfer(1), emulation.cuda.DeviceMemory(1, 4096)
    transfer.copy(u64(memory.address), u64(CHUNKS.ctypes.data), u64(4096))
    transfer.wait_for(0)
    transfer.synchronize()
    del transfer, memory
    current = ctypes.c_int(-1)
    emulation.calls.cudaGetDevice(ctypes.byref(current))
    assert current.value == 0


def test_without_a_gpu(emulation: Emulation) -> None:
    emulation.calls.emulation_devices(0)
    with pytest.raises(CudaMissing, match="the driver sees no GPU"):
        cuda_devices()
    with pytest.raises(emulation.cuda.CudaError, match="nvidia-smi"):
        emulation.cuda.Transfer(0)


def test_a_misaligned_item_stride_is_refused(emulation: Emulation) -> None:
    """Items that lie apart by no whole number of items."""
    paged_of: Callable[[int], _native.Paged] = lambda address: _native.Paged(  # noqa: E731
        u64(address), u64(), 4, 4096, 1024, 1024, 1, 8, 4, item_bytes=2, item_stride=3
    )
    memory = emulation.cuda.DeviceMemory(0, 8192)
    transfer = emulation.cuda.Transfer(0)
    room = np.zeros(4096, np.uint8)
    for name in ("gather_coded", "scatter_coded"):
        with pytest.raises(ValueError, match="aligned"):
            getattr(transfer, name)(
                paged_of(memory.address), np.array([[0, 1]]), u64(room.ctypes.data), "NHD",
                "float16", "fp8",
            )  # fmt: skip
    transfer.synchronize()


def test_rows_too_long_for_32_bits_are_refused(emulation: Emulation) -> None:
    """Their loops would never end."""
    memory = emulation.cuda.DeviceMemory(0, 4096)
    transfer = emulation.cuda.Transfer(0)
    for head_bytes in (2**31 + 2, 2**32 - 2):
        paged = _native.Paged(
            u64(memory.address), u64(), 1, head_bytes, head_bytes, head_bytes, 1, head_bytes, 1
        )
        with pytest.raises(ValueError, match=r"a row of .* bytes is too long"):
            transfer.gather(paged, np.array([[0]]), u64(1 << 20), "NHD")


def test_padding_of_a_coded_chunk_is_kept(emulation: Emulation) -> None:
    """Staging has bytes of earlier chunks there: nobody is to get these."""
    memory = emulation.cuda.DeviceMemory(0, 4096)
    paged = _native.Paged(u64(memory.address), u64(), 4, 48, 12, 12, 1, 12, 4)
    room = np.full(_native.coded_bytes(2, 3), 7, np.uint8)
    transfer = emulation.cuda.Transfer(0)
    transfer.gather_coded(paged, np.array([[0, 1]]), u64(room.ctypes.data), "NHD", "float32", "fp8")
    assert room[6:16].tolist() == [7] * 10
