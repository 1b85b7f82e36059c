"""What a whole hit curve costs, how near a sample comes, and whether outside oracles agree.

python benchmarks/curves.py [--references 10000000] [--points 15] [--repeats 3]

LMCACHE_TRACES names the folder with `mooncake/`; without it a generated trace stands in. Oracles
are used where installed: `pip install kvcache-simulator libcachesim`. Both need a run per capacity:
a curve of theirs is `--points` capacities, one of ours has every capacity.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import TierCurves, curve_error, hit_curves
from cache_core.sizing.replay import replay_ledger

_BLOCK_TOKENS = 512
_DOCUMENT_CHUNKS = 64


def mooncake(folder: str | None) -> tuple[str, AccessTrace]:
    """The public trace, or documents that stand in for it."""
    import json

    path = Path(folder or "") / "mooncake" / "conversation_trace.jsonl"
    if not folder or not path.is_file():
        return "generated", documents(300_000)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return "mooncake conversation", AccessTrace.of(
        [row["hash_ids"] for row in rows],
        _BLOCK_TOKENS,
        prompt_tokens=[row["input_length"] for row in rows],
    )


def documents(references: int, seed: int = 0) -> AccessTrace:
    """Requests of a shared root chunk, a leading part of one of many documents (Zipf), and a new
    tail of one to eight chunks."""
    random = np.random.default_rng(seed)
    requests = references // 38
    document = random.zipf(1.2, requests) % 200_000
    shared = random.integers(1, _DOCUMENT_CHUNKS + 1, requests)
    lengths = 1 + shared + random.integers(1, 9, requests)
    offsets = np.zeros(requests + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    within = np.repeat(document, lengths) * _DOCUMENT_CHUNKS + place
    own = np.arange(offsets[-1]) + (1 << 40)
    ids = np.where(place <= np.repeat(shared, lengths), within, own)
    ids[offsets[:-1]] = 0
    return AccessTrace(ids, offsets, _BLOCK_TOKENS)


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds of CPU, of this process and those it waited for, and the last result. Nothing
    here uses two cores, and others may use this machine."""

    def used() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    seconds, result = [], None
    for _ in range(repeats):
        start, count = used(), 0
        # The clock ticks in hundredths.
        while not count or used() - start < 0.2:
            result = call()
            count += 1
        seconds.append((used() - start) / count)
    return median(seconds), result


def peak_bytes(call: Callable[[], object]) -> int:
    """How much more memory the process had during the call than before."""

    def read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    call()
    return read("VmHWM") - before


def speed(title: str, references: AccessTrace, repeats: int) -> Table:
    seconds, curves = timed(lambda: hit_curves(references, sample_above=1 << 62), repeats)
    peak = peak_bytes(lambda: hit_curves(references, sample_above=1 << 62))
    curve = curves["prefix"]
    table = Table(title=f"{title}: {len(references.ids):,} references, {curve.distinct:,} chunks")
    for column in ("what", "CPU seconds", "memory", "error of hit rate, mean and max"):
        table.add_column(column, justify="left" if column == "what" else "right")
    each = f"{peak / 2**20:.0f} MiB, {peak / curve.distinct:.0f} B a chunk"
    table.add_row("both curves, exact", f"{seconds:.3f}", each, "")
    for share in (0.1, 0.01):
        most = int(len(references.ids) * share)
        if most < 1000:
            continue
        sample = partial(hit_curves, references, sample_above=most)
        seconds, sampled = timed(sample, repeats)
        mean, worst = curve_error(sampled["prefix"], curve)
        table.add_row(f"sampled, {share:.0%}", f"{seconds:.3f}", "", f"{mean:.4f}  {worst:.4f}")
    seconds, tiers = timed(lambda: TierCurves(references), 1)
    table.add_row("distances for stacks of tiers", f"{seconds:.3f}", "", "")
    stacks = [(100 * 2**i, 1000 * 2**i, 10_000 * 2**i) for i in range(4)]
    seconds, _ = timed(lambda: tiers.hits(stacks, "write_on_eviction"), 1)
    table.add_row("a stack of three tiers, per request", f"{seconds / len(stacks):.3f}", "", "")
    return table


