"""Rules of the CUDA code that bytes alone don't show, on emulated GPUs (tests/cuda_emulation)."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import KVLayout
from cache_core.tiers.memory import MemoryTier
from cache_core.tiers.tier import Read
from cache_core.transfer import cuda as cuda_finder
from cache_core.transfer.codec import Codec
from cache_core.transfer.coded import CodedBuffers
from cache_core.transfer.cuda import PinnedMemory
from cache_core.transfer.gpu import CopyStreams, GpuBuffers, GpuTier
from cache_core.transfer.planner import CopyCost, Planner, RunCost
from tests.cache_core.emulated_cuda import Emulation, emulated
from tests.cache_core.paged_world import large, random_bytes, u64
from tests.cache_core.test_cuda import GpuWorld


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


class Scattered:
    """More copies than fit a batch: every second word of pinned memory, to a GPU and back."""

    def __init__(self, emulation: Emulation, count: int = 9000) -> None:
        self.memory = PinnedMemory()
        [at] = self.memory.addresses(1, count * 8)
        self.words = np.ctypeslib.as_array((ctypes.c_uint32 * (2 * count)).from_address(int(at)))
        self.device = emulation.cuda.DeviceMemory(0, count * 8)
        self.transfer = emulation.cuda.Transfer(0)
        steps = np.arange(count, dtype=np.uint64) * np.uint64(8)
        self.here, self.there = at + steps, np.uint64(self.device.address) + steps
        self.sizes = np.full(count, 4, dtype=np.uint64)

    def round_trip(self) -> None:
        before = np.arange(len(self.words), dtype=np.uint32)
        self.words[:] = before
        self.transfer.copy(self.there, self.here, self.sizes)
        self.transfer.synchronize()
        self.words[:] = 0
        self.transfer.copy(self.here, self.there, self.sizes)
        self.transfer.synchronize()
        assert np.array_equal(self.words[::2], before[::2])
        assert not self.words[1::2].any()


def test_no_batch_is_too_large(emulation: Emulation) -> None:
    """9,000 copies are three batches each way; the emulation refuses more than 4,096 in one."""
    copies = Scattered(emulation)
    copies.round_trip()
    assert emulation.counts().batches == 6
    copies.memory.release()


def test_a_driver_that_refuses_a_batch_is_asked_once(emulation: Emulation) -> None:
    """InvalidValue, where single copies show that nothing was wrong."""
    copies = Scattered(emulation)
    emulation.calls.emulation_refuses_batches()
    copies.round_trip()
    copies.round_trip()
    assert emulation.counts().batches == 1
    copies.memory.release()


def test_a_copy_that_is_wrong_does_not_end_batches(emulation: Emulation) -> None:
    copies = Scattered(emulation, 8)
    beyond = copies.there + np.uint64(6)  # the last one ends behind the GPU's memory
    with pytest.raises(emulation.cuda.CudaError, match=r"copying: .*InvalidValue"):
        copies.transfer.copy(beyond, copies.here, copies.sizes)
    copies.round_trip()
    assert emulation.counts().batches == 3
    copies.memory.release()


class Growing:
    """One plane of tokens of 16 bytes on the GPU, chunks of 4,096 tokens, and an engine that has
    queued so much on a stream of its own that it is never done."""

    TOKENS, CHUNKS = 4096, 12

    def __init__(self, emulation: Emulation, staging: int) -> None:
        nbytes = self.CHUNKS * self.TOKENS * 16
        self.memory, self.emulation = PinnedMemory(), emulation
        self.room, other = self.memory.addresses(2, nbytes)
        self.device = emulation.cuda.DeviceMemory(0, nbytes)
        self.stream = emulation.stream()
        for _ in range(3000):
            emulation.copy(int(other), int(other) + 64, 64, self.stream)
        base = u64(self.device.address)
        self.paged = _native.Paged(base, base[:0], 1, 16, 16, 16, 1, 16, self.CHUNKS * self.TOKENS)
        slots = np.arange(self.CHUNKS * self.TOKENS, dtype=np.int64)
        self.slots = slots.reshape(self.CHUNKS, self.TOKENS)
        self.transfer = emulation.cuda.Transfer(0, 1, staging)

    def move(self, chunks: int, first: np.uint64 | int) -> None:
        steps = np.arange(chunks, dtype=np.uint64) * np.uint64(self.TOKENS * 16)
        self.transfer.gather(self.paged, self.slots[:chunks], np.uint64(first) + steps, "NHD")

    def end(self) -> None:
        self.emulation.synchronize()
        self.emulation.end_stream(self.stream)
        self.memory.release()


def test_slots_that_grow_wait_for_nothing(emulation: Emulation) -> None:
    """No free of what they had before, which would wait for the engine; and they double."""
    growing = Growing(emulation, 0)
    before = emulation.live()
    for chunks in range(1, growing.CHUNKS + 1):  # 32 KiB of slots for each
        growing.move(chunks, growing.room)
    assert emulation.pending > 0
    assert emulation.counts().waits == 0
    # Two sides, of 64 to 512 KiB.
    assert emulation.live()[2] - before[2] <= 2 * 4
    growing.end()


def test_staging_that_grows_waits_for_nothing(emulation: Emulation) -> None:
    """And stays within what it was given."""
    chunk, pageable = 64 << 10, np.zeros(Growing.CHUNKS * (64 << 10), np.uint8)
    growing = Growing(emulation, staging=2 * 3 * chunk)
    before = emulation.nbytes()[0]
    for chunks in (1, 2, 3, 12):
        growing.move(chunks, pageable.ctypes.data)
    assert emulation.pending > 0
    assert emulation.counts().waits == 0
    parcels = 2 * (64 + 128) << 10
    # The half that grew took 1, 2 and 3 chunks in turn, the other one 3.
    assert emulation.nbytes()[0] - before - parcels <= (1 + 2 + 3 + 3) * chunk + 4096
    growing.end()


def test_pinned_memory_that_is_forgotten_is_unpinned_before_it_goes(emulation: Emulation) -> None:
    memory = PinnedMemory()
    tier = MemoryTier("cpu", 3, 4096, memory)
    assert emulation.live()[4] == 1
    del memory, tier
    gc.collect()
    assert emulation.live()[4] == 0
    assert emulation.violation == ""


def test_what_was_unpinned_is_not_unpinned_again(emulation: Emulation) -> None:
    """At its end it would clear an error that another library has yet to read."""
    slab = emulation.cuda.PinnedSlab(4096, 0)
    slab.unpin()
    slab.unpin()
    assert emulation.calls.cudaHostUnregister(ctypes.c_void_p(1 << 20)) == 713
    del slab
    assert emulation.calls.cudaGetLastError() == 713


def policy(address: int) -> str:
    """Of the mapping that begins there, as Linux tells."""
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        start, how, *_ = line.split()
        if int(start, 16) == address:
            return how
    raise AssertionError(f"nothing is mapped at {address:x}")


def node_is_chosen() -> bool:
    """Whether this system lets a process choose the node of its memory at all."""
    if not Path("/proc/self/numa_maps").exists():
        return False
    libc, mask = ctypes.CDLL(None, use_errno=True), (ctypes.c_ulong * 16)(1)
    number = {"x86_64": 237, "aarch64": 235}.get(platform.machine())
    return number is not None and libc.syscall(number, None, 0, 1, mask, 1025, 0) == 0


@pytest.mark.parametrize(
    ("told", "found"), [("0\n", "prefer:0"), ("-1\n", "default"), ("", "default")]
)
def test_pinned_memory_lies_next_to_its_gpu(
    emulation: Emulation, told: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what Linux tells of the GPU's place on the bus; the other GPU's is not asked for."""
    if not node_is_chosen():
        pytest.skip("this system does not let a process choose the node of its memory")
    monkeypatch.setattr(cuda_finder, "PCI_DEVICES", tmp_path)
    for address, text in (("0000:a0:00.0", "0" if not told else "-1"), ("0000:a1:00.0", told)):
        (tmp_path / address).mkdir()
        (tmp_path / address / "numa_node").write_text(text)
    memory = PinnedMemory(1)
    [at] = memory.addresses(1, 1 << 16)
    assert policy(int(at)) == found
    memory.release()


