"""What a fleet costs to size: ten million references, 64 replicas, every router and a pool.

python benchmarks/fleet.py [REFERENCES] [REPLICAS]
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from cache_core.sizing.curves import ROUTINGS
from lmcache_cli.tune.candidates import Goal, Prices, TierConfiguration
from lmcache_cli.tune.catalogue import find_architecture, find_hardware
from lmcache_cli.tune.cost import catalogue_cost
from lmcache_cli.tune.search import search
from lmcache_cli.tune.study import Study
from workloads.traces import TraceArrays

_TURNS, _CHUNKS, _CHUNK = 5, 8, 128


def conversations(references: int, replicas: int, seed: int = 0) -> TraceArrays:
    """Makes requests of conversations: each turn goes on from the one before by eight chunks, all
    start with one of 200 system prompts. Turns of some hundred conversations are mixed."""
    per = _CHUNKS * _TURNS * (_TURNS + 1) // 2
    count = references // per
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(count, dtype=np.int64), _TURNS)
    turn = np.tile(np.arange(1, _TURNS + 1), count)
    order = np.argsort(session + turn * rng.uniform(20, 400, count)[session], kind="stable")
    session, turn = session[order], turn[order]
    lengths = turn * _CHUNKS
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    ids = np.repeat(session, lengths) * (_TURNS * _CHUNKS) + within + 10**6
    shared = within < 2
    system = rng.zipf(1.3, count) % 200
    ids[shared] = np.repeat(system[session], lengths)[shared] * 2 + within[shared]
    total = len(session)
    return TraceArrays(
        ids.astype(np.int64),
        offsets.astype(np.int64),
        np.arange(total) / (3.0 * replicas),
        lengths * _CHUNK + 40,
        np.full(total, 120, np.int64),
        session,
        tuple(map(str, range(count))),
        _CHUNK,
    )


def main() -> None:
    """Prints the time of a replay by every router, of a whole search, and the peak of memory."""
    given = [int(text) for text in sys.argv[1:]]
    references, replicas = [*given, *(10_000_000, 64)[len(given) :]]
    arrays = conversations(references, replicas)
    cost = catalogue_cost(find_hardware("h100"), find_architecture("llama-3.1-8b"))
    goal = Goal(largest={"cpu": 2**38, "disk": 2**41, "remote": 2**43}, slo={"ttft.p90": 0.6})
    prices = Prices(cards=2.0 * replicas, replicas=replicas)
    print(f"{len(arrays.chunk_ids):,} references, {len(arrays):,} requests, {replicas} replicas")
    chunk = cost.chunk_bytes(_CHUNK)
    tiers = ("device", 3000 * chunk), ("cpu", 10_000 * chunk), ("remote", 400_000 * chunk)
    for routing in ROUTINGS:
        stack = TierConfiguration(tiers, _CHUNK, routing=routing)
        study = Study(arrays, cost, prices, goal=goal, replicas=replicas, routing=routing)
        began = time.process_time()
        hits = study.hits(stack).sum(axis=0) / study.tokens
        routed = time.process_time()
        p90 = study.run(stack).latencies()["ttft.p90"]
        shares = ", ".join(f"{100 * h:.1f}" for h in hits)
        print(
            f"{routing:12} {shares} % of the tokens hit on the device, in DRAM, in the pool:"
            f" {routed - began:.1f} s of CPU; TTFT p90 {1e3 * p90:,.0f} ms:"
            f" {time.process_time() - routed:.1f} s; peak {_peak():.2f} GiB",
            flush=True,
        )
        del study
    wall, used = time.perf_counter(), time.process_time()
    found = search(Study(arrays, cost, prices, goal=goal, replicas=replicas), goal, [_CHUNK])
    wall, used = time.perf_counter() - wall, time.process_time() - used
    print(
        f"search: {len(found.searched)} stacks in {used:.1f} s of CPU ({wall:.1f} s), peak"
        f" {_peak():.2f} GiB; cheaper: {found.fleet and found.fleet.cheaper}"
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
