"""A hit's TTFT over its floor.

The floor is what no cache can beat: the prefill of the tail with the KV already in place, plus
the hit's bytes at this machine's memcpy speed. Both are measured in turns, in one run:

    python benchmarks/hit_floor.py [--context-tokens 2000,6000] [--repeats 9] [--model ID]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.transformers.engine import TransformersEngine
from workloads import GeneratedCorpus, Settings, generate


def memcpy_bytes_per_s(nbytes: int, repeats: int = 7) -> float:
    """Best of numpy's copy between warm buffers, one thread."""
    source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        np.copyto(target, source)
        best = max(best, nbytes / (time.perf_counter() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context-tokens", default="2000,6000")
    parser.add_argument("--chunk-tokens", type=int, default=64)
    parser.add_argument("--question-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--model")
    args = parser.parse_args()
    engine = TransformersEngine(args.model)
    table = Table(title=f"hit TTFT over its floor: {engine.model}, cpu tier, n={args.repeats}")
    for name in ("context", "hit tokens", "hit TTFT", "floor", "tail", "memcpy", "ratio (min-max)"):
        table.add_column(name, justify="right")
    for length in (int(text) for text in args.context_tokens.split(",")):
        settings = Settings(
            context_tokens=length,
            documents=1,
            questions=1,
            question_tokens=args.question_tokens,
            output_tokens=1,
        )
        corpus = GeneratedCorpus(0)
        [request] = generate("long-context", settings, corpus, engine.encode, engine.bos)
        ids = request.token_ids
        size = args.chunk_tokens
        past = (len(ids) - 1) // size * size
        nbytes = past * engine.token_bytes()
        spec = CacheSpec(size, {"cpu": nbytes + 2 * engine.layout(size).chunk_bytes})
        session = engine.open(spec, len(ids) + 1)
        for _ in range(2):  # cold, then a hit: now both of the engine's buffers hold this prompt
            list(session.serve([request], Load()))
            session.settle()
        hits, tails, ratios = [], [], []
        copy_s = nbytes / memcpy_bytes_per_s(nbytes)
        for _ in range(args.repeats):
            [sample] = session.serve([request], Load())
            session.settle()
            assert sample.hit_tokens == {"cpu": past}
            hits.append(sample.first_token_s - sample.scheduled_s)
            buffer = engine.kv_buffer()
            began = time.perf_counter()
            int(engine.forward(buffer, ids[past:], past).argmax())
            tails.append(time.perf_counter() - began)
            ratios.append(hits[-1] / (tails[-1] + copy_s))
        session.close()
        table.add_row(
            str(length),
            str(past),
            f"{median(hits) * 1e3:.0f} ms",
            f"{(median(tails) + copy_s) * 1e3:.0f} ms",
            f"{median(tails) * 1e3:.0f} ms",
            f"{copy_s * 1e3:.0f} ms",
            f"{median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