def test_a_node_that_is_not_there_is_no_trouble() -> None:
    for node in (63, 1023, 1024, 2**31 - 1, -7):
        assert not _native.Slab(1 << 16, node).view().any()


def test_loads_come_first_and_stores_last(emulation: Emulation) -> None:
    ways = CopyStreams(0)
    assert emulation.priority(ways.stream("in")) == -5  # the greatest that the GPU has
    assert emulation.priority(ways.stream("out")) == 0


LAYOUT = KVLayout(layers=2, kv_heads=2, head_dim=16, dtype="float32", chunk_tokens=64, order="HND")


class Arena:
    """One request's KV on a GPU, ``[layers][2][heads][capacity][dim]``, and places in it."""

    def __init__(self, emulation: Emulation, chunks: int, planner: Planner | None = None) -> None:
        capacity, head = chunks * LAYOUT.chunk_tokens, LAYOUT.head_bytes
        plane = LAYOUT.kv_heads * capacity * head
        self.nbytes = LAYOUT.layers * 2 * plane
        self.memory = emulation.cuda.DeviceMemory(0, self.nbytes)
        k = np.uint64(self.memory.address) + np.arange(LAYOUT.layers, dtype=np.uint64) * np.uint64(
            2 * plane
        )
        self.paged = _native.Paged(
            k, k + np.uint64(plane), capacity, capacity * head, head, capacity * head,
            LAYOUT.kv_heads, head, capacity,
        )  # fmt: skip
        self.ways = CopyStreams(0, planner)
        slots = np.arange(capacity, dtype=np.int64).reshape(chunks, -1)
        self.place = GpuBuffers(self.ways, self.paged, slots, LAYOUT, lambda stream: None)

    def write(self, kv: NDArray[np.uint8]) -> None:
        with self.ways.way("in") as transfer:
            transfer.copy(u64(self.memory.address), u64(kv.ctypes.data), u64(kv.nbytes))


