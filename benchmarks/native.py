"""The native verbs: keys in tokens per second, gather and scatter against this machine's memcpy.

All verbs take turns in each round, and a ratio compares what ran in the same round. Memory is warm
and the working set is far larger than the caches:

    python benchmarks/native.py [--mib 1024] [--threads 1,2] [--repeats 9] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cache_core import _native

TOKENS = 64  # a chunk
HEAD_BYTES = 256  # so a piece, one head of one layer's K or V, has 16 KiB
# Layers and KV heads of models whose chunks have 1, 2.8 and 8 MiB.
MODELS = ((16, 2), (30, 3), (32, 8))


@dataclass(frozen=True, slots=True)
class Row:
    """Rates in units per second, one per round; ratios to the round's memcpy, where one ran."""

    name: str
    threads: int
    unit: str
    rates: list[float]
    ratios: list[float]


def rate(amount: float, call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return amount / (time.perf_counter() - began)


def key_rows(tokens: int, repeats: int) -> list[Row]:
    ids = np.random.default_rng(0).integers(0, 1 << 17, tokens, dtype=np.int32)
    root = bytes(32)
    cases: dict[str, Callable[[], object]] = {
        "keys, both families": lambda: _native.chunk_keys(ids, TOKENS, root, root),
        "keys, prefix only": lambda: _native.chunk_keys(ids, TOKENS, root, root, False),
        "keys, both, portable": lambda: _native.chunk_keys(ids, TOKENS, root, root, True, True),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, call in cases.items():
            rates[name].append(rate(tokens / 1e6, call))
    return [Row(name, 1, "Mtok/s", found, []) for name, found in rates.items()]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    nbytes: int  # that a call moves
    call: Callable[[], object]


class Bench:
    """An engine's KV and flat chunks, each a slab of ``mib`` MiB, that all verbs share."""

    def __init__(self, mib: int) -> None:
        self._nbytes = mib << 20
        self._engine, self._chunks = _native.Slab(self._nbytes), _native.Slab(self._nbytes)
        self._views = self._engine.view(), self._chunks.view()
        self._memcpy = ctypes.CDLL(None).memcpy
        self._memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def memcpys(self, pool: ThreadPoolExecutor, threads: int) -> list[Case]:
        """All of it by numpy and by libc, in as many equal parts as threads."""
        source, target = self._views
        cuts = [self._nbytes * i // threads for i in range(threads + 1)]
        parts = [slice(a, b) for a, b in pairwise(cuts)]

        def by_numpy(part: slice) -> None:
            np.copyto(target[part], source[part])

        def by_libc(part: slice) -> None:
            to, start = self._chunks.address + part.start, self._engine.address + part.start
            self._memcpy(to, start, part.stop - part.start)

        return [
            Case("numpy", self._nbytes, lambda: list(pool.map(by_numpy, parts))),
            Case("libc", self._nbytes, lambda: list(pool.map(by_libc, parts))),
        ]

    def verbs(self, threads: int) -> list[Case]:
        """A flat copy of all of it, and gathers and scatters of all chunks that fit."""
        to, start = (steps(slab.address, 1, 0) for slab in (self._chunks, self._engine))
        sizes = np.array([self._nbytes], dtype=np.uint64)
        cases = [Case("copy", self._nbytes, lambda: _native.copy(to, start, sizes, threads))]
        for layers, heads in MODELS:
            cases += self._moves(layers, heads, threads)
        return cases

    def _moves(self, layers: int, heads: int, threads: int) -> list[Case]:
        chunk_bytes = layers * 2 * heads * TOKENS * HEAD_BYTES
        count = self._nbytes // chunk_bytes
        slots = np.arange(count * TOKENS, dtype=np.int64).reshape(count, TOKENS)
        head = count * TOKENS * HEAD_BYTES
        k = steps(self._engine.address, layers, 2 * heads * head)
        paged = _native.Paged(
            k_bases=k,
            v_bases=k + np.uint64(heads * head),
            block_tokens=count * TOKENS,
            block_stride=head,
            token_stride=HEAD_BYTES,
            head_stride=head,
            kv_heads=heads,
            head_bytes=HEAD_BYTES,
            num_slots=count * TOKENS,
        )
        chunks = steps(self._chunks.address, count, chunk_bytes)

        def gather() -> None:
            _native.gather(paged, slots, chunks, "HND", threads)

        def scatter() -> None:
            _native.scatter(paged, slots, chunks, "HND", threads)

        size = f"{chunk_bytes / 2**20:.1f} MiB"
        moved = count * chunk_bytes
        return [Case(f"gather {size}", moved, gather), Case(f"scatter {size}", moved, scatter)]


def steps(start: int, count: int, step: int) -> NDArray[np.uint64]:
    return np.arange(count, dtype=np.uint64) * np.uint64(step) + np.uint64(start)


def move_rows(bench: Bench, threads: int, repeats: int) -> list[Row]:
    baseline = Row("memcpy, numpy or libc", threads, "GB/s", [], [])
    cases = bench.verbs(threads)
    rows = [Row(case.name, threads, "GB/s", [], []) for case in cases]
    with ThreadPoolExecutor(threads) as pool:
        memcpys = bench.memcpys(pool, threads)
        for case in (*memcpys, *cases):  # wakes threads
            case.call()
        for _ in range(repeats):
            best = max(rate(case.nbytes / 1e9, case.call) for case in memcpys)
            baseline.rates.append(best)
            for row, case in zip(rows, cases, strict=True):
                row.rates.append(rate(case.nbytes / 1e9, case.call))
                row.ratios.append(row.rates[-1] / best)
    return [baseline, *rows]


def spread(values: Sequence[float], digits: int) -> list[str]:
    if not values:
        return ["", ""]
    low, high = min(values), max(values)
    return [f"{median(values):.{digits}f}", f"{low:.{digits}f}-{high:.{digits}f}"]


def print_tables(console: Console, keys: Sequence[Row], moves: Sequence[Row], n: int) -> None:
    table = Table(title=f"keys by {_native.sha256_backend()}, chunks of {TOKENS} tokens, n={n}")
    table.add_column("verb")
    for name in ("Mtokens/s", "min-max"):
        table.add_column(name, justify="right")
    for row in keys:
        table.add_row(row.name, *spread(row.rates, 0))
    console.print(table)
    table = Table(title=f"moves by chunk size, pieces of {TOKENS * HEAD_BYTES >> 10} KiB, n={n}")
    table.add_column("verb")
    for name in ("threads", "GB/s", "min-max", "of memcpy", "min-max"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in moves:
        ratios = spread(row.ratios, 2)
        table.add_row(row.name, str(row.threads), *spread(row.rates, 1), *ratios)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="MiB on each side of a move")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    keys, moves = key_rows(args.tokens, args.repeats), []
    bench = Bench(args.mib)
    for threads in (int(text) for text in args.threads.split(",")):
        moves += move_rows(bench, threads, args.repeats)
    print_tables(Console(), keys, moves, args.repeats)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in (*keys, *moves)], indent=1) + "\n")


if __name__ == "__main__":
    main()
