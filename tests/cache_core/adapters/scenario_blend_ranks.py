"""Blend over two tensor-parallel workers in processes of their own.

Prints one JSON object. Arguments: model folder, scratch folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import connector
from tests.cache_core.adapters.scenario_blend import SEGMENT, WORKER, Prompts
from tests.vllm_process import fork_ranks

# Importing it sets an environment for one process; two ranks are three.
del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]

LONGEST_S = 60


def main() -> None:
    model = Path(sys.argv[1])
    prompts = Prompts()
    first, told = prompts.make([0, 1, 2, 3])
    second, moved = prompts.make([3, 1, 0, 2], gap=5)

    def blended(ask: Any) -> dict[str, Any]:
        plain = ask(second, salt="alone")
        ask(first, segments=told)
        # Segments are encoded, and seen, after the answer; what asks for them must not be a later
        # prefix.
        until, gap, cached = time.monotonic() + LONGEST_S, 50, 0
        orders = cycle(([1, 0, 3, 2], [2, 3, 0, 1]))
        while cached < 4 * SEGMENT and time.monotonic() < until:
            gap += 1
            tokens, segments = prompts.make(next(orders), gap=gap)
            cached = ask(tokens, segments=segments, ratio=0.9)["cached"]
        whole = ask(second, segments=moved, ratio=0.9999)
        naive = ask(second, segments=moved, ratio=0.0)
        after = ask(second)
        return {"plain": plain, "whole": whole, "naive": naive, "after": after}

    options = {"chunk_tokens": 32, "cpu_size": "64MiB", "blend": True, "blend_unverified": True}
    print(json.dumps(serve(model, options, blended)))


def serve(model: Path, options: dict[str, Any], run: Any) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    fork_ranks()
    llm = LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        block_size=32,
        tensor_parallel_size=2,
        seed=0,
        worker_cls=WORKER,
        kv_transfer_config=connector(options),
    )

    def ask(tokens: list[int], salt: str | None = None, **ours: Any) -> dict[str, Any]:
        extra = {"kv_transfer_params": {"lmcache": ours}} if ours else None
        wanted = SamplingParams(
            temperature=0, max_tokens=6, ignore_eos=True, extra_args=extra, logprobs=1
        )
        prompt: Any = {"prompt_token_ids": tokens}
        if salt is not None:
            prompt["cache_salt"] = salt
        (done,) = llm.generate([prompt], wanted, use_tqdm=False)
        return {
            "tokens": list(done.outputs[0].token_ids),
            "logprob": next(iter(done.outputs[0].logprobs[0].values())).logprob,
            "cached": done.num_cached_tokens or 0,
        }

    found: dict[str, Any] = run(ask)
    llm.llm_engine.engine_core.shutdown()
    return found


if __name__ == "__main__":
    main()
