"""Blend over two tensor-parallel workers in processes of their own.

Prints one JSON object. Arguments: model folder, scratch folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import connector
from tests.cache_core.adapters.scenario_blend import SEGMENT, WORKER, Prompts

# Importing it sets an environment for one process; two ranks are three.
del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]

LONGEST_S = 60


def main() -> None:
    model = Path(sys.argv[1])
    prompts = Prompts()
    first, told = prompts.make([0, 1, 2, 3])
    second, moved = prompts.make([3, 1, 0, 2], gap=5)
    plain = serve(model, None, lambda ask: {"plain": ask(second)})

    def blended(ask: Any) -> dict[str, Any]:
        ask(first, segments=told)
        # Segments are encoded after the answer; what asks for them must not be a later prefix.
        until, gap, cached = time.monotonic() + LONGEST_S, 50, 0
        while cached < 4 * SEGMENT and time.monotonic() < until:
            gap += 1
            tokens, segments = prompts.make([1, 0, 3, 2], gap=gap)
            cached = ask(tokens, segments=segments, ratio=0.9)["cached"]
        whole = ask(second, segments=moved, ratio=0.9999)
        naive = ask(second, segments=moved, ratio=0.0)
        return {"whole": whole, "naive": naive, "after": ask(second)}

    options = {"chunk_tokens": 32, "cpu_size": "64MiB", "blend": True, "blend_unverified": True}
    print(json.dumps(plain | serve(model, options, blended)))


def serve(model: Path, options: dict[str, Any] | None, run: Any) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = {}
    if options is not None:
        settings = {"kv_transfer_config": connector(options), "worker_cls": WORKER}
    llm = LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        block_size=32,
        tensor_parallel_size=2,
        seed=0,
        **settings,
    )

    def ask(tokens: list[int], **ours: Any) -> dict[str, Any]:
        extra = {"kv_transfer_params": {"lmcache": ours}} if ours else None
        wanted = SamplingParams(
            temperature=0, max_tokens=6, ignore_eos=True, extra_args=extra, logprobs=1
        )
        (done,) = llm.generate([{"prompt_token_ids": tokens}], wanted, use_tqdm=False)
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
