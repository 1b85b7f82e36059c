"""The verbs on a GPU against those on the CPU. Without a GPU: what the module says then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cache_core import _native
from cache_core.transfer.cuda import CudaMissing, cuda_devices, cuda_module
from tests.cache_core.paged_world import Order, World, large, random_bytes, u64
from tests.cache_core.test_native_codecs import finite, finite_bytes

try:
    GPUS = len(cuda_devices())
    WHY = ""
except CudaMissing as error:
    GPUS, WHY = 0, str(error)

# Where a GPU is meant to be, tests that are all skipped would pass.
assert GPUS or "gpu" not in os.environ.get("LMCACHE_REQUIRE", ""), WHY

on_gpu = pytest.mark.skipif(GPUS == 0, reason=f"no GPU: {WHY}")


def test_without_a_gpu_each_entry_says_what_to_do() -> None:
    if GPUS:
        pytest.skip("this machine has a GPU")
    assert WHY
    if not _native.CUDA.startswith("built"):
        with pytest.raises(CudaMissing, match=r"the CUDA kernels are not built: .*; install"):
            cuda_module()
        return
    cuda = cuda_module()
    calls: list[Any] = [
        lambda: cuda.devices(),
        lambda: cuda.Transfer(0),
        lambda: cuda.DeviceMemory(0, 4096),
        lambda: cuda.pin(1 << 20, 4096),
        lambda: cuda.unpin(1 << 20),
        lambda: cuda.pci_address(0),
        lambda: cuda.Mark(0, 0),
        lambda: cuda.PinnedSlab(4096, 0),
    ]
    what_to_do = r"\(cudaError\w+\); .*(install|run|restart|memory)"
    for call in calls:
        with pytest.raises(cuda.CudaError, match=what_to_do):
            call()
    bad_calls: list[Any] = [lambda: cuda.Transfer(-1), lambda: cuda.pin(4096, 0)]
    for bad in bad_calls:
        with pytest.raises((ValueError, cuda.CudaError)):
            bad()


def test_the_module_loads_and_ends_without_a_driver() -> None:
    if not _native.CUDA.startswith("built"):
        pytest.skip(_native.CUDA)
    done = subprocess.run(
        [sys.executable, "-c", "import cache_core._cuda as c; print(c.ARCHITECTURES)"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Whatever architectures it was built for: the two modules say the same.
    assert f" for {done.stdout.strip()}" in _native.CUDA


class GpuWorld:
    """A world whose engine is on the GPU and whose chunks are pinned, or not."""

    def __init__(self, world: World, pinned: bool, ctas: int = 0, staging: int = 1 << 20) -> None:
        self.world, self.cuda = world, cuda_module()
        self.device = self.cuda.DeviceMemory(0, world.engine_bytes)
        self.transfer = self.cuda.Transfer(0, ctas, staging)
        self.pinned = pinned

    def fresh(self, size: int, seed: int) -> NDArray[np.uint8]:
        """As the world on the CPU has them."""
        return random_bytes(size, seed)

    def run(self, name: str, *arguments: Any) -> bytes:
        world = self.world
        engine, chunks = self.fresh(world.engine_bytes, 1), self.fresh(world.chunk_bytes, 2)
        sizes = u64(world.engine_bytes)
        room = chunks
        if self.pinned:
            slab = _native.Slab(world.chunk_bytes)
            room = slab.view()
            room[:] = chunks
            self.cuda.pin(slab.address, slab.nbytes)
        try:
            self.transfer.copy(u64(self.device.address), u64(engine.ctypes.data), sizes)
            _, slots, there = world.arguments(_native, engine, room)
            paged = on_gpu_paged(world, self.device.address)
            getattr(self.transfer, name)(paged, slots, there, *arguments)
            self.transfer.copy(u64(engine.ctypes.data), u64(self.device.address), sizes)
        finally:
            self.transfer.synchronize()
            if self.pinned:
                self.cuda.unpin(slab.address)
        return engine.tobytes() + room.tobytes()


def on_gpu_paged(world: World, address: int) -> _native.Paged:
    """The world's layout, of KV at this address."""
    values = {f: getattr(world.shape, f) for f in world.shape.__slots__}
    for plane in ("k_bases", "v_bases"):
        values[plane] = values[plane] + np.uint64(address)
    return _native.Paged(**values)


class FiniteGpuWorld(GpuWorld):
    """As ``FiniteWorld``."""

    def fresh(self, size: int, seed: int) -> NDArray[np.uint8]:
        return finite_bytes(size, seed)


@on_gpu
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("dma", ["", "_dma"])
@pytest.mark.parametrize("name", ["gather", "scatter"])
@pytest.mark.parametrize(("offset", "width"), [(0, 512), (8, 512), (4, 516), (2, 510), (1, 33)])
def test_moves(offset: int, width: int, name: str, dma: str, pinned: bool) -> None:
    orders: list[Order] = ["NHD", "HND"]
    for engine in orders:
        world = large(engine, 4, offset, width)
        for order in ("HND", "NHD"):
            expected = world.run(getattr(_native, name), _native, order)
            assert GpuWorld(world, pinned).run(name + dma, order) == expected


@on_gpu
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("codec", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_coded(dtype: str, codec: str, pinned: bool) -> None:
    """Bit for bit what the CPU makes of the same bytes; none is part of a NaN, whose payload a GPU
    does not keep."""
    for offset, width in ((0, 256), (4, 264)):
        world = finite(large("NHD", 4, offset, width), dtype)
        for name in ("gather_coded", "scatter_coded"):
            expected = world.run(getattr(_native, name), _native, "HND", dtype, codec)
            assert FiniteGpuWorld(world, pinned).run(name, "HND", dtype, codec) == expected


@on_gpu
def test_host_memory_is_no_engine() -> None:
    world = large("NHD", 2)
    engine, chunks = random_bytes(world.engine_bytes, 1), random_bytes(world.chunk_bytes, 2)
    transfer = cuda_module().Transfer(0)
    with pytest.raises(ValueError, match="not memory that the GPU can reach"):
        transfer.gather(*world.arguments(_native, engine, chunks), "NHD")
