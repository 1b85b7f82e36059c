"""TieredCache over the device tier of a CUDA engine and a pinned cpu tier, on emulated GPUs: every
byte that is served is the byte that was stored, whichever way it went."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cache_core import _native
from cache_core.cache import TieredCache
from cache_core.ledger import Placement
from cache_core.tiers import DiskTier, MemoryTier, SlabMemory, Tier
from cache_core.tiers.tier import Read
from cache_core.tiers.wrappers import CodedTier
from cache_core.transfer.codec import Codec
from cache_core.transfer.cuda import PinnedMemory
from cache_core.transfer.gpu import CopyStreams, GpuBuffers, GpuTier
from tests.cache_core.emulated_cuda import NO_MEMORY, Emulation, emulated
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, content, key
from tests.cache_core.paged_world import u64


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


class GpuEngine:
    """A request's KV in a GPU's memory. ``host`` is what it should be; the engine's own stream
    brings it there, late, as a forward would."""

    def __init__(self, emulation: Emulation, chunks: int, device: int) -> None:
        self.emulation, self.host = emulation, MemoryEngine(LAYOUT, chunks)
        self.ways = CopyStreams(device)
        self.memory = emulation.cuda.DeviceMemory(device, self.host.kv.nbytes)
        self.transfer = emulation.cuda.Transfer(device)  # the engine's stream
        self.staged = PinnedMemory(device)
        self.nbytes = self.host.kv.nbytes
        (self.pinned,) = self.staged.addresses(1, self.nbytes)
        layer, plane, head, token, _ = self.host.kv.strides
        k = u64(*(self.memory.address + i * layer for i in range(LAYOUT.layers)))
        self.paged = _native.Paged(
            k, k + np.uint64(plane), self.host.capacity, self.host.capacity * token, token, head,
            LAYOUT.kv_heads, LAYOUT.head_bytes, self.host.capacity,
        )  # fmt: skip

    def place(self, first: int, count: int) -> GpuBuffers:
        size = LAYOUT.chunk_tokens
        slots = np.arange(first * size, (first + count) * size, dtype=np.int64).reshape(count, size)
        # The event of a real engine: what it has queued on its stream comes first.
        return GpuBuffers(self.ways, self.paged, slots, LAYOUT, self.transfer.release_to)

    def upload(self) -> None:
        """Queued only: pinned memory is read when the stream gets there."""
        self.transfer.synchronize()
        _native.copy(u64(self.pinned), u64(self.host.kv.ctypes.data), u64(self.nbytes), 1)
        self.transfer.copy(u64(self.memory.address), u64(self.pinned), u64(self.nbytes))

    def download(self) -> None:
        there = u64(self.host.kv.ctypes.data)
        self.transfer.copy(there, u64(self.memory.address), u64(self.nbytes))
        self.transfer.synchronize()


def serve(cache: TieredCache, engine: GpuEngine, numbers: list[int]) -> dict[str, int]:
    """One request: load the hit, compute the rest, store all. Returns hits by tier."""
    keys = [key(n) for n in numbers]
    hit = cache.acquire(keys, wait_s=5)
    engine.host.wipe()
    engine.upload()
    loaded = cache.load(hit, engine.place(0, len(hit)))
    engine.download()
    for i in range(loaded.chunks):
        assert engine.host.holds(i, numbers[i]), "a wrong byte was served"
    engine.host.fill(numbers)
    engine.upload()
    cache.store(keys, engine.place(0, len(numbers))).result()
    return dict(loaded.by_tier)


@pytest.mark.parametrize("placement", ["write_on_insertion", "write_on_eviction"])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize(("device", "seed"), [(0, 0), (1, 0), (0, 1), (0, 3)])
def test_requests_through_all_tiers(
    emulation: Emulation,
    device: int,
    seed: int,
    pinned: bool,
    placement: Placement,
    tmp_path: Path,
) -> None:
    """Random requests: chunks go down to memory and disk and up again, and to the engine's KV from
    each of them."""
    emulation.reset(seed)
    engine = GpuEngine(emulation, 6, device)
    memory = PinnedMemory(device) if pinned else SlabMemory()
    tiers: list[Tier] = [
        GpuTier("device", 3, LAYOUT.chunk_bytes, engine.ways),
        MemoryTier("cpu", 4, LAYOUT.chunk_bytes, memory),
        DiskTier("disk", tmp_path, 1 << 20, LAYOUT.chunk_bytes),
    ]
    cache = TieredCache(LAYOUT, tiers, placement=placement)
    draw, hits = random.Random(seed), dict.fromkeys(("device", "cpu", "disk"), 0)
    for _ in range(25):
        numbers = draw.sample(range(12), draw.randint(1, 6))
        for tier, chunks in serve(cache, engine, numbers).items():
            hits[tier] += chunks
    assert all(hits.values()), hits
    assert [emulation.has_context(i) for i in (0, 1)] == [device == 0, device == 1]
    cache.check()
    cache.close()
    engine.staged.release()


def test_coded_chunks_below_a_device_tier(emulation: Emulation) -> None:
    """What goes down is coded, on the GPU where it comes from the engine; up again it is what the
    codec makes of it."""
    engine = GpuEngine(emulation, 4, 0)
    codec = Codec.of_layout("int8", LAYOUT)
    assert codec is not None
    below = MemoryTier("cpu", 4, codec.coded_bytes, PinnedMemory(0))
    device = GpuTier("device", 2, LAYOUT.chunk_bytes, engine.ways)
    coded = CodedTier(below, codec)
    values = np.random.default_rng(3).normal(size=engine.host.kv.nbytes // 4).astype(np.float32)
    engine.host.kv[...] = values.view(np.uint8).reshape(engine.host.kv.shape)
    want = [engine.host.chunk(i).copy() for i in range(4)]
    engine.upload()
    keys = [key(i) for i in range(4)]
    assert device.write(keys[:2], engine.place(0, 2)) == [True, True]
    assert coded.write(keys[2:], engine.place(2, 2)) == [True, True]
    down, up = device.place(keys[:2]), coded.place(keys[2:])
    assert down is not None
    assert up is not None
    assert coded.write(keys[:2], down) == [True, True]
    device.discard(keys[:2])
    assert device.write(keys[2:], up) == [True, True]
    engine.host.wipe()
    engine.upload()
    assert coded.read(keys[:2], engine.place(0, 2)) == Read.of([True, True])
    assert device.read(keys[2:], engine.place(2, 2)) == Read.of([True, True])
    engine.download()
    for i, chunk in enumerate(want):
        before, after = (
            part.view(np.float32).astype(np.float64) for part in (chunk, engine.host.chunk(i))
        )
        scale = np.abs(before).max(axis=-1, keepdims=True) / 127
        assert (np.abs(after - before) <= 0.51 * scale).all()
        assert (after != before).any()
    device.close()
    coded.close()
    engine.staged.release()


def test_a_gpu_without_room_says_so(emulation: Emulation) -> None:
    ways = CopyStreams(0)
    errors = []
    for call in range(1, 10):  # each of the calls that it makes
        emulation.fail_call(call, NO_MEMORY)
        try:
            GpuTier("device", 4, LAYOUT.chunk_bytes, ways).close()
        except emulation.cuda.CudaError as error:
            errors.append(str(error))
        if not emulation.failed:
            break
    emulation.fail_call(0, 0)
    assert errors
    assert all("free memory of the GPU" in error for error in errors)


def test_a_missing_chunk_leaves_the_engine_alone(emulation: Emulation) -> None:
    engine = GpuEngine(emulation, 3, 0)
    tier = GpuTier("device", 3, LAYOUT.chunk_bytes, engine.ways)
    engine.host.fill([1, 2, 3])
    engine.upload()
    assert tier.write([key(1), key(3)], engine.place(0, 3).pick([0, 2])) == [True, True]
    engine.host.wipe()
    engine.upload()
    assert tier.read([key(1), key(2), key(3)], engine.place(0, 3)) == Read.of([True, False, True])
    engine.download()
    assert engine.host.holds(0, 1)
    assert engine.host.holds(2, 3)
    assert not engine.host.chunk(1).any()
    assert content(LAYOUT, 1).any()
    tier.close()
    engine.staged.release()
