"""Two tensor-parallel workers in processes of their own, each with tiers of its own.

Prints one JSON object: tokens without and with the connector, and cached tokens by request.
Arguments: model folder, scratch folder.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import connector

# Importing it sets an environment for one process; two ranks are three.
del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]


def serve(model: Path, options: dict[str, Any] | None) -> tuple[list[list[int]], list[int]]:
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = {}
    if options is not None:
        settings["kv_transfer_config"] = connector(options)
    llm = LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        tensor_parallel_size=2,
        enable_prefix_caching=False,
        seed=0,
        **settings,
    )
    rng = random.Random(1)
    document = [rng.randrange(3, 2048) for _ in range(600)]
    wanted = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    tokens, cached = [], []
    for question in range(3):
        prompt: Any = {"prompt_token_ids": [*document, 7 + question]}
        (done,) = llm.generate([prompt], wanted, use_tqdm=False)
        tokens.append(list(done.outputs[0].token_ids))
        cached.append(done.num_cached_tokens or 0)
    llm.llm_engine.engine_core.shutdown()
    return tokens, cached


def main() -> None:
    model, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    alone, _ = serve(model, None)
    options = {
        "chunk_tokens": 64,
        "cpu_size": "1MiB",
        "disk_size": "200MiB",
        "disk_path": str(scratch / "ranks"),
    }
    ours, cached = serve(model, options)
    folders = sorted(path.name for path in (scratch / "ranks").iterdir())
    print(json.dumps({"alone": alone, "ours": ours, "cached": cached, "folders": folders}))


if __name__ == "__main__":
    main()