def kvcache_simulator(
    references: AccessTrace, capacities: list[int], warm: int
) -> NDArray[np.int64]:
    """Tokens hit by requests from ``warm`` on; -1 where it does not answer because the cache was
    not full by then."""
    from array import array

    from kvcache_sim.cpp_backend import run_cpp_sweep  # type: ignore[import-not-found]
    from kvcache_sim.trace import TraceData  # type: ignore[import-not-found]

    lengths = np.diff(references.offsets)
    place = np.arange(len(references.ids)) - np.repeat(references.offsets[:-1], lengths)
    assert references.prompt_tokens is not None
    left = np.repeat(references.prompt_tokens, lengths) - place * references.chunk_tokens
    tokens = left.clip(0, references.chunk_tokens)
    trace = TraceData(
        ids=array("Q", references.ids.tolist()),
        tokens=array("I", tokens.tolist()),
        request_starts=references.offsets.tolist(),
        block_size=references.chunk_tokens,
        request_count=len(references),
        unique_raw_blocks=references.distinct,
        total_input_tokens=references.tokens,
        average_input_tokens=references.tokens / len(references),
        parse_errors=0,
        skipped_records=0,
    )
    found = run_cpp_sweep(trace, capacities=capacities, policies=["lru"], warmup_requests=warm)
    points = [found.results["lru", capacity] for capacity in capacities]
    answered = [p.hitTokens if p.measurementMode == "fixed_window" else -1 for p in points]
    return np.array(answered, np.int64)


def libcachesim(file: Path, uses: int, capacities: list[int]) -> NDArray[np.int64]:
    """Chunks hit, with each chunk a request of its own."""
    import libcachesim as lcs  # type: ignore[import-not-found]

    hits = []
    for capacity in capacities:
        reader = lcs.TraceReader(str(file), lcs.TraceType.ORACLE_GENERAL_TRACE)
        missed, _ = lcs.LRU(capacity, hashpower=18).process_trace(reader)
        hits.append(round((1 - missed) * uses))
    return np.array(hits, np.int64)


def oracles(title: str, references: AccessTrace, points: int, repeats: int) -> Table:
    capacities = np.unique(np.geomspace(100, references.distinct * 0.9, points).astype(int))
    asked = capacities.tolist()
    table = Table(title=f"{title}: LRU at {len(asked)} capacities, {asked[0]:,} to {asked[-1]:,}")
    for column in ("oracle", "compared", "equal", "its CPU seconds", "ours", "ratio"):
        table.add_column(column, justify="left" if column in ("oracle", "compared") else "right")
    if references.prompt_tokens is None:
        lengths = np.diff(references.offsets) * references.chunk_tokens
        references = replace(references, prompt_tokens=lengths)
    assert references.prompt_tokens is not None

    def add(name: str, what: str, equal: str, its: float, ours: float) -> None:
        table.add_row(name, what, equal, f"{its:.3f}", f"{ours:.3f}", f"{its / ours:.0f} x")

    if found := installed("kvcache-simulator"):
        warm = len(references) // 2
        kvcache_simulator(references, asked[:1], warm)  # compiles itself the first time
        its, theirs = timed(lambda: kvcache_simulator(references, asked, warm), repeats)
        ours, _ = timed(lambda: hit_curves(references, ["prefix"]), repeats)
        hits = TierCurves(references).hits([[c] for c in asked])[:, warm:, 0].astype(np.int64)
        tokens = np.minimum(hits * references.chunk_tokens, references.prompt_tokens[warm:])
        answered = theirs >= 0
        same = int((theirs == tokens.sum(axis=1))[answered].sum())
        add(found, "tokens hit, second half", f"{same} of {answered.sum()}", its, ours)
    # No notion of requests: each chunk is one.
    alone = AccessTrace(references.ids, np.arange(len(references.ids) + 1, dtype=np.int64))
    if found := installed("libcachesim"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.bin"
            fields = [("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")]
            rows = np.zeros(len(alone), np.dtype(fields))
            rows["id"], rows["size"], rows["next"] = references.ids + 1, 1, -2
            rows.tofile(file)
            its, theirs = timed(lambda: libcachesim(file, len(alone), asked), repeats)
        ours, curves = timed(lambda: hit_curves(alone, ["any_position"]), repeats)
        same = int((theirs == curves["any_position"].at(asked)).sum())
        add(found, "chunks hit, one per request", f"{same} of {len(asked)}", its, ours)
    few = asked[:: max(len(asked) // 3, 1)]
    ours, curves = timed(lambda: hit_curves(references, ["prefix"]), repeats)
    its, rates = timed(lambda: [replay_ledger(references, [c]).hit_rate for c in few], 1)
    same = sum(curves["prefix"].hit_rate(c) == r for c, r in zip(few, rates, strict=True))
    its *= len(asked) / len(few)
    add("our Ledger (scaled up)", "hit rate", f"{same} of {len(few)}", its, ours)
    return table


def installed(package: str) -> str | None:
    """Name and version."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=int, default=10_000_000)
    parser.add_argument("--points", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    console = Console()
    title, references = mooncake(os.environ.get("LMCACHE_TRACES"))
    console.print(speed(title, references, args.repeats))
    console.print(oracles(title, references, args.points, args.repeats))
    for package in ("kvcache-simulator", "libcachesim"):
        if not installed(package):
            console.print(f"{package} is not installed: not compared")
    console.print(speed("Zipf over documents", documents(args.references), 1))


if __name__ == "__main__":
    main()
