"""Both halves of the connector when weights change, without an engine: vLLM's calls by hand.

Prints one JSON object. Arguments: model folder, scratch folder (not used).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.identity import Adapter, Adapters, Hashers
from cache_core.adapters.vllm.metadata import StepMeta, TiersOpened, WorkerReport
from cache_core.adapters.vllm.scheduler.scheduler import SchedulerSide
from cache_core.adapters.vllm.worker.kv_blocks import TensorBlocks
from cache_core.adapters.vllm.worker.worker import WorkerSide
from cache_core.keys import Namespace
from cache_core.layout import KVLayout
from cache_core.tiers import MemoryTier

SIZE, CHUNKS = 4, 3
TOKENS = SIZE * CHUNKS + 1


class Named(Adapters):
    """Adapters that the scenario names."""

    digest = ""
    renamed = False

    def of(self, lora: Any) -> Adapter:
        return Adapter(self.digest, "adapter_unknown" if lora == "unknown" else "", self.renamed)


class World:
    """One scheduler's side and one worker's, and requests of one prompt."""

    def __init__(self, watched: bool = True, **given: Any) -> None:
        blocks = TensorBlocks([torch.randn(8, 2, SIZE, 8)], SIZE)
        options = ConnectorOptions.parse({"chunk_tokens": SIZE, "load": "sync", **given})
        self.adapters = Named()
        hashers = Hashers(Namespace(KVLayout(1, 1, 8, "float32", SIZE), "m"), self.adapters)
        self.side = SchedulerSide(options, hashers, ranks=1, block_tokens=SIZE, most_pending=100)
        self.tier = MemoryTier("cpu", 16, blocks.chunk_bytes)
        tiers = [self.tier] if len(options.tier_names) == 1 else [self.tier, self.second(blocks)]
        self.worker = WorkerSide(tiers, blocks, SIZE, SIZE)
        opened = self.worker.opened()
        self.side.opened([TiersOpened(opened.chunk_bytes, opened.capacities, [[], []], watched)])
        self.serial = 0

    @staticmethod
    def second(blocks: Any) -> MemoryTier:
        return MemoryTier("remote", 16, blocks.chunk_bytes)

    def ask(self, lora: Any = None) -> Any:
        self.serial += 1
        tokens = list(range(TOKENS))
        request = SimpleNamespace(
            request_id=str(self.serial), cache_salt=None, lora_request=lora, mm_features=[]
        )
        request.prompt_embeds = request.kv_transfer_params = None
        request.prompt_token_ids = request.all_token_ids = tokens
        request.num_tokens = request.num_prompt_tokens = TOKENS
        request.num_computed_tokens = request.num_preemptions = 0
        self.side.arrived(request)
        return request

    def begin(self, request: Any, computed: int = 0) -> int:
        """Looks the request up and gives it blocks; returns the tokens that are loaded.
        ``computed`` tokens are in vLLM's own prefix cache."""
        external = None
        while external is None:  # its prompt is being hashed
            external, _ = self.side.matched(request, computed)
            self.side._hashing.next_pass(False)
        self.side.allocated(request, (range(8),), external)
        request.num_computed_tokens = external
        return external

    def schedule(self, *requests: Any) -> StepMeta:
        """A step that computes the rest of the requests."""
        tokens = {one.request_id: TOKENS - one.num_computed_tokens for one in requests}
        meta = self.side.step(tokens, [(n, (range(8),), 0, True) for n in tokens])
        for one in requests:
            one.num_computed_tokens = TOKENS
        return meta

    def work(self, meta: StepMeta, refused: bool = False) -> WorkerReport:
        if refused:
            self.worker.refuse(meta)
        self.worker.start_loads(meta)
        self.worker.end_step(meta)
        self.worker._saver.submit(lambda: None).result()
        self.worker._executor.flush()
        self.worker.finished(set())
        return self.worker.report(replace(meta, timed=True)) or WorkerReport(meta.step)

    def serve(self) -> int:
        """One request from its look-up to its end; returns the tokens that were loaded."""
        request = self.ask()
        found = self.begin(request)
        self.side.reported(self.work(self.schedule(request)))
        self.end(request)
        return found

    def end(self, request: Any) -> None:
        self.side.finished(request)
        self.side.reported(self.work(self.schedule()))

    def held(self) -> int:
        """Chunks in the tier; the Ledger must agree."""
        self.side.check()
        ledger = self.side._ledger
        assert ledger is not None and ledger.count(0) == len(self.tier)
        return len(self.tier)


