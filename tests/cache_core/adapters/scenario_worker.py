"""A load fails, its request is aborted, and a save of what was computed on top is still queued.

Prints one JSON object: what the save reported, and whether a tier has its chunk.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import numpy as np
import torch

from cache_core.adapters.vllm.blocks import TensorBlocks
from cache_core.adapters.vllm.messages import Load, Save, StepMeta
from cache_core.adapters.vllm.worker import WorkerHalf
from cache_core.place import Place
from cache_core.plan import ENGINE, Hit, Move, Plan
from cache_core.tiers import MemoryTier

CHUNK = 4
LOST, OTHER, KEY = (bytes([n]) * 32 for n in range(3))


class Slow(MemoryTier):
    """Its first write waits."""

    def __init__(self, chunk_bytes: int) -> None:
        super().__init__("cpu", 8, chunk_bytes)
        self.go = threading.Event()

    def write(self, keys: Sequence[bytes], place: Place | None) -> list[bool]:
        self.go.wait(30)
        return super().write(keys, place)


def save(number: int, request: str, key: bytes) -> Save:
    plan = Plan((Move(key, ENGINE, 0, 0),))
    return Save(number, request, 0, plan, np.arange(4, dtype=np.int32))


def main() -> None:
    blocks = TensorBlocks([torch.randn(8, 2, CHUNK, 8)], CHUNK)
    tier = Slow(blocks.chunk_bytes)
    worker = WorkerHalf([tier], blocks, CHUNK, CHUNK)
    ids = np.arange(4, dtype=np.int32)
    load = Load(1, "bad", 0, Hit((LOST,), (0,)), 0, 0, CHUNK, ids, True)
    step = StepMeta(0, loads=[load], saves=[save(2, "good", OTHER), save(3, "bad", KEY)])
    worker.start_loads(step)
    worker.end_step(step)
    worker.finished(set())
    failed = sorted(worker.bad_blocks())
    end = StepMeta(1)
    worker.start_loads(end)
    worker.end_step(end)
    worker.finished({"bad"})  # aborted, while the save is still waiting for the one before it
    tier.go.set()
    worker._saver.submit(worker._carrier.flush).result()
    held = tier.contains([OTHER, KEY])
    worker.finished(set())
    left = [sorted(worker._gone), sorted(worker._bad_epoch)]
    worker.close()
    print(json.dumps({"bad_blocks": failed, "held": held, "left": left}))


if __name__ == "__main__":
    main()
