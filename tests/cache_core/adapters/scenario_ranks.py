"""Two workers in processes of their own, tensor- or pipeline-parallel, each with its own tiers.

Prints one JSON object: tokens and cached tokens by request, cold (each under a salt of its own, so
that vLLM computes everything) and as anybody would ask.
Arguments: model folder, scratch folder, ``tensor`` or ``pipeline``.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import connector
from tests.vllm_process import fork_ranks

# Importing it sets an environment for one process; two ranks are three.
del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]


def make_room_for_inputs() -> None:
    """A later stage of a pipeline makes room for its inputs in a trial run, which vLLM (0.32) skips
    on a CPU: without a connector too, its first step fails."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    sync = CPUModelRunner.sync_and_gather_intermediate_tensors

    def with_room(runner: Any, *given: Any) -> Any:
        if runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens,
                dtype=runner.model_config.dtype,
                device=runner.device,
            )
        return sync(runner, *given)

    setattr(CPUModelRunner, "sync_and_gather_intermediate_tensors", with_room)  # noqa: B010


def main() -> None:
    from vllm import LLM, SamplingParams

    fork_ranks()
    make_room_for_inputs()
    model, scratch, parallel = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    options = {
        "chunk_tokens": 64,
        "cpu_size": "1MiB",
        "disk_size": "200MiB",
        "disk_path": str(scratch / "ranks"),
    }
    llm = LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        enable_prefix_caching=False,
        seed=0,
        kv_transfer_config=connector(options),
        **{f"{parallel}_parallel_size": 2},
    )
    rng = random.Random(1)
    document = [rng.randrange(3, 2048) for _ in range(600)]
    wanted = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    tokens: dict[str, list[list[int]]] = {"cold": [], "ours": []}
    cached: dict[str, list[int]] = {"cold": [], "ours": []}
    for question in range(3):
        for kind in tokens:
            prompt: Any = {"prompt_token_ids": [*document, 7 + question]}
            if kind == "cold":
                prompt["cache_salt"] = f"question {question}"
            (done,) = llm.generate([prompt], wanted, use_tqdm=False)
            tokens[kind].append(list(done.outputs[0].token_ids))
            cached[kind].append(done.num_cached_tokens or 0)
    llm.llm_engine.engine_core.shutdown()
    folders = sorted(path.name for path in (scratch / "ranks").iterdir())
    print(json.dumps({"tokens": tokens, "cached": cached, "folders": folders}))


if __name__ == "__main__":
    main()
