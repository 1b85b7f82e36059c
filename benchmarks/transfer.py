"""Moves of paged KV against the best copy of as many bytes.

    python benchmarks/transfer.py [--cpu | --gpu] [--json FILE] [--limit SECONDS]
        [--mib 512] [--threads 1,2] [--repeats 9]
        [--shapes 8B,70B/TP8,MLA] [--pages 16,32,64,256] [--tokens 4096,256,32768] [--ctas 8,12,32]

On the CPU: gather and scatter of blocks of 2 to 64 KiB, in random order, against the best memcpy of
this machine (numpy's, which is libc's, and this project's own, in as many parts as threads) and
torch's `index_select` and `index_copy_`. A block has K and V of 16 layers, each in an array of its
own; "all" moves every block that the engine has, "1/4" a quarter of them, drawn at random. All take
turns in each round, and a ratio compares what ran in one round.

On a GPU (left out with --cpu, alone with --gpu, which exits with 4 where there is none): KV of
those shapes in pages of so many tokens, scattered and contiguous, in both directions and both at
once, by copy engines and by kernels on so many thread blocks, against one cudaMemcpyAsync of
--peak-mib; gathers within the device against its own copy; and how much a matrix product beside
them slows down (where torch has CUDA). What decides comes first.

Runs unattended: FILE is whole after each case, and after --limit seconds no case is begun; those
that were not are in it as `left_out`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu.transfer_rows import (
    SHAPES,
    GpuRow,
    Matrix,
    gpu_table,
    measured,
    peaks,
)
from gpu.transfer_rows import (
    product as multiply,
)
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cache_core import _native
from cache_core.transfer.cuda import CudaMissing, cuda_devices
from lmcache_cli.machine import machine

BLOCKS = (2 << 10, 8 << 10, 16 << 10, 64 << 10)
PLANES = 32


@dataclass(frozen=True, slots=True)
class Row:
    """GB/s of one round each, and their ratios to the round's best memcpy."""

    name: str
    block_bytes: int
    part: str
    threads: int
    rates: list[float]
    ratios: list[float]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    call: Callable[[], object]


