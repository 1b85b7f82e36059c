"""TTFT of blend in vLLM: a RAG prompt whose passages are all known, in a new order.

Runs vLLM in this process, one request at a time, full prefill and each ratio in turns:

    python benchmarks/vllm_blend.py [--model FOLDER] [--passages 4] [--passage-tokens 980]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.models.random_llama import SETTINGS, connector, random_llama
from cache_core.blend.certificate import DEFAULT_RATIO

RATIOS = (0.0, DEFAULT_RATIO / 2, DEFAULT_RATIO, 0.3, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="[default: that of models/random_llama.py]")
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--passage-tokens", type=int, default=980)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if find_spec("vllm") is None:
        print("vLLM is not installed: make vllm")
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with TemporaryDirectory(prefix="lmcache-vllm-", dir=".") as scratch:
        measure(args, args.model or random_llama(Path(scratch) / "model"))


def measure(args: argparse.Namespace, model: str) -> None:
    from vllm import LLM

    length = args.passages * args.passage_tokens + 80
    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=length + 40,
        max_num_batched_tokens=max(2048, length),
        worker_cls="cache_core.adapters.vllm.blend_worker.BlendWorker",
        kv_transfer_config=connector(blend=True, blend_unverified=True, cpu_size="2GiB"),
    )
    rng = random.Random(0)
    passages = texts(llm, args, rng)
    order = list(range(args.passages))
    times: dict[str, list[float]] = {"full": [], **{f"{r:g}": [] for r in RATIOS}}
    for turn in range(2 * args.passages):  # until each was seen often enough
        order = [*order[1:], order[0]] if turn % 2 else order[::-1]
        ask(llm, *prompt(passages, order, rng), DEFAULT_RATIO)
    for _ in range(args.repeats):
        rng.shuffle(order)
        tokens, segments = prompt(passages, order, rng)
        for name in rng.sample(list(times), len(times)):
            # A question of its own each time, or the exact prefix would be hit.
            fresh = [*tokens[:-60], *(rng.randrange(100, 2000) for _ in range(60))]
            fresh[1:9] = [rng.randrange(100, 2000) for _ in range(8)]
            ratio = None if name == "full" else float(name)
            spent, cached = ask(llm, fresh, segments, ratio)
            if ratio is not None and cached < args.passages * args.passage_tokens:
                raise RuntimeError(f"only {cached} tokens were reused at ratio {name}")
            times[name].append(spent)
    table = Table("computed anew", "TTFT p50 ms (least-most)", "speed-up")
    base = median(times["full"])
    for name, found in times.items():
        text = f"{1e3 * median(found):.0f} ({1e3 * min(found):.0f}-{1e3 * max(found):.0f})"
        table.add_row(name, text, f"{base / median(found):.2f}x")
    Console().print(table)


def texts(llm: Any, args: argparse.Namespace, rng: random.Random) -> list[list[int]]:
    size = llm.llm_engine.model_config.get_vocab_size()
    return [
        [rng.randrange(100, min(size, 30_000)) for _ in range(args.passage_tokens)]
        for _ in range(args.passages)
    ]


def prompt(
    passages: list[list[int]], order: list[int], rng: random.Random
) -> tuple[list[int], list[list[int]]]:
    """BOS, a head of 8 tokens, the passages, a question of 60."""
    tokens = [1, *(rng.randrange(100, 2000) for _ in range(8))]
    segments = []
    for number in order:
        segments.append([len(tokens), len(tokens) + len(passages[number])])
        tokens += passages[number]
    return tokens + [rng.randrange(100, 2000) for _ in range(60)], segments


def ask(
    llm: Any, tokens: list[int], segments: list[list[int]], ratio: float | None
) -> tuple[float, int]:
    """Returns the seconds to the first token, and how many tokens were not prefilled."""
    from vllm import SamplingParams

    ours: dict[str, Any] = {"segments": segments, "ratio": 1 if ratio is None else ratio}
    wanted = SamplingParams(
        temperature=0,
        max_tokens=1,
        ignore_eos=True,
        extra_args={"kv_transfer_params": {"lmcache": ours}},
    )
    began = time.perf_counter()
    [done] = llm.generate([{"prompt_token_ids": tokens}], wanted, use_tqdm=False)
    spent = time.perf_counter() - began
    core = llm.llm_engine.engine_core.engine_core
    while core.scheduler.has_requests():
        llm.llm_engine.step()
    return spent, done.num_cached_tokens or 0


if __name__ == "__main__":
    main()
