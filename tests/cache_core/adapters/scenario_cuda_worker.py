"""The connector's worker on emulated GPUs: what its loads wait for, and what waits for them.

Prints one JSON object: whether loaded KV was right, for each kind of load, order and race.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from cache_core.adapters.vllm.metadata import LoadSpec, StepMeta
from cache_core.adapters.vllm.worker.worker import WorkerSide
from cache_core.plan import Hit
from tests.cache_core.emulated_cuda import Emulation, emulated
from tests.cache_core.test_cuda_order import KEY, SEEDS, SLOTS, Engine, engine_of
from tests.cache_core.test_cuda_users import CHUNK, LAYERS, PAGE, numbers, tokens_of

NAMES = [f"layer.{i}" for i in range(LAYERS)]
# vLLM's blocks of the request: token t is in block BLOCKS[t // PAGE].
BLOCKS = np.array([7, 2], dtype=np.int32)
HERE = (BLOCKS[:, None].astype(np.int64) * PAGE + np.arange(PAGE)).reshape(1, CHUNK)


def loads(engine: Engine, in_step: bool, layerwise: bool) -> bool:
    """A step of another request is still queued when this one's load begins in its blocks; then
    this step's attention reads them."""
    worker = WorkerSide([engine.tier], engine.blocks, PAGE, CHUNK, NAMES, layerwise)
    engine.computes(2)
    load = LoadSpec(1, "r", 0, Hit((KEY,), (0,)), 0, 0, CHUNK, BLOCKS, in_step)
    step = StepMeta(0, loads=[load])
    worker.start_loads(step)
    if not in_step:
        worker._loads["r"].result()
    for layer, name in enumerate(NAMES):
        worker.layer_needed(name)
        engine.reads(layer)
    worker.end_step(step)
    engine.emulation.synchronize()
    assert not worker.bad_blocks()
    worker.close()
    return bool(np.array_equal(tokens_of(engine.read(), HERE), tokens_of(numbers(1), SLOTS)))


def runs(emulation: Emulation, in_step: bool, layerwise: bool) -> list[bool]:
    found = []
    for seed in SEEDS:
        for way in ("kernel", "dma"):
            with (
                pytest.MonkeyPatch.context() as patch,
                engine_of(emulation, seed, way, patch) as engine,
            ):
                found.append(loads(engine, in_step, layerwise))
    return found


def main() -> None:
    kinds = {"between": (False, False), "in step": (True, False), "layerwise": (True, True)}
    with emulated() as emulation:
        print(json.dumps({name: runs(emulation, *kind) for name, kind in kinds.items()}))


if __name__ == "__main__":
    main()