def resets(ours: bool) -> dict[str, Any]:
    """What one kind of reset leaves, with nothing under way."""
    world = World()
    before = [world.serve(), world.serve()]
    world.side.reset(ours)
    world.side.reported(world.work(world.schedule()))
    return {"before": before, "held": world.held(), "after": [world.serve(), world.serve()]}


def fixed() -> dict[str, Any]:
    world = World(weights="fixed")
    world.serve()
    world.side.reset(ours=False)
    plain = world.serve()
    world.side.reset()
    world.side.reported(world.work(world.schedule()))
    held = world.held()
    return {"plain": plain, "held": held, "after": world.serve(), "again": world.serve()}


def pending_save() -> dict[str, Any]:
    """The reset comes while a save is under way."""
    world = World()
    request = world.ask()
    world.begin(request)
    meta = world.schedule(request)
    world.side.reset()
    world.side.reported(world.work(meta))
    stored = len(world.tier)
    world.side.reported(world.work(world.schedule()))
    freed = world.held()
    world.side.finished(request)
    return {"stored": stored, "freed": freed, "after": [world.serve(), world.serve()]}


def pinned_load() -> dict[str, Any]:
    """The reset comes while a load is under way."""
    world = World()
    world.serve()
    request = world.ask()
    world.begin(request)
    meta = world.schedule(request)
    world.side.reset()
    kept = len(world.tier)
    world.side.reported(world.work(meta))
    world.side.finished(request)
    world.side.reported(world.work(world.schedule()))
    return {"kept": kept, "freed": world.held()}


def running() -> dict[str, Any]:
    """What a request has computed with old weights is not saved under new keys, unless it starts
    over."""
    world = World()
    request = world.ask()
    world.begin(request)
    world.side.reported(world.work(world.schedule(request)))
    world.side.reset()
    request.num_computed_tokens = TOKENS - 1
    saves = len(world.schedule(request).saves)
    request.num_computed_tokens = 0  # preempted
    found = world.begin(request)
    after = world.schedule(request)
    world.side.reported(world.work(after))
    world.end(request)
    return {"saves": saves, "found": found, "again": len(after.saves), "then": world.serve()}


def seen_by_worker() -> dict[str, Any]:
    """A worker finds other weights: that step, and one that was scheduled ahead, are refused."""
    world = World()
    world.serve()
    one, two = world.ask(), world.ask()
    found = world.begin(one)
    first = world.schedule(one)
    world.begin(two)
    second = world.schedule(two)
    report = world.work(first, refused=True)
    bad = sorted(world.worker.bad_blocks())
    world.side.reported(report)
    world.side.reported(world.work(second, refused=True))
    generation = world.side._meta.generation
    for request in (one, two):
        world.side.finished(request)
    world.side.reported(world.work(world.schedule()))
    loads = [load.chunks for load in report.loads]
    return {
        "found": found,
        "loads": loads,
        "bad": bad,
        "outdated": report.outdated,
        "generation": generation,
        "held": world.held(),
        "after": [world.serve(), world.serve()],
    }


def refused_save() -> dict[str, Any]:
    """A worker finds other weights in a step that saves."""
    world = World()
    request = world.ask()
    world.begin(request)
    report = world.work(world.schedule(request), refused=True)
    stored = len(world.tier)
    world.side.reported(report)
    world.end(request)
    good = [ok for _, ok in report.saves[0].settled]
    return {"good": good, "stored": stored, "after": [world.serve() for _ in "ab"]}


def own_cache() -> dict[str, Any]:
    """What vLLM's own prefix cache gives is saved, unless it may be of other weights."""
    world = World()
    saves = []

    def ask(lora: Any = None) -> None:
        request = world.ask(lora)
        world.begin(request, 2 * SIZE)
        meta = world.schedule(request)
        saves.append(len(meta.saves))
        world.side.reported(world.work(meta))
        world.end(request)

    world.side.reported(WorkerReport(0, outdated=0))
    ask()
    world.side.stale = False  # as the connector says behind a reset of vLLM's that succeeded
    ask()
    world.adapters.renamed, world.adapters.digest = True, "other"
    ask("one")
    return {"saves": saves}


