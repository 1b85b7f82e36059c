"""Moves of paged KV against the best copy of as many bytes.

    python benchmarks/transfer.py [--mib 512] [--threads 1,2] [--repeats 9] [--json FILE] [--cpu]

On the CPU: gather and scatter of blocks of 2 to 64 KiB against the best memcpy of this machine
(numpy's, libc's and this project's own, in as many parts as threads) and torch's `index_select` and
`index_copy_`. All take turns in each round, and a ratio compares what ran in one round. Where there
is a GPU (and not --cpu): 8B, 70B/TP8 and MLA shapes, pages of 16, 64 and 256 tokens, 256, 4,096 and
32,768 tokens, scattered and contiguous, both directions and both at once, by copy engines and by
kernels, against a 256 MiB cudaMemcpyAsync; gathers within the device against its own copy; and how
much a matrix product beside them slows down (where torch has CUDA). Runs unattended.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from gpu.transfer_rows import GpuRow, gpu_rows, gpu_table
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cache_core import _native
from cache_core.transfer.cuda import CudaMissing
from lmcache_cli.machine import machine

BLOCKS = (2 << 10, 8 << 10, 16 << 10, 64 << 10)


@dataclass(frozen=True, slots=True)
class Row:
    """GB/s of one round each, and their ratios to the round's best memcpy."""

    name: str
    block_bytes: int
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
    """An engine of scattered blocks and one flat chunk, each ``nbytes``."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._engine, self._chunk = _native.Slab(nbytes), _native.Slab(nbytes)
        self._engine.view()[:] = 1
        self._chunk.view()[:] = 2

    def memcpys(self, pool: ThreadPoolExecutor, threads: int) -> list[Case]:
        source, target = self._engine.view(), self._chunk.view()
        cuts = [self.nbytes * i // threads for i in range(threads + 1)]
        parts = [slice(a, b) for a, b in pairwise(cuts)]
        to, start = steps(self._chunk.address, 1, 0), steps(self._engine.address, 1, 0)
        size = np.array([self.nbytes], dtype=np.uint64)

        def by_numpy(part: slice) -> None:
            np.copyto(target[part], source[part])

        return [
            Case("memcpy, cached stores", lambda: list(pool.map(by_numpy, parts))),
            Case("memcpy, non-temporal", lambda: _native.copy(to, start, size, threads)),
        ]

    def moves(self, block: int, threads: int) -> list[Case]:
        count = self.nbytes // block
        order = np.random.default_rng(0).permutation(count)
        slots = np.ascontiguousarray(order[None, :], dtype=np.int64)
        base = np.array([self._engine.address], dtype=np.uint64)
        paged = _native.Paged(base, base[:0], 1, block, block, block, 1, block, count)
        # As many chunks as keep all threads at work, as a tier has them.
        chunks = max(c for c in (64, 16, 4, 1) if count % c == 0)
        slots = slots.reshape(chunks, -1)
        there = steps(self._chunk.address, chunks, self.nbytes // chunks)
        engine = torch.from_numpy(self._engine.view()).view(torch.int64).view(count, -1)
        chunk = torch.from_numpy(self._chunk.view()).view(torch.int64).view(count, -1)
        index = torch.from_numpy(order)
        return [
            Case("gather", lambda: _native.gather(paged, slots, there, "NHD", threads)),
            Case("scatter", lambda: _native.scatter(paged, slots, there, "NHD", threads)),
            Case("index_select", lambda: torch.index_select(engine, 0, index, out=chunk)),
            Case("index_copy_", lambda: engine.index_copy_(0, index, chunk)),
        ]


def cpu_rows(bench: Bench, threads: int, repeats: int) -> list[Row]:
    torch.set_num_threads(threads)
    rows = []
    with ThreadPoolExecutor(threads) as pool:
        memcpys = bench.memcpys(pool, threads)
        for block in BLOCKS:
            cases = bench.moves(block, threads)
            found = [Row(c.name, block, threads, [], []) for c in (*memcpys, *cases)]
            for case in (*memcpys, *cases):
                case.call()
            for _ in range(repeats):
                rates = [rate(bench.nbytes, case.call) for case in (*memcpys, *cases)]
                best = max(rates[: len(memcpys)])
                for row, value in zip(found, rates, strict=True):
                    row.rates.append(value)
                    row.ratios.append(value / best)
            rows += found
    return rows


def cpu_table(rows: Sequence[Row], n: int) -> Table:
    table = Table(title=f"moves on the CPU, n={n} (median, min-max)", title_justify="left")
    for name in ("block", "threads", "verb", "GB/s", "", "of best memcpy", ""):
        table.add_column(name, justify="left" if name == "verb" else "right", no_wrap=True)
    for row in rows:
        cells = []
        for values, digits in ((row.rates, 1), (row.ratios, 2)):
            cells.append(f"{median(values):.{digits}f}")
            cells.append(f"{min(values):.{digits}f}-{max(values):.{digits}f}")
        size = f"{row.block_bytes >> 10} KiB"
        table.add_row(size, str(row.threads), row.name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="MiB on each side of a CPU move")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cpu", action="store_true", help="leave the GPU out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    console = Console(width=100)
    bench, rows = Bench(args.mib << 20), []
    for threads in (int(text) for text in args.threads.split(",")):
        rows += cpu_rows(bench, threads, args.repeats)
    console.print(cpu_table(rows, args.repeats))
    gpu: list[GpuRow] = []
    if not args.cpu:
        try:
            gpu = gpu_rows(args.repeats)
            console.print(gpu_table(gpu))
        except CudaMissing as error:
            console.print(f"No GPU: {error}")
    if args.json:
        document = {
            "schema": "lmcache.transfer-benchmark/1",
            "machine": machine(),
            "cpu": [asdict(row) for row in rows],
            "gpu": [asdict(row) for row in gpu],
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