def rate(nbytes: int, call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return nbytes / 1e9 / (time.perf_counter() - began)


def steps(start: int, count: int, step: int) -> NDArray[np.uint64]:
    return np.arange(count, dtype=np.uint64) * np.uint64(step) + np.uint64(start)


class Bench:
    """An engine of scattered blocks and flat chunks, each ``nbytes``."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._engine, self._chunk = _native.Slab(nbytes), _native.Slab(nbytes)
        self._engine.view()[:] = 1
        self._chunk.view()[:] = 2

    def memcpys(self, pool: ThreadPoolExecutor, threads: int, nbytes: int) -> list[Case]:
        source, target = self._engine.view(), self._chunk.view()
        cuts = [nbytes * i // threads for i in range(threads + 1)]
        parts = [slice(a, b) for a, b in pairwise(cuts)]
        to, start = steps(self._chunk.address, 1, 0), steps(self._engine.address, 1, 0)
        size = np.array([nbytes], dtype=np.uint64)

        def by_numpy(part: slice) -> None:
            np.copyto(target[part], source[part])

        return [
            Case("memcpy, cached stores", lambda: list(pool.map(by_numpy, parts))),
            Case("memcpy, non-temporal", lambda: _native.copy(to, start, size, threads)),
        ]

    def moves(self, block: int, threads: int, part: int) -> list[Case]:
        count = self.nbytes // block // PLANES
        order = np.random.default_rng(0).permutation(count)[: count // part]
        bases = steps(self._engine.address, PLANES, count * block)
        k, v = np.ascontiguousarray(bases[::2]), np.ascontiguousarray(bases[1::2])
        paged = _native.Paged(k, v, 1, block, block, block, 1, block, count)
        # As many chunks as keep all threads at work, as a tier has them.
        chunks = max(c for c in (64, 16, 4, 1) if len(order) % c == 0)
        slots = np.ascontiguousarray(order.reshape(chunks, -1), dtype=np.int64)
        there = steps(self._chunk.address, chunks, len(order) * block * PLANES // chunks)
        words = block // 8
        engine = torch.from_numpy(self._engine.view()).view(torch.int64)
        engine = engine[: PLANES * count * words].view(PLANES, count, words)
        chunk = torch.from_numpy(self._chunk.view()).view(torch.int64)
        chunk = chunk[: PLANES * len(order) * words].view(PLANES, len(order), words)
        index = torch.from_numpy(order)
        return [
            Case("gather", lambda: _native.gather(paged, slots, there, "NHD", threads)),
            Case("scatter", lambda: _native.scatter(paged, slots, there, "NHD", threads)),
            Case("index_select", lambda: torch.index_select(engine, 1, index, out=chunk)),
            Case("index_copy_", lambda: engine.index_copy_(1, index, chunk)),
        ]


def cpu_rows(
    bench: Bench, pool: ThreadPoolExecutor, threads: int, part: int, block: int, repeats: int
) -> list[Row]:
    torch.set_num_threads(threads)
    nbytes = bench.nbytes // part
    memcpys = bench.memcpys(pool, threads, nbytes)
    cases = (*memcpys, *bench.moves(block, threads, part))
    name = "all" if part == 1 else f"1/{part}"
    rows = [Row(c.name, block, name, threads, [], []) for c in cases]
    for case in cases:
        case.call()
    for _ in range(repeats):
        rates = [rate(nbytes, case.call) for case in cases]
        best = max(rates[: len(memcpys)])
        for row, value in zip(rows, rates, strict=True):
            row.rates.append(value)
            row.ratios.append(value / best)
    return rows


def cpu_table(rows: Sequence[Row], n: int) -> Table:
    table = Table(title=f"moves on the CPU, n={n} (median, min-max)", title_justify="left")
    for name in ("block", "part", "threads", "verb", "GB/s", "", "of best memcpy", ""):
        table.add_column(name, justify="left" if name == "verb" else "right", no_wrap=True)
    for row in rows:
        cells = []
        for values, digits in ((row.rates, 1), (row.ratios, 2)):
            cells.append(f"{median(values):.{digits}f}")
            cells.append(f"{min(values):.{digits}f}-{max(values):.{digits}f}")
        size = f"{row.block_bytes >> 10} KiB"
        table.add_row(size, row.part, str(row.threads), row.name, *cells)
    return table


class Document:
    """The JSON of a run, whole in its file at any time, and the time that the run has left."""

    def __init__(self, path: Path | None, limit_s: float) -> None:
        self._path, self._ends = path, time.monotonic() + limit_s
        self.left_out: list[str] = []
        self.values: dict[str, Any] = {
            "schema": "lmcache.transfer-benchmark/1",
            "machine": machine(),
            "complete": False,
            "left_out": self.left_out,
            "peaks": {},
            "cpu": [],
            "gpu": [],
        }

    def has_time(self, case: object) -> bool:
        """False, and noted, where ``case`` is not to be begun any more."""
        if time.monotonic() < self._ends:
            return True
        self.left_out.append(str(case))
        return False

    def add(self, where: str, rows: Sequence[Row] | Sequence[GpuRow]) -> None:
        self.values[where] += [asdict(row) for row in rows]
        self.write()

    def write(self) -> None:
        if self._path is None:
            return
        part = self._path.with_name(f".{self._path.name}.part")
        part.write_text(json.dumps(self.values, indent=1) + "\n")
        part.replace(self._path)


def measure_cpu(args: argparse.Namespace, document: Document) -> list[Row]:
    bench, rows = Bench(args.mib << 20), []
    for threads in args.threads:
        with ThreadPoolExecutor(threads) as pool:
            for part, block in product((1, 4), BLOCKS):
                if document.has_time(f"cpu, {threads} threads, 1/{part}, {block} bytes"):
                    found = cpu_rows(bench, pool, threads, part, block, args.repeats)
                    document.add("cpu", found)
                    rows += found
    return rows


def measure_gpu(args: argparse.Namespace, document: Document) -> list[GpuRow]:
    """Raises ``CudaMissing``."""
    nbytes = args.peak_mib << 20
    matrix = Matrix(args.shapes, args.pages, args.tokens, args.ctas, nbytes, args.repeats)
    best = peaks(nbytes, args.repeats)
    document.values |= {"peaks": best, "peak_bytes": nbytes, "device": cuda_devices()[0]}
    document.write()
    beside, rows = multiply(), []
    for case in matrix.cases():
        if document.has_time(case):
            found = measured(case, matrix, best, beside)
            document.add("gpu", found)
            rows += found
    return rows


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def shapes(text: str) -> list[str]:
    found = text.split(",")
    unknown = [name for name in found if name not in SHAPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(SHAPES)}")
    return found


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="MiB on each side of a CPU move")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--shapes", type=shapes, default=Matrix().shapes)
    parser.add_argument("--pages", type=numbers, default=Matrix().pages)
    parser.add_argument("--tokens", type=numbers, default=Matrix().tokens)
    parser.add_argument("--ctas", type=numbers, default=Matrix().ctas)
    parser.add_argument("--peak-mib", type=int, default=256, help="MiB of the copy to compare with")
    parser.add_argument("--limit", type=float, default=inf, metavar="SECONDS")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--cpu", action="store_true", help="leave the GPU out")
    only.add_argument("--gpu", action="store_true", help="leave the CPU out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(given)


def main() -> int:
    args = arguments()
    console, document = Console(width=110), Document(args.json, args.limit)
    if not args.gpu:
        console.print(cpu_table(measure_cpu(args, document), args.repeats))
    if not args.cpu:
        try:
            console.print(gpu_table(measure_gpu(args, document)))
        except CudaMissing as error:
            console.print(f"No GPU: {error}")
            if args.gpu:
                return 4
    if document.left_out:
        console.print(f"No time for {len(document.left_out)} cases: {'; '.join(document.left_out)}")
    document.values["complete"] = not document.left_out
    document.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
