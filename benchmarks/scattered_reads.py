"""How fast one core reads scattered blocks, which bounds a gather of them from above.

    python benchmarks/scattered_reads.py [--mib 512] [--repeats 9]

A gather writes in any order at nearly the rate of a memcpy, but it has to read where the blocks
are. Each row reads and copies nothing: all blocks as they lie, all in random order, and a quarter
of them, by rising address or in random order; with the best of several distances of prefetching.
Rates are compared with this project's memcpy in the same round. Needs a C++ compiler and AVX2.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cache_core import _native

BLOCKS = (2 << 10, 8 << 10, 16 << 10, 64 << 10)
AHEAD = (0, 2 << 10, 4 << 10, 8 << 10, 16 << 10)


def reader() -> Any:
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "reads.so"
        command = ["c++", "-O3", "-shared", "-fPIC", "-o", str(built), str(source)]
        subprocess.run(command, check=True)
        read = ctypes.CDLL(str(built)).read_blocks
    read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_size_t] * 3]
    read.restype = ctypes.c_uint64
    return read


def orders(count: int) -> dict[str, NDArray[np.int64]]:
    shuffled = np.random.default_rng(0).permutation(count)
    quarter = shuffled[: count // 4]
    return {
        "all, as they lie": np.arange(count),
        "all, at random": shuffled,
        "1/4, by address": np.sort(quarter),
        "1/4, at random": quarter,
    }


def rate(nbytes: int, call: Any) -> float:
    began = time.perf_counter()
    call()
    return nbytes / 1e9 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    read, nbytes = reader(), args.mib << 20
    source, target = _native.Slab(nbytes), _native.Slab(nbytes)
    source.view()[:] = 1
    target.view()[:] = 2
    to, start, size = (np.array([v], np.uint64) for v in (target.address, source.address, nbytes))
    table = Table(title=f"reads by one thread, n={args.repeats} (median)", title_justify="left")
    for name in ("block", "blocks", "GB/s read", "of memcpy", "prefetched ahead"):
        table.add_column(name, justify="left" if name == "blocks" else "right")
    for block in BLOCKS:
        for name, order in orders(nbytes // block).items():
            rates: dict[int, list[float]] = {ahead: [] for ahead in AHEAD}
            ratios: dict[int, list[float]] = {ahead: [] for ahead in AHEAD}
            for _ in range(args.repeats):
                memcpy = rate(nbytes, lambda: _native.copy(to, start, size, 1))
                for ahead in AHEAD:
                    call = (source.address, order.ctypes.data, len(order), block, ahead)
                    found = rate(len(order) * block, lambda call=call: read(*call))
                    rates[ahead].append(found)
                    ratios[ahead].append(found / memcpy)
            best = max(AHEAD, key=lambda ahead: median(rates[ahead]))
            table.add_row(
                f"{block >> 10} KiB",
                name,
                f"{median(rates[best]):.1f}",
                f"{median(ratios[best]):.2f}",
                f"{best >> 10} KiB" if best else "",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
