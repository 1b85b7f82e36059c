"""What a fleet costs to size: ten million references, 64 replicas, every router and a pool.

python benchmarks/fleet.py [REFERENCES] [REPLICAS]
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from lmcache_cli.tune.candidates import Goal, Prices
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
    """Prints the time of a whole search and the peak of memory."""
    references, replicas = (int(text) for text in (*sys.argv[1:], "10000000", "64")[:2])
    arrays = conversations(references, replicas)
    cost = catalogue_cost(find_hardware("h100"), find_architecture("llama-3.1-8b"))
    goal = Goal(largest={"cpu": 2**38, "disk": 2**41, "remote": 2**43}, slo={"ttft.p90": 0.6})
    prices = Prices(cards=2.0 * replicas, replicas=replicas)
    began, cpu = time.perf_counter(), time.process_time()
    study = Study(arrays, cost, prices, goal=goal, replicas=replicas)
    found = search(study, goal, [_CHUNK])
    wall, used = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(arrays.chunk_ids):,} references, {len(arrays):,} requests, {replicas} replicas:"
        f" {len(found.searched)} stacks in {used:.1f} s of CPU ({wall:.1f} s), peak {peak:.2f} GiB"
    )
    assert found.fleet is not None
    print(f"cheaper: {found.fleet.cheaper}")
    for name, outcome in found.fleet.points.items():
        p90 = outcome.latency["ttft.p90"]
        print(
            f"{name:8} {outcome.stack.routing:12} {100 * outcome.hit_rate:5.1f} % hits,"
            f" TTFT p90 {1e3 * p90:,.0f} ms, ${outcome.cost_per_hour:.3f} an hour"
        )


if __name__ == "__main__":
    main()
