"""The GPU's half of ``benchmarks/transfer.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table

from cache_core import _native
from cache_core.transfer.cuda import PinnedMemory, cuda_devices, cuda_module

if TYPE_CHECKING:
    from cache_core import _cuda

PEAK_BYTES = 256 << 20
PAGES = (16, 64, 256)
TOKENS = (256, 4096, 32768)
# Layers, planes, KV heads, bytes of a head: bf16, of one GPU.
SHAPES = {
    "8B": (32, 2, 8, 256),
    "70B/TP8": (80, 2, 1, 256),
    "MLA": (61, 1, 1, 1152),
}
MATRIX = 4096
# Kernels on few thread blocks, as beside a model.
FEW_CTAS = 32


@dataclass(frozen=True, slots=True)
class GpuRow:
    """Medians of GB/s; ``of_peak`` is the share of the peak of that direction, ``slowdown`` how
    much longer a matrix product takes beside it (None: not measured)."""

    shape: str
    page: int
    tokens: int
    slots: str
    direction: str
    way: str
    rate: float
    of_peak: float
    slowdown: float | None


class Gpu:
    """One shape's KV on the GPU 0 and pinned chunks of as many tokens."""

    def __init__(self, shape: str, page: int, tokens: int, scattered: bool) -> None:
        cuda = cuda_module()
        layers, planes, heads, width = SHAPES[shape]
        token_bytes = heads * width
        self.nbytes = layers * planes * token_bytes * tokens
        # Twice the blocks that are moved: scattered ones are no neighbours.
        blocks = 2 * tokens // page
        plane = blocks * page * token_bytes
        self._kv: _cuda.DeviceMemory = cuda.DeviceMemory(0, layers * planes * plane)
        bases = np.uint64(self._kv.address) + np.arange(
            layers * planes, dtype=np.uint64
        ) * np.uint64(plane)
        self.paged = _native.Paged(
            bases[::planes].copy(), bases[1::2].copy() if planes == 2 else bases[:0], page,
            page * token_bytes, token_bytes, width, heads, width, blocks * page,
        )  # fmt: skip
        order = np.arange(blocks // 2)
        if scattered:
            order = np.random.default_rng(0).permutation(blocks)[: blocks // 2]
        slots = (order[:, None] * page + np.arange(page)).reshape(-1, 256)
        self.slots = np.ascontiguousarray(slots, dtype=np.int64)
        self._memory = PinnedMemory()
        size = layers * planes * token_bytes * 256
        self.chunks = self._memory.addresses(len(slots), size)
        self._room: _cuda.DeviceMemory = cuda.DeviceMemory(0, self.nbytes)
        self.on_device = np.uint64(self._room.address) + np.arange(
            len(slots), dtype=np.uint64
        ) * np.uint64(size)
        self.ways = [cuda.Transfer(0, FEW_CTAS), cuda.Transfer(0, FEW_CTAS)]
        self.whole: _cuda.Transfer = cuda.Transfer(0)

    def start(self, direction: str, way: str) -> list[Any]:
        """Queues the move; the transfers to wait for."""
        out, into = self.ways
        dma = "_dma" if way == "dma" else ""
        half = len(self.slots) // 2 if direction == "both" else 0
        if direction in ("d2h", "both"):
            rows = slice(half, None)
            verb = getattr(out, f"gather{dma}")
            verb(self.paged, self.slots[rows], self.chunks[rows], "NHD")
        if direction in ("h2d", "both"):
            rows = slice(0, half or None)
            verb = getattr(into, f"scatter{dma}")
            verb(self.paged, self.slots[rows], self.chunks[rows], "NHD")
        if direction == "d2d":
            self.whole.gather(self.paged, self.slots, self.on_device, "NHD")
            return [self.whole]
        return [out] if direction == "d2h" else [into] if direction == "h2d" else [out, into]

    def move(self, direction: str, way: str) -> None:
        for transfer in self.start(direction, way):
            transfer.synchronize()

    def close(self) -> None:
        self._memory.release()


def seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    values = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        values.append(time.perf_counter() - began)
    return median(values)


def peaks(repeats: int) -> dict[str, float]:
    """GB/s of one 256 MiB copy in each direction, and within the device."""
    cuda = cuda_module()
    a: _cuda.DeviceMemory = cuda.DeviceMemory(0, PEAK_BYTES)
    b: _cuda.DeviceMemory = cuda.DeviceMemory(0, PEAK_BYTES)
    memory = PinnedMemory()
    [host, other] = memory.addresses(2, PEAK_BYTES)
    first, second = cuda.Transfer(0), cuda.Transfer(0)
    size = np.array([PEAK_BYTES], dtype=np.uint64)

    def copy(transfer: Any, to: int, start: int) -> None:
        transfer.copy(np.array([to], np.uint64), np.array([start], np.uint64), size)

    def one(to: int, start: int) -> Callable[[], None]:
        def call() -> None:
            copy(first, to, start)
            first.synchronize()

        return call

    def both() -> None:
        copy(first, int(host), a.address)
        copy(second, b.address, int(other))
        first.synchronize()
        second.synchronize()

    gb = PEAK_BYTES / 1e9
    found = {
        "d2h": gb / seconds(one(int(host), a.address), repeats),
        "h2d": gb / seconds(one(a.address, int(host)), repeats),
        "d2d": gb / seconds(one(b.address, a.address), repeats),
        "both": 2 * gb / seconds(both, repeats),
    }
    memory.release()
    return found


def product() -> Callable[[], Any] | None:
    """Queues a matrix product; None where torch has no CUDA."""
    if not torch.cuda.is_available():
        return None
    a = torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16)
    return lambda: a @ a


def slowdown(
    gpu: Gpu, direction: str, way: str, multiply: Callable[[], Any] | None
) -> float | None:
    """Time of matrix products while moves run, over their time alone."""
    if multiply is None:
        return None
    run = multiply

    def timed(count: int) -> float:
        cuda: Any = torch.cuda
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    timed(8)
    alone = timed(32)
    waiting = []
    for _ in range(4):
        waiting = gpu.start(direction, way)
    beside = timed(32)
    for transfer in waiting:
        transfer.synchronize()
    return beside / alone


def gpu_rows(repeats: int) -> list[GpuRow]:
    """The whole matrix. Raises ``CudaMissing`` without kernels, driver or GPU."""
    cuda_devices()
    best, multiply = peaks(repeats), product()
    rows: list[GpuRow] = []
    for shape in SHAPES:
        for page in PAGES:
            for tokens in TOKENS:
                for scattered in (False, True):
                    gpu = Gpu(shape, page, tokens, scattered)
                    try:
                        rows += _rows(
                            gpu, (shape, page, tokens), scattered, repeats, best, multiply
                        )
                    finally:
                        gpu.close()
    return rows


def _rows(
    gpu: Gpu,
    which: tuple[str, int, int],
    scattered: bool,
    repeats: int,
    best: dict[str, float],
    multiply: Callable[[], Any] | None,
) -> Iterator[GpuRow]:
    slots = "scattered" if scattered else "contiguous"
    # Half of the chunks go each way: one has no half.
    directions = ("d2h", "h2d", "both") if len(gpu.slots) > 1 else ("d2h", "h2d")
    cases = [(d, w) for d in directions for w in ("dma", "kernel")]
    for direction, way in [*cases, ("d2d", "kernel")]:
        took = seconds(lambda d=direction, w=way: gpu.move(d, w), repeats)  # type: ignore[misc]
        rate = gpu.nbytes / 1e9 / took
        slow = slowdown(gpu, direction, way, multiply)
        yield GpuRow(*which, slots, direction, way, rate, rate / best[direction], slow)


def gpu_table(rows: Sequence[GpuRow]) -> Table:
    title = f"moves of KV on {cuda_devices()[0]['name']} (medians)"
    table = Table(title=title, title_justify="left")
    columns = ("shape", "page", "tokens", "slots", "direction", "way")
    for name in (*columns, "GB/s", "of peak", "matmul"):
        table.add_column(name, justify="left" if name in columns else "right", no_wrap=True)
    for r in rows:
        slow = "" if r.slowdown is None else f"{r.slowdown:.2f}x"
        where = (r.shape, str(r.page), str(r.tokens), r.slots, r.direction, r.way)
        table.add_row(*where, f"{r.rate:.1f}", f"{r.of_peak:.2f}", slow)
    return table
