"""What one core can do with scattered blocks: read, write, and copy them in several ways.

    python benchmarks/scattered_blocks.py [--mib 512] [--repeats 9]

Reads bound a gather from above: it writes fast in any order, but it has to read where the blocks
are. The copies are those that decision 0016 chose among; of ways with a
number (bytes ahead, blocks in turns, bytes in a batch) the best is shown. Rates are compared with
this project's memcpy in the same round. Needs a C++ compiler and AVX2.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cache_core import _native

BLOCKS = (2 << 10, 8 << 10, 16 << 10, 64 << 10)
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Way:
    """``blocks``: how sources and destinations lie, by the names of :func:`orders`."""

    name: str
    key: str
    blocks: tuple[str, str]
    numbers: tuple[int, ...] = (0,)


_AHEAD = (2 << 10, 4 << 10, 8 << 10, 16 << 10)
WAYS = (
    Way("read in order", "r", ("order", "order"), (0, *_AHEAD)),
    Way("read at random", "r", ("random", "order"), (0, *_AHEAD)),
    Way("read a quarter, rising", "r", ("quarter", "order"), (0, *_AHEAD)),
    Way("write in order", "w", ("order", "order")),
    Way("write at random", "w", ("order", "random")),
    Way("copy, read at random", "c", ("random", "order")),
    Way("  lines of later blocks ahead", "c", ("random", "order"), _AHEAD),
    Way("  blocks in turns", "t", ("random", "order"), (2, 4, 8)),
    Way("  into the cache, then out", "b", ("random", "order"), (8 << 10, 64 << 10)),
    Way("  rep movsb", "m", ("random", "order")),
    Way("copy, write at random", "c", ("order", "random")),
    Way("  pages ahead", "p", ("order", "random"), (4 << 10, 8 << 10, 16 << 10)),
    Way("copy a quarter, rising", "c", ("quarter", "random"), (0, *_AHEAD)),
)


def built() -> Any:
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "blocks.so"
        command = ["c++", "-std=c++17", "-O3", "-shared", "-fPIC", "-o", str(module), str(source)]
        subprocess.run(command, check=True)
        run = ctypes.CDLL(str(module)).run
    pointers = [ctypes.c_void_p] * 4
    run.argtypes = [ctypes.c_char, ctypes.c_size_t, *pointers, ctypes.c_size_t, ctypes.c_size_t]
    run.restype = None
    return run


def orders(count: int) -> dict[str, Numbers]:
    shuffled = np.random.default_rng(0).permutation(count)
    quarter = np.sort(shuffled[: count // 4])
    return {"order": np.arange(count), "random": shuffled, "quarter": quarter}


def rate(nbytes: int, call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return nbytes / 1e9 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    run, nbytes = built(), args.mib << 20
    source, target = _native.Slab(nbytes), _native.Slab(nbytes)
    source.view()[:] = 1
    target.view()[:] = 2
    to, start, size = (np.array([v], np.uint64) for v in (target.address, source.address, nbytes))
    table = Table(title=f"one thread, n={args.repeats}: GB/s (of memcpy), medians")
    table.add_column("way", no_wrap=True)
    for block in BLOCKS:
        table.add_column(f"{block >> 10} KiB", justify="right", no_wrap=True)
    cells: dict[str, list[str]] = {way.name: [] for way in WAYS}
    for block in track(BLOCKS, "blocks", console=Console(stderr=True)):
        lie = orders(nbytes // block)
        tried = [(way, number) for way in WAYS for number in way.numbers]
        rates: dict[tuple[Way, int], list[float]] = {key: [] for key in tried}
        memcpy: list[float] = []
        for _ in range(args.repeats):
            memcpy.append(rate(nbytes, lambda: _native.copy(to, start, size, 1)))
            for way, number in tried:
                here, there = (lie[name] for name in way.blocks)
                count = min(len(here), len(there))
                call = (way.key.encode(), number, target.address, source.address,
                        there.ctypes.data, here.ctypes.data, count, block)  # fmt: skip
                rates[way, number].append(rate(count * block, partial(run, *call)))
        for way in WAYS:
            best = max((rates[way, number] for number in way.numbers), key=median)
            ratio = median(a / b for a, b in zip(best, memcpy, strict=True))
            cells[way.name].append(f"{median(best):.1f} ({ratio:.2f})")
    for name, row in cells.items():
        table.add_row(name, *row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
