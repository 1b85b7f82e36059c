"""Segments reused anywhere in a prompt, inside vLLM.

Prints one JSON object. Arguments: model folder, scratch folder.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import (
    VOCABULARY,
    engine,
    scheduler_half,
    settle,
    worker_half,
)

WORKER = "cache_core.adapters.vllm.blend_worker.BlendWorker"
SEGMENT, CHUNK = 160, 32


class Prompts:
    """Documents in any order, between a BOS and a question."""

    def __init__(self) -> None:
        rng = random.Random(3)

        def text(length: int) -> list[int]:
            return [rng.randrange(3, VOCABULARY) for _ in range(length)]

        self.documents = [text(SEGMENT) for _ in range(4)]
        self.question = text(40)

    def make(self, order: list[int], gap: int = 0) -> tuple[list[int], list[list[int]]]:
        tokens, segments = [1], []
        for number in order:
            tokens += range(10, 10 + gap)
            segments.append([len(tokens), len(tokens) + SEGMENT])
            tokens += self.documents[number]
        return tokens + self.question, segments


def ask(llm: Any, tokens: list[int], **ours: Any) -> dict[str, Any]:
    from vllm import SamplingParams

    extra = {"kv_transfer_params": {"lmcache": ours}} if ours else None
    wanted = SamplingParams(
        temperature=0, max_tokens=6, ignore_eos=True, extra_args=extra, logprobs=1
    )
    (done,) = llm.generate([{"prompt_token_ids": tokens}], wanted, use_tqdm=False)
    settle(llm)
    logprob = next(iter(done.outputs[0].logprobs[0].values())).logprob
    return {
        "tokens": list(done.outputs[0].token_ids),
        "logprob": logprob,
        "cached": done.num_cached_tokens or 0,
    }


def together(llm: Any, asked: list[tuple[list[int], dict[str, Any]]]) -> list[list[int]]:
    """All in one batch."""
    from vllm import SamplingParams

    wanted = [
        SamplingParams(
            temperature=0,
            max_tokens=6,
            ignore_eos=True,
            extra_args={"kv_transfer_params": {"lmcache": ours}} if ours else None,
        )
        for _, ours in asked
    ]
    prompts: Any = [{"prompt_token_ids": tokens} for tokens, _ in asked]
    done = llm.generate(prompts, wanted, use_tqdm=False)
    settle(llm)
    return [list(one.outputs[0].token_ids) for one in done]


def main() -> None:
    model = Path(sys.argv[1])
    prompts = Prompts()
    second, moved = prompts.make([3, 1, 0, 2], gap=5)
    other, _ = prompts.make([2, 0, 1, 3])
    third, there = prompts.make([1, 3, 2, 0], gap=7)
    asked = {"second": second, "other": other, "third": third}
    with engine(model, None) as (llm, _counts):
        plain = {name: ask(llm, p) for name, p in asked.items()}
    options = {"chunk_tokens": CHUNK, "cpu_size": "64MiB", "blend": True, "blend_unverified": True}
    found: dict[str, Any] = {"plain": plain}
    cramped = {"enable_prefix_caching": True, "max_num_batched_tokens": 256}
    with engine(model, options, worker_cls=WORKER, **cramped) as (llm, counts):
        core = llm.llm_engine.engine_core.engine_core
        free = core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1], [0, 3, 1, 2]):
            known, bounds = prompts.make(order)
            found.setdefault("learning", []).append(ask(llm, known, segments=bounds, ratio=0.15))
        side = scheduler_half(llm)
        found["seen"] = len(side.blend_scheduler.seen)
        for ratio in (0.0, 0.3, 0.9999):
            found[f"ratio {ratio}"] = ask(llm, second, segments=moved, ratio=ratio)
        # Another question on the same passages, in the same order.
        found["followed"] = ask(llm, [*second[:-40], *second[:40]], segments=moved, ratio=0.3)
        found["found"] = ask(llm, second, segments="find", ratio=0.9999)
        found["wrong"] = ask(llm, other, segments=[[5, 3]])
        found["batch"] = together(
            llm,
            [
                (second, {"segments": moved, "ratio": 0.9999}),
                (other, {}),
                (second, {"segments": moved, "ratio": 0.9999}),
            ],
        )
        found["untouched"] = ask(llm, second)
        found["counts"] = counts
        found["blocks"] = [free, core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()]
        # Segments that can't be read any more, in a prompt that nothing else has.
        worker = worker_half()
        (tier,) = worker.tiers
        tier.discard(list(tier._slots))
        found["lost"] = ask(llm, third, segments=there, ratio=0.2)
        side.check()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
