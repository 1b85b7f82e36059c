"""The worker's side alone, with tiers that wait until they are told to go on.

A load fails, its request is aborted, and a save of what was computed on top is still queued; then
a slow tier beside a fast one. Prints one JSON object.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cache_core.adapters.vllm.metadata import (
    BlendPiece,
    BlendSpec,
    EncodeSpec,
    LoadSpec,
    SaveSpec,
    StepMeta,
    WorkerReport,
)
from cache_core.adapters.vllm.worker.kv_blocks import TensorBlocks
from cache_core.adapters.vllm.worker.worker import WorkerSide
from cache_core.plan import ENGINE, Hit, Move, Plan
from cache_core.tiers import MemoryTier
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers

CHUNK = 4
LOST, OTHER, KEY = (bytes([n]) * 32 for n in range(3))


class Slow(MemoryTier):
    """Waits before each read and write until it may go."""

    def __init__(self, chunk_bytes: int) -> None:
        super().__init__("cpu", 8, chunk_bytes)
        self.go = threading.Event()

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        self.go.wait(60)
        return super().write(keys, place)

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        if not self.in_memory:
            self.go.wait(60)
        return super().read(keys, place)


def save(number: int, request: str, key: bytes) -> SaveSpec:
    plan = Plan((Move(key, ENGINE, 0, 0),))
    return SaveSpec(number, request, 0, plan, np.arange(4, dtype=np.int32))


def aborted() -> dict[str, Any]:
    """What the save reported, and whether a tier has its chunk."""
    blocks = TensorBlocks([torch.randn(8, 2, CHUNK, 8)], CHUNK)
    tier = Slow(blocks.chunk_bytes)
    worker = WorkerSide([tier], blocks, CHUNK, CHUNK)
    ids = np.arange(4, dtype=np.int32)
    load = LoadSpec(1, "bad", 0, Hit((LOST,), (0,)), 0, 0, CHUNK, ids, True)
    worker.end_step(StepMeta(0, saves=[save(2, "good", OTHER)]))
    step = StepMeta(1, loads=[load], saves=[save(3, "bad", KEY)])
    worker.start_loads(step)
    worker.end_step(step)
    worker.finished(set())
    failed = sorted(worker.bad_blocks())
    end = StepMeta(2)
    worker.start_loads(end)
    worker.end_step(end)
    worker.finished({"bad"})  # aborted, while the save is still waiting for the one before it
    tier.go.set()
    worker._saver.submit(worker._executor.flush).result()
    held = tier.contains([OTHER, KEY])
    worker.finished(set())
    left = [sorted(worker._gone), sorted(worker._bad_epoch)]
    worker.close()
    return {"bad_blocks": failed, "held": held, "left": left}


def layerwise() -> dict[str, Any]:
    """A load inside a step goes to blocks that a save, begun beside an earlier step, still reads;
    the step saves too."""
    caches = [torch.randn(8, 2, CHUNK, 8) for _ in range(2)]
    blocks = TensorBlocks(caches, CHUNK)
    tier = Slow(blocks.chunk_bytes)
    tier.go.set()
    worker = WorkerSide([tier], blocks, CHUNK, CHUNK, ("first", "second"), True)
    ids = np.arange(4, dtype=np.int32)

    def forward(step: StepMeta) -> None:
        worker.before_overwriting(step)
        worker.start_loads(step)
        for name in ("first", "second"):
            worker.layer_needed(name)
            worker.layer_done(name)
        worker.end_step(step)

    forward(StepMeta(0, saves=[save(1, "warm", OTHER)]))
    worker._saver.submit(worker._executor.flush).result()
    tier.go.clear()
    forward(StepMeta(1, saves=[save(2, "a", LOST)]))
    # Only now may the save go on: while the load waits for it, and the step for the load.
    waiting = worker._wait_for

    def goes_on(saves: Any) -> None:
        tier.go.set()
        waiting(saves)

    worker._wait_for = goes_on  # type: ignore[method-assign]
    load = LoadSpec(3, "b", 0, Hit((OTHER,), (0,)), 0, 0, CHUNK, ids, True, None, (2,))
    late = threading.Thread(
        target=forward, args=[StepMeta(2, loads=[load], saves=[save(4, "b", KEY)])], daemon=True
    )
    late.start()
    late.join(60)
    ended = not late.is_alive()
    if ended:
        worker._saver.submit(worker._executor.flush).result()
    return {"ended": ended, "held": tier.contains([OTHER, LOST, KEY])}


class Encoder:
    """In place of the model that blend computes with: writes to the blocks that it is given."""

    def __init__(self, caches: list[torch.Tensor]) -> None:
        self.caches = caches

    def compute(self, loads: Any) -> None: ...

    def rotate(self, k: torch.Tensor, delta: int) -> None: ...

    def encode(self, encodes: Any, blocks: Any) -> list[Any]:
        for encode in encodes:
            for cache in self.caches:
                cache[torch.from_numpy(encode.save.blocks).long()] = 7.0
        return []


def encoded() -> dict[str, Any]:
    """A segment is encoded behind a step whose own saves follow its layers."""
    caches = [torch.zeros(8, 2, CHUNK, 8) for _ in range(2)]
    blocks = TensorBlocks(caches, CHUNK)
    tier = Slow(blocks.chunk_bytes)
    tier.go.set()
    blend_worker: Any = Encoder(caches)
    worker = WorkerSide([tier], blocks, CHUNK, CHUNK, ("first", "second"), True, blend_worker)
    plan = Plan((Move(KEY, ENGINE, 0, 0),))
    lent = SaveSpec(2, "a", 0, plan, np.arange(4, 8, dtype=np.int32))
    tokens = np.arange(CHUNK, dtype=np.int32)
    encode = EncodeSpec(lent, tokens, np.empty(0, dtype=np.int32), 0, CHUNK)
    step = StepMeta(0, saves=[save(1, "a", OTHER)], encodes=[encode])
    worker.start_loads(step)
    for name in ("first", "second"):
        worker.layer_done(name)
    # Whatever follows the layers has all the time that it wants.
    worker._saves[1][1].result(60)
    worker._saver.submit(worker._executor.flush).result()
    worker.end_step(step)
    worker._saver.submit(worker._executor.flush).result()
    for cache in caches:
        cache.zero_()
    whole = blocks.place(np.arange(CHUNK, dtype=np.int64).reshape(1, CHUNK))
    read = tier.read([KEY], whole)
    found = [float(cache[0].min()) for cache in caches]
    worker.close()
    return {"read": [bool(answer) for answer in read], "found": found}


def blended() -> dict[str, Any]:
    """Chunks that a load with a shorter piece behind it read, by the bytes that were counted; then
    the blocks that another load lacks, whose piece is lost."""
    blocks = TensorBlocks([torch.zeros(8, 2, CHUNK, 8)], CHUNK)
    tier = Slow(blocks.chunk_bytes)
    tier.go.set()
    blend_worker: Any = Encoder([])
    worker = WorkerSide([tier], blocks, CHUNK, CHUNK, blend_worker=blend_worker)
    keys = (LOST, OTHER, KEY)
    plan = Plan(tuple(Move(key, ENGINE, 0, index) for index, key in enumerate(keys)))
    worker.end_step(StepMeta(0, saves=[SaveSpec(1, "a", 0, plan, np.arange(4, dtype=np.int32))]))
    worker._saver.submit(worker._executor.flush).result()
    worker.take_counts()
    piece = BlendPiece(Hit((KEY,), (0,)), 3 * CHUNK, 3 * CHUNK, 4 * CHUNK, 1)
    none = np.empty(0, dtype=np.int32)
    hit = Hit((*keys, KEY), (0,) * 4)
    blend, ids = BlendSpec((piece,), none, none), np.arange(4, dtype=np.int32)
    load = LoadSpec(2, "b", 0, hit, 0, 0, 3 * CHUNK, ids, True, blend)
    worker.start_loads(StepMeta(1, loads=[load]))
    loaded = [load.chunks for load in reported(worker, 1).loads]
    counted = worker.take_counts()["read_bytes:cpu"] / blocks.chunk_bytes
    good = sorted(worker.bad_blocks())
    gone = Hit((bytes([3]) * 32,), (0,))
    blend = replace(blend, pieces=(replace(piece, hit=gone),))
    lacking = replace(load, id=3, hit=Hit(keys + gone.keys, hit.tiers), blend=blend)
    worker.start_loads(StepMeta(2, loads=[lacking]))
    lost = sorted(worker.bad_blocks())
    worker.close()
    return {"loaded": loaded, "counted": counted, "good": good, "lost": lost}


def lanes() -> dict[str, Any]:
    """A save to cpu and disk, and loads from both, while the disk does nothing."""
    blocks = TensorBlocks([torch.randn(8, 2, CHUNK, 8)], CHUNK)
    cpu = MemoryTier("cpu", 8, blocks.chunk_bytes)
    disk = Slow(blocks.chunk_bytes)
    disk.name, disk.in_memory, disk.keeps_time = "disk", False, False
    worker = WorkerSide([cpu, disk], blocks, CHUNK, CHUNK)
    ids = np.arange(4, dtype=np.int32)
    plan = Plan((Move(KEY, ENGINE, 0, 0), Move(KEY, ENGINE, 1, 0)))
    step = StepMeta(0, saves=[SaveSpec(1, "one", 0, plan, ids)])
    worker.start_loads(step)
    worker.end_step(step)
    worker.before_overwriting(StepMeta(1, after={1}))
    free = not disk.go.is_set()
    early = [(part.id, part.settled, part.free) for part in reported(worker, 0).saves]
    far = LoadSpec(2, "far", 0, Hit((LOST,), (1,)), 0, 0, CHUNK, ids, False)
    near = LoadSpec(3, "near", 0, Hit((KEY,), (0,)), 0, 0, CHUNK, ids, False)
    worker.start_loads(StepMeta(1, loads=[far, near]))
    worker._loads["near"].result(60)
    loaded = sorted(worker.finished(set()))
    disk.go.set()
    worker._executor.flush()
    late = [(part.id, part.settled, part.free) for part in reported(worker, 1).saves]
    held = [cpu.contains([KEY]), disk.contains([KEY])]
    worker.close()
    return {"free": free, "early": early, "loaded": loaded, "late": late, "held": held}


def reported(worker: WorkerSide, step: int) -> WorkerReport:
    report = worker.report(StepMeta(step, timed=True))
    assert report is not None
    return report


class Away(MemoryTier):
    """Can't be read, and takes half a minute of the clock to say so, until it is ``well``."""

    def __init__(self, chunk_bytes: int) -> None:
        super().__init__("cpu", 8, chunk_bytes)
        self.now, self.reads, self.well = 0.0, 0, False

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        self.reads += 1
        if self.well:
            return super().read(keys, place)
        self.now += 30
        return [Read.LATER] * len(keys)


