"""MLA on vLLM's CPU backend, whose own prefix cache vLLM turns off. It is turned on again here: is
a hit of ours what a hit of vLLM's own is?

Prints one JSON object. Argument: folder of a model with MLA.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import (
    VOCABULARY,
    Ask,
    drive,
    engine,
    worker_half,
)

# A token behind whole blocks of 16, which vLLM computes as it decodes, and more, which it doesn't.
LENGTHS = [65, 97, 120, 200, 300]
SETTINGS: dict[str, Any] = {"max_model_len": 512, "num_gpu_blocks_override": 100, "block_size": 16}
OPTIONS = {"chunk_tokens": 16, "cpu_size": "64MiB", "weights": "fixed"}


def main() -> None:
    keep_prefix_cache()
    r = random.Random(7)
    prompts = [[r.randrange(3, VOCABULARY) for _ in range(length)] for length in LENGTHS]
    model = Path(sys.argv[1])
    settings = SETTINGS | {"enable_prefix_caching": True}
    with engine(model, None, **settings) as (llm, _):
        cold, own = [served(llm, prompts) for _ in range(2)]
    with engine(model, OPTIONS, **settings) as (llm, counts):
        computed = served(llm, prompts)
        there = Bytes(llm)
        llm.reset_prefix_cache()
        ours = served(llm, prompts)
    print(
        json.dumps(
            {
                "cold alike": computed == cold,
                "hits alike": ours == own,
                "cold and hit differ": sum(a != b for a, b in zip(cold, own, strict=True)),
                "hit": counts["hit_tokens:cpu"],
                "blocks": there.compared,
                "other bytes": there.different,
            }
        )
    )


def keep_prefix_cache() -> None:
    """Has vLLM do as it is told, prefix cache and MLA or not."""
    from vllm.platforms.cpu import CpuPlatform

    configure = CpuPlatform.check_and_update_config

    def configured(config: Any) -> None:
        wanted = config.cache_config.enable_prefix_caching
        configure(config)
        config.cache_config.enable_prefix_caching = wanted

    setattr(CpuPlatform, "check_and_update_config", staticmethod(configured))  # noqa: B010


def served(llm: Any, prompts: list[list[int]]) -> list[list[int]]:
    return [drive(llm, [Ask(prompt, 8)]).tokens[0] for prompt in prompts]


class Bytes:
    """Compares what is loaded, block by block, with what vLLM's memory holds now, which has
    computed it."""

    def __init__(self, llm: Any) -> None:
        self.compared = self.different = 0
        core = llm.llm_engine.engine_core.engine_core
        caches = core.model_executor.driver_worker.worker.model_runner.kv_caches
        before = [cache.clone() for cache in caches]
        for cache in caches:
            cache.zero_()
        known = {block.tobytes() for cache in before for block in cache.numpy()}
        half = worker_half()
        load = half._load

        def loaded(spec: Any, *rest: Any) -> None:
            load(spec, *rest)
            for row in spec.blocks:
                for cache in caches:
                    self.compared += 1
                    self.different += cache[int(row[1])].numpy().tobytes() not in known

        setattr(half, "_load", loaded)  # noqa: B010


if __name__ == "__main__":
    main()
