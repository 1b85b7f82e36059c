"""The CUDA code on emulated GPUs that are stricter than real ones: see tests/cuda_emulation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cache_core import _native
from tests.cache_core.emulated_cuda import Emulation, emulated
from tests.cache_core.paged_world import Order, large
from tests.cache_core.test_cuda import GpuWorld


@pytest.fixture()
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("dma", ["", "_dma"])
@pytest.mark.parametrize("name", ["gather", "scatter"])
@pytest.mark.parametrize(("offset", "width"), [(0, 512), (8, 512), (4, 516), (2, 510), (1, 33)])
def test_moves(
    emulation: Emulation, offset: int, width: int, name: str, dma: str, pinned: bool, seed: int
) -> None:
    emulation.reset(seed)
    orders: list[Order] = ["NHD", "HND"]
    for engine in orders:
        world = large(engine, 4, offset, width)
        for order in ("HND", "NHD"):
            expected = world.run(getattr(_native, name), _native, order)
            assert GpuWorld(world, pinned).run(name + dma, order) == expected
