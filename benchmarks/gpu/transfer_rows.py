"""Moves of paged KV on a GPU: the cases of ``benchmarks/transfer.py``, in order of worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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

# Layers, planes, KV heads, bytes of a head: bf16, of one GPU.
SHAPES = {
    "8B": (32, 2, 8, 256),
    "70B/TP8": (80, 2, 1, 256),
    "MLA": (61, 1, 1, 1152),
    "tiny": (2, 2, 8, 128),
}
MATRIX = 4096


@dataclass(frozen=True, slots=True)
class Matrix:
    """What is measured: moves of all ``shapes``, ``pages`` and ``tokens``, kernels on each of
    ``ctas`` thread blocks (a few, as beside a model), against one copy of ``peak_bytes``."""

    shapes: Sequence[str] = ("8B", "70B/TP8", "MLA")
    pages: Sequence[int] = (16, 32, 64, 256)
    tokens: Sequence[int] = (4096, 256, 32768)
    ctas: Sequence[int] = (8, 12, 32)
    peak_bytes: int = 256 << 20
    repeats: int = 5

    def cases(self) -> list[Case]:
        """Scattered moves of the first length decide, so they come first; then contiguous ones,
        then the next length. Few runs before many: a driver has fallen over a batch of 50,000."""
        found = []
        for tokens in self.tokens:
            for scattered in (True, False):
                some = [Case(s, p, tokens, scattered) for s in self.shapes for p in self.pages]
                found += sorted(some, key=lambda case: case.runs)
        return found


@dataclass(frozen=True, slots=True)
class Case:
    shape: str
    page: int
    tokens: int
    scattered: bool

    @property
    def token_bytes(self) -> int:
        """Of one token in one plane of one layer."""
        _, _, heads, width = SHAPES[self.shape]
        return heads * width

    @property
    def planes(self) -> int:
        """Of all layers."""
        layers, planes, _, _ = SHAPES[self.shape]
        return layers * planes

    @property
    def run_bytes(self) -> int:
        """What lies in one piece: a page's tokens in one plane."""
        return self.page * self.token_bytes

    @property
    def runs(self) -> int:
        return self.planes * self.tokens // self.page

    @property
    def nbytes(self) -> int:
        return self.runs * self.run_bytes

    @property
    def slots(self) -> str:
        return "scattered" if self.scattered else "contiguous"

    def __str__(self) -> str:
        return f"{self.shape}, pages of {self.page}, {self.tokens} tokens, {self.slots}"


@dataclass(frozen=True, slots=True)
class GpuRow:
    """Medians of GB/s; ``of_peak`` is the share of the peak of that direction, ``slowdown`` how
    much longer a matrix product takes beside it (None: not measured). ``ctas``: thread blocks of a
    kernel, None for copy engines."""

    shape: str
    page: int
    tokens: int
    slots: str
    run_bytes: int
    nbytes: int
    direction: str
    way: str
    ctas: int | None
    rate: float
    of_peak: float
    slowdown: float | None


class Gpu:
    """One shape's KV on the GPU 0 and pinned chunks of as many tokens."""

    def __init__(self, case: Case) -> None:
        cuda = cuda_module()
        layers, planes, heads, width = SHAPES[case.shape]
        page, token_bytes = case.page, case.token_bytes
        self.nbytes = case.nbytes
        # Twice the blocks that are moved: scattered ones are no neighbours.
        blocks = 2 * case.tokens // page
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
        if case.scattered:
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
        self.whole: _cuda.Transfer = cuda.Transfer(0)
        self.ways = [self.whole, self.whole]

    def use(self, ctas: int) -> None:
        """Lets kernels have so many thread blocks."""
        cuda = cuda_module()
        self.ways = [cuda.Transfer(0, ctas), cuda.Transfer(0, ctas)]

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


def peaks(nbytes: int, repeats: int) -> dict[str, float]:
    """GB/s of one copy of ``nbytes`` in each direction, and within the device. Raises
    ``CudaMissing`` without kernels, driver or GPU."""
    cuda_devices()
    cuda = cuda_module()
    a: _cuda.DeviceMemory = cuda.DeviceMemory(0, nbytes)
    b: _cuda.DeviceMemory = cuda.DeviceMemory(0, nbytes)
    memory = PinnedMemory()
    [host, other] = memory.addresses(2, nbytes)
    first, second = cuda.Transfer(0), cuda.Transfer(0)
    size = np.array([nbytes], dtype=np.uint64)

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

    gb = nbytes / 1e9
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


def measured(
    case: Case,
    matrix: Matrix,
    best: dict[str, float],
    multiply: Callable[[], Any] | None,
) -> list[GpuRow]:
    """One case in all directions and ways, against the ``best`` of :func:`peaks`."""
    gpu = Gpu(case)
    try:
        # Half of the chunks go each way: one has no half.
        directions = ("h2d", "d2h", "both") if len(gpu.slots) > 1 else ("h2d", "d2h")
        rows = [_row(gpu, case, "d2d", None, matrix, best, multiply)]
        for ctas in matrix.ctas:
            gpu.use(ctas)
            rows += [_row(gpu, case, d, ctas, matrix, best, multiply) for d in directions]
        rows += [_row(gpu, case, d, 0, matrix, best, multiply) for d in directions]
    finally:
        gpu.close()
    return rows


def _row(
    gpu: Gpu,
    case: Case,
    direction: str,
    ctas: int | None,
    matrix: Matrix,
    best: dict[str, float],
    multiply: Callable[[], Any] | None,
) -> GpuRow:
    """``ctas``: None for a kernel on all of the GPU, 0 for copy engines."""
    way = "dma" if ctas == 0 else "kernel"
    rate = gpu.nbytes / 1e9 / seconds(lambda: gpu.move(direction, way), matrix.repeats)
    return GpuRow(
        case.shape, case.page, case.tokens, case.slots, case.run_bytes, case.nbytes,
        direction, way, ctas or None, rate, rate / best[direction],
        slowdown(gpu, direction, way, multiply),
    )  # fmt: skip


def gpu_table(rows: Sequence[GpuRow]) -> Table:
    title = f"moves of KV on {cuda_devices()[0]['name']} (medians)"
    table = Table(title=title, title_justify="left")
    columns = ("shape", "page", "run", "tokens", "slots", "direction", "way")
    for name in (*columns, "GB/s", "of peak", "matmul"):
        table.add_column(name, justify="left" if name in columns else "right", no_wrap=True)
    for r in rows:
        slow = "" if r.slowdown is None else f"{r.slowdown:.2f}x"
        way = r.way if r.ctas is None else f"{r.way} {r.ctas}"
        run = f"{r.run_bytes / 1024:.0f} KiB"
        where = (r.shape, str(r.page), run, str(r.tokens), r.slots, r.direction, way)
        table.add_row(*where, f"{r.rate:.1f}", f"{r.of_peak:.2f}", slow)
    return table
