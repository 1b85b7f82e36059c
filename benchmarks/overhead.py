"""What reuse costs where nothing can be reused: whole runs with and without, in turns.

Unlike ``lmcache bench random``, whose cells take turns request by request, a run here goes
through, so that the store of one request overlaps the prefill of the next:

    python benchmarks/overhead.py [--context-tokens 1000] [--requests 4] [--rounds 9]
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.transformers.engine import TransformersEngine
from workloads import GeneratedCorpus, Settings, generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context-tokens", type=int, default=1000)
    parser.add_argument("--chunk-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model")
    args = parser.parse_args()
    engine = TransformersEngine(args.model)
    settings = Settings(context_tokens=args.context_tokens, requests=args.requests, output_tokens=4)
    corpus = GeneratedCorpus(0)
    requests = generate("random", settings, corpus, engine.encode, engine.bos)
    longest = max(len(r.token_ids) + r.max_tokens for r in requests)
    size = args.requests * engine.token_bytes() * (args.context_tokens + args.chunk_tokens)
    off = engine.open(CacheSpec(args.chunk_tokens), longest)
    cached = engine.open(CacheSpec(args.chunk_tokens, {"cpu": size}, salt=uuid4().hex), longest)
    engine.warm_up(args.context_tokens)
    ttft: dict[str, list[float]] = {"off": [], "prefix": []}
    wall: dict[str, list[float]] = {"off": [], "prefix": []}
    for _ in range(args.rounds):
        for name, session in random.sample([("off", off), ("prefix", cached)], 2):
            session.clear()
            began = time.perf_counter()
            samples = list(session.serve(requests, Load()))
            session.settle()
            wall[name].append(time.perf_counter() - began)
            ttft[name].append(median(s.first_token_s - s.scheduled_s for s in samples))
            assert not any(s.hit_tokens for s in samples), "this workload must not hit"
    table = Table(title=f"cost of reuse without hits: {engine.model}, {args.rounds} rounds")
    for name in ("", "off", "prefix", "ratio, median (min-max)"):
        table.add_column(name, justify="right" if name else "left")
    for label, values in (("TTFT p50", ttft), ("time per run", wall)):
        ratios = [b / a for a, b in zip(values["off"], values["prefix"], strict=True)]
        table.add_row(
            label,
            f"{median(values['off']):.3f} s",
            f"{median(values['prefix']):.3f} s",
            f"{median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})",
        )
    off.close()
    cached.close()
    Console().print(table)


if __name__ == "__main__":
    main()