def test_few_blocks_move_to_the_host_and_more_within_the_gpu(emulation: Emulation) -> None:
    """So that the model goes on beside loads and stores. Coding takes a row at a time, not four."""
    arena = Arena(emulation, 24)
    memory = PinnedMemory()
    there = memory.addresses(24, LAYOUT.chunk_bytes)

    def blocks() -> int:
        found = emulation.counts().blocks
        emulation.calls.emulation_reset(0)
        return found

    blocks()
    arena.place.copy_to(there)
    assert 4 <= blocks() <= 8
    arena.place.copy_from(there)
    assert 4 <= blocks() <= 12
    codec = Codec.of_layout("int8", LAYOUT)
    assert codec is not None
    CodedBuffers(arena.place, codec).copy_to(there)
    assert 12 < blocks() <= 32
    CodedBuffers(arena.place, codec).copy_from(there)
    assert 12 < blocks() <= 48
    tier = GpuTier("device", 24, LAYOUT.chunk_bytes, arena.ways)
    tier.write([bytes([i]) * 32 for i in range(24)], arena.place)
    assert 12 < blocks() <= 32
    arena.place.copy_to(there)
    assert blocks() <= 8  # what was within the GPU before is so no more
    tier.close()
    memory.release()


def test_a_kernel_moves_each_byte_once(emulation: Emulation) -> None:
    """What lies behind the last row is looked at with it, and not moved again."""
    for chunks in (1, 3):
        world = large("NHD", chunks, 0, 64)
        world.slots[0, 1] = -1
        tokens = int((world.slots >= 0).sum())
        for name in ("gather", "scatter"):
            emulation.reset()
            gpu = GpuWorld(world, pinned=True)
            gpu.run(name, "NHD")
            assert emulation.counts().written == tokens * 3 * 2 * 2 * 64


@pytest.mark.parametrize(("run_bytes", "dma"), [(28 << 10, True), ((28 << 10) - 64, False)])
def test_long_runs_of_the_embedded_engine_go_by_copy_engines(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch, run_bytes: int, dma: bool
) -> None:
    """Each head's run of a chunk is one; within the GPU's memory kernels do it in any case."""
    tokens = run_bytes // LAYOUT.head_bytes
    layout = KVLayout(
        layers=2, kv_heads=2, head_dim=16, dtype="float32", chunk_tokens=tokens, order="HND"
    )
    monkeypatch.setitem(globals(), "LAYOUT", layout)
    arena, memory = Arena(emulation, 2), PinnedMemory()
    kv = random_bytes(arena.nbytes, 1)
    arena.write(kv)
    there = memory.addresses(2, layout.chunk_bytes)
    before = emulation.counts()
    arena.place.copy_to(there)
    arena.place.copy_from(there)
    after = emulation.counts()
    assert after.batches - before.batches == (2 if dma else 0)
    assert (after.written == before.written) == dma
    room = np.zeros((2, layout.chunk_bytes), np.uint8)
    expected = u64(*(row.ctypes.data for row in room))
    on_host = _native.Paged(
        *host_planes(kv, layout, 2), 2 * tokens, 2 * tokens * layout.head_bytes, layout.head_bytes,
        2 * tokens * layout.head_bytes, layout.kv_heads, layout.head_bytes, 2 * tokens,
    )  # fmt: skip
    slots = np.arange(2 * tokens, dtype=np.int64).reshape(2, tokens)
    _native.gather(on_host, slots, expected, "HND")
    for at, row in zip(there, room, strict=True):
        assert ctypes.string_at(int(at), layout.chunk_bytes) == row.tobytes()
    tier = GpuTier("device", 2, layout.chunk_bytes, arena.ways)
    keys = [bytes([i]) * 32 for i in range(2)]
    before = emulation.counts()
    tier.write(keys, arena.place)
    assert tier.read([keys[0], b"x" * 32], arena.place) == Read.of([True, False])  # it picks rows
    after = emulation.counts()
    assert (after.batches, after.written > before.written) == (before.batches, True)
    tier.close()
    memory.release()


def host_planes(
    kv: NDArray[np.uint8], layout: KVLayout, chunks: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    plane = layout.kv_heads * chunks * layout.chunk_tokens * layout.head_bytes
    k = np.uint64(kv.ctypes.data) + np.arange(layout.layers, dtype=np.uint64) * np.uint64(2 * plane)
    return k, k + np.uint64(plane)


def test_a_measured_planner_is_heard(emulation: Emulation) -> None:
    """In both directions, each by its own costs."""
    cheap, dear = (CopyCost((RunCost(1, 0.0, each),)) for each in (0.0, 1.0))
    planner = Planner(
        {
            ("d2h", "dma"): cheap,
            ("d2h", "kernel"): dear,
            ("h2d", "dma"): dear,
            ("h2d", "kernel"): cheap,
        }
    )
    arena, memory = Arena(emulation, 1, planner), PinnedMemory()
    there = memory.addresses(1, LAYOUT.chunk_bytes)
    arena.place.copy_to(there)
    assert (emulation.counts().batches, emulation.counts().written) == (1, 0)
    arena.place.copy_from(there)
    assert emulation.counts().batches == 1
    assert emulation.counts().written > 0
    memory.release()