def away() -> dict[str, Any]:
    """Many loads of one step from a tier that does not answer, and one when it is well again."""
    blocks = TensorBlocks([torch.randn(8, 2, CHUNK, 8)], CHUNK)
    tier = Away(blocks.chunk_bytes)
    worker = WorkerSide([tier], blocks, CHUNK, CHUNK, clock=lambda: tier.now)
    ids = np.arange(4, dtype=np.int32)
    plan = Plan((Move(KEY, ENGINE, 0, 0),))
    worker.end_step(StepMeta(0, saves=[SaveSpec(9, "saver", 0, plan, ids)]))
    worker._saver.submit(worker._executor.flush).result()

    def loads(*numbers: int) -> list[int]:
        hit = Hit((KEY,), (0,))
        step = [LoadSpec(n, f"r{n}", 0, hit, 0, 0, CHUNK, ids, True) for n in numbers]
        worker.start_loads(StepMeta(1, loads=step))
        return [load.chunks for load in reported(worker, 1).loads]

    first, reads = loads(1, 2, 3, 4, 5, 6), tier.reads
    tier.now, tier.well = tier.now + 60, True
    found = {"first": first, "reads": reads, "seconds": 30 * reads, "then": loads(7, 8)}
    worker.close()
    return found


def main() -> None:
    histories = (aborted, lanes, away, layerwise, encoded, blended)
    print(json.dumps({history.__name__: history() for history in histories}))


if __name__ == "__main__":
    main()