def ranks_disagree() -> list[int]:
    """The latest generation that any rank found outdated counts."""
    reports = [WorkerReport(3), WorkerReport(3, outdated=1), WorkerReport(3, outdated=0)]
    return [reports[0].aggregate(reports[1]).aggregate(reports[2]).outdated]


def unwatched() -> dict[str, Any]:
    """Weights that can't be watched, with a tier that outlives the process and without one."""
    remote = "tests.cache_core.adapters.failing_tier:Forgetful"
    worlds = [World(watched=False), World(watched=False, remote=remote), World(remote=remote)]
    worlds.append(World(watched=False, remote=remote, weights="fixed"))
    return {"generations": [world.side._meta.generation for world in worlds]}


def adapters() -> dict[str, Any]:
    """An adapter that is not known, and one that is replaced under a running request."""
    world = World()
    request = world.ask("unknown")
    external = world.begin(request)
    saves = len(world.schedule(request).saves)
    world.side.finished(request)
    left = sorted(world.side._uncached)
    world.adapters.digest = "one"
    other = world.ask("one")
    world.begin(other)
    world.adapters.digest = "two"
    replaced = len(world.schedule(other).saves)
    counts = world.side.take_counts()
    return {
        "external": external,
        "saves": [saves, replaced],
        "left": left,
        "counted": counts["uncached_requests:adapter_unknown"],
    }


def beside() -> dict[str, Any]:
    """Keys of prompts whose placeholders stand for images and embeddings."""
    from cache_core.adapters.vllm.scheduler.request_state import RequestState

    layout = KVLayout(1, 1, 8, "float32", SIZE)
    hashers = [Hashers(Namespace(layout, model)) for model in ("m", "n")]

    def keys(
        images: Sequence[tuple[str, int, int]] = (),
        embeds: Any = None,
        which: int = 0,
        kinds: list[bool] | None = None,
        parts: int = 1,
    ) -> list[str]:
        features = []
        for name, offset, length in images:
            place = SimpleNamespace(offset=offset, length=length)
            features.append(SimpleNamespace(identifier=name, mm_position=place))
        request = SimpleNamespace(
            cache_salt=None, lora_request=None, mm_features=features, prompt_embeds=embeds
        )
        request.all_token_ids = [0] * (4 * SIZE)
        request.num_prompt_tokens = 3 * SIZE
        request.prompt_is_token_ids = kinds
        request._prompt_embeds_per_block_hashes = {}
        state = RequestState(request, hashers[which].of(request))
        for part in range(1, parts + 1):
            found = state.upto(4 * SIZE * part // parts)
        return [one.hex() for one in found]

    ones, twos = torch.ones(3 * SIZE, 8), torch.ones(3 * SIZE, 8)
    twos[2 * SIZE] = 2
    mask = [True] * SIZE + [False] * (2 * SIZE)
    return {
        "text": keys(),
        "a": keys([("a", 5, 2)]),
        "a in parts": keys([("a", 5, 2)], parts=4),
        "b": keys([("b", 5, 2)]),
        "a further on": keys([("a", 6, 2)]),
        "a long": keys([("a", 5, 6)]),
        "a then b": keys([("a", 5, 1), ("b", 6, 1)]),
        "a first": keys([("a", 0, 2)]),
        "a first, other model": keys([("a", 0, 2)], which=1),
        "ones": keys(embeds=ones),
        "ones again": keys(embeds=ones.clone()),
        "twos": keys(embeds=twos),
        "ones, mixed": keys(embeds=ones, kinds=mask),
    }


def main() -> None:
    found = {
        "reset": resets(ours=True),
        "plain reset": resets(ours=False),
        "fixed": fixed(),
        "pending save": pending_save(),
        "pinned load": pinned_load(),
        "running": running(),
        "seen by worker": seen_by_worker(),
        "refused save": refused_save(),
        "own cache": own_cache(),
        "ranks": ranks_disagree(),
        "unwatched": unwatched(),
        "adapters": adapters(),
        "beside": beside(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
