"""What the Ledger costs: bytes per chunk, look-ups, admissions, and evictions past pinned chunks.

python benchmarks/ledger.py [--chunks 1e5] [--request 100] [--pinned 2000,16000] [--policy lru]

Two inclusive tiers: the second holds all ``--chunks``, the first a quarter of them. Each policy
runs in a process of its own, so that memory is what its Ledger takes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from cache_core.ledger import Ledger, Plan
from cache_core.policies import POLICIES

_CALLS = 2000
_NEW = 500  # chunks that are admitted past the pinned ones

Row = tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=float, default=1e5)
    parser.add_argument("--request", type=int, default=100)
    parser.add_argument("--pinned", default="2000,16000")
    parser.add_argument("--policy", choices=tuple(POLICIES), help="one instead of all")
    args = parser.parse_args()
    chunks, pinned = int(args.chunks), [int(n) for n in args.pinned.split(",") if n]
    held = Table(title=f"Ledger, {chunks:,} chunks, requests of {args.request}")
    past = Table(title=f"{_NEW} chunks admitted past pinned ones, in ms, n=5")
    for table, names in (
        (held, ("policy", "call", "median", "worst")),
        (past, ("policy", "pinned", "median", "worst")),
    ):
        for name in names:
            table.add_column(name, justify="left" if name in ("policy", "call") else "right")
    for policy in [args.policy] if args.policy else [p for p in POLICIES if p != "unbounded"]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            for row in pool.apply(holding, (policy, chunks, args.request)):
                held.add_row(*row)
            for n in pinned:
                past.add_row(*pool.apply(evicting, (policy, n)))
    Console().print(held)
    Console().print(past)


def holding(policy: str, chunks: int, length: int) -> list[Row]:
    """A Ledger that holds so many, of requests of that length."""
    prompts = requests(length)
    next(prompts)
    before = resident()
    ledger = Ledger([chunks // 4, chunks], POLICIES[policy])
    times: list[float] = []
    while ledger.count(1) < chunks:
        start = time.thread_time()
        ledger.complete_store(ledger.prepare_store(next(prompts)).moves, stored=True)
        times.append(time.thread_time() - start)
    size = (resident() - before) / chunks
    rows: list[Row] = [(policy, "bytes per chunk", f"{size:.0f}", "")]

    def add(name: str, seconds: list[float], unit: str = "us") -> None:
        scale = {"us": 1e6, "ms": 1e3}[unit]
        worst = f"{max(seconds) * scale:.1f} {unit}" if len(seconds) > 1 else ""
        rows.append(("", name, f"{median(seconds) * scale:.1f} {unit}", worst))

    add("admit and settle, filling", times)
    admits, settles, lookups = [], [], []
    for _ in range(_CALLS):
        keys = next(prompts)
        start = time.thread_time()
        plan = ledger.prepare_store(keys)
        admits.append(time.thread_time() - start)
        start = time.thread_time()
        ledger.complete_store(plan.moves, stored=True)
        settles.append(time.thread_time() - start)
        start = time.thread_time()
        ledger.lookup(keys)
        lookups.append(time.thread_time() - start)
    add("admit, evicting", admits)
    add("settle", settles)
    add("look up", lookups)
    last = ledger.keys(1)
    add("check", [timed(ledger.check)], "ms")
    freed: list[Plan] = []
    packed: list[bytes] = []
    add("clear", [timed(lambda: freed.append(Plan(tuple(ledger.clear()))))], "ms")
    # As what was cleared goes to an engine's workers.
    add("pack what is freed", [timed(lambda: packed.append(pickle.dumps(freed[0], -1)))], "ms")
    add("unpack it", [timed(lambda: pickle.loads(packed[0]))], "ms")
    add("restore", [timed(lambda: ledger.restore(1, last))], "ms")
    return rows


def evicting(policy: str, pinned: int) -> Row:
    """One admission that evicts as many as it admits, while older chunks are pinned."""
    prompts = requests(_NEW)
    ledger = Ledger([pinned + 4 * _NEW], POLICIES[policy])
    old = [key for _ in range(-(-pinned // _NEW)) for key in next(prompts)][:pinned]
    for keys in (old, *(next(prompts) for _ in range(4))):
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
    hit = ledger.pin(ledger.lookup(old))
    times = []
    for _ in range(5):
        keys = next(prompts)
        start = time.thread_time()
        plan = ledger.prepare_store(keys)
        times.append((time.thread_time() - start) * 1e3)
        ledger.complete_store(plan.moves, stored=True)
    ledger.unpin(hit)
    return policy, f"{pinned:,}", f"{median(times):.2f}", f"{max(times):.2f}"


def requests(length: int) -> Iterator[list[bytes]]:
    """Of that many new chunks each, for ever."""
    draw = random.Random(0)
    while True:
        data = draw.randbytes(32 * length)
        yield [data[i : i + 32] for i in range(0, len(data), 32)]


def timed(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def resident() -> int:
    """Bytes of this process in memory, what is free given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
