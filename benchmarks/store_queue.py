"""What a slow disk costs the tier above it: a burst of stores, with the disk at a few MB/s.

The cpu tier has room for everything. Right behind the burst every prompt is looked up and loaded:
the share that the cpu tier serves, the stores whose memory the engine had to leave alone until
then, and the most chunks that waited for the disk:

    python benchmarks/store_queue.py [--mb-per-s 20 10] [--stores 60] [--repeats 3]

``--before FOLDER`` runs the code of another checkout on the same workload in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cache_core.cache import TieredCache
from cache_core.layout import KVLayout
from cache_core.tiers import DiskTier, MemoryTier
from cache_core.tiers.wrappers import Throttled
from cache_core.transfer.chunks import FlatBuffers

LAYOUT = KVLayout(layers=8, kv_heads=4, head_dim=64, dtype="float16", chunk_tokens=32)  # 256 KiB
PROMPT = 8
PACE_S = 0.02  # between two requests: what computing one would take


def once(mb_per_s: float, stores: int) -> dict[str, float]:
    """One burst, in a fresh cache."""
    chunk = LAYOUT.chunk_bytes
    engine = np.ones((stores, PROMPT, chunk), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        disk = DiskTier("disk", Path(folder), stores * PROMPT * chunk * 2, chunk)
        slow = Throttled(disk, chunk, write_bytes_per_s=mb_per_s * 1e6)
        cpu = MemoryTier("cpu", stores * PROMPT, chunk)
        cache = TieredCache(LAYOUT, [cpu, slow])
        prompts = [[os.urandom(32) for _ in range(PROMPT)] for _ in range(stores)]
        futures = []
        most = 0
        for keys, rows in zip(prompts, engine, strict=True):
            futures.append(cache.store(keys, place(rows)))
            time.sleep(PACE_S)
            most = max(most, sum(not future.done() for future in futures))
        loaded: dict[str, int] = {}
        target = np.empty((PROMPT, chunk), dtype=np.uint8)
        for keys in prompts:
            hit = cache.acquire(keys)
            for tier, chunks in cache.load(hit, place(target[: len(hit)])).by_tier.items():
                loaded[tier] = loaded.get(tier, 0) + chunks
        began = time.perf_counter()
        for future in futures:
            future.result()
        held_s = time.perf_counter() - began
        # The code of before has no such count.
        waited = cache.queued_chunks()["disk"][1] if hasattr(cache, "queued_chunks") else 0
        cache.close()
    return {
        "cpu hits": loaded.get("cpu", 0) / (stores * PROMPT),
        "stores that held the engine's memory": most,
        "MB of it at once": most * PROMPT * chunk / 1e6,
        "s until the last is free": held_s,
        "chunks that waited for the disk": waited,
    }


def place(rows: np.ndarray[Any, np.dtype[np.uint8]]) -> FlatBuffers:
    steps = np.arange(len(rows), dtype=np.uint64) * np.uint64(LAYOUT.chunk_bytes)
    return FlatBuffers(np.uint64(rows.ctypes.data) + steps, LAYOUT.chunk_bytes)


def elsewhere(folder: Path, mb_per_s: float, stores: int) -> dict[str, float]:
    """The same with the code of another checkout."""
    done = subprocess.run(
        [sys.executable, __file__, "--once", str(mb_per_s), "--stores", str(stores)],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb-per-s", type=float, nargs="+", default=[20.0, 10.0])
    parser.add_argument("--stores", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--once", type=float)
    options = parser.parse_args()
    if options.once is not None:
        print(json.dumps(once(options.once, options.stores)))
        return
    here = Path(__file__).resolve().parents[1]
    sides = {"now": here} if options.before is None else {"before": options.before, "now": here}
    found: dict[tuple[float, str], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for rate in options.mb_per_s:
            for side, folder in sides.items():
                one = elsewhere(folder.resolve(), rate, options.stores)
                found.setdefault((rate, side), []).append(one)
    table = Table("disk, MB/s", "code", *next(iter(found.values()))[0])
    for (rate, side), runs in found.items():
        cells = []
        for name in runs[0]:
            values = [run[name] for run in runs]
            cells.append(f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})")
        table.add_row(f"{rate:g}", side, *cells)
    Console(width=160).print(table)
    print(f"{options.stores} stores of {PROMPT} chunks of {LAYOUT.chunk_bytes >> 10} KiB, one each")
    print(f"{PACE_S * 1e3:g} ms; median (range) of {options.repeats} runs")


if __name__ == "__main__":
    main()
