"""What a router is told of tiers, in vLLM's scheduler without a model. Prints one JSON object."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from benchmarks.vllm_sim.engine_config import set_environment
from benchmarks.vllm_sim.settings import Settings
from benchmarks.vllm_sim.simulation import Simulation

set_environment()
os.environ["VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES"] = "0"  # whole, to compare them

Place = tuple[str, str | None]  # medium, locality
PLACES: dict[str, Place] = {"cpu": ("CPU", None), "disk": ("STORAGE", "LOCAL")}


class Router:
    """Believes what it is told, and checks each event as a strict consumer would."""

    def __init__(self, block_tokens: int) -> None:
        self.has: dict[Place, set[bytes]] = defaultdict(set)
        self.known: set[bytes] = set()
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._size = block_tokens

    def publish(self, batch: Any) -> None:
        """In place of vLLM's publisher."""
        for event in batch.events:
            self.take(event)

    def get_publisher_config(self) -> None:
        return None

    def shutdown(self) -> None:
        return None

    def take(self, event: Any) -> None:
        name = type(event).__name__
        if name == "AllBlocksCleared":
            self.has.clear()
            self.seen["cleared"] += 1
            return
        place = (event.medium, event.locality)
        hashes = set(event.block_hashes)
        if event.medium != "GPU":
            self.seen[name] += 1
            self._check(name == "BlockStored", place, hashes, event)
        if name == "BlockStored":
            self.known |= hashes
            self.has[place] |= hashes
        else:
            self.has[place] -= hashes

    def _check(self, stored: bool, place: Place, hashes: set[bytes], event: Any) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import hash_block_tokens

        size = self._size
        if len(hashes) != len(event.block_hashes) or event.group_idx != 0:
            self.wrong.append("a hash twice, or no group")
        if not stored:
            if not hashes <= self.has[place]:
                self.wrong.append("removed what was not there")
            return
        if hashes & self.has[place]:
            self.wrong.append("stored what was there")
        if event.block_size != size or len(event.token_ids) != size * len(event.block_hashes):
            self.wrong.append("tokens do not match")
        if event.kv_cache_spec_kind != "full_attention" or len(event.extra_keys) != len(hashes):
            self.wrong.append("kind or extra keys")
        parent = event.parent_block_hash
        # A router that indexes by its own hashes of tokens has to find the parent.
        if parent is not None and parent not in self.known:
            self.wrong.append("unknown parent")
        for number, found in enumerate(event.block_hashes):
            tokens = event.token_ids[number * size : (number + 1) * size]
            keys = event.extra_keys[number]
            tagged = tuple(("cache_salt", key) for key in keys) if keys else None
            if hash_block_tokens(sha256, parent, tokens, tagged) != found:
                self.wrong.append("a hash is of other tokens")
            parent = found


class World:
    """A simulation, its router, and what can be served by the Ledger alone."""

    def __init__(self, settings: Settings) -> None:
        self.sim = Simulation(replace(settings, kv_events=True))
        self.router = Router(settings.block_tokens)
        self.sim.scheduler.kv_event_publisher = self.router
        self.chains: dict[bytes, set[tuple[bytes, ...]]] = defaultdict(set)
        self.differ = 0
        self.checks = 0
        self.peak: Counter[str] = Counter()
        saver = self.sim.side._saver
        saving = saver.saving

        def spied(state: Any, plan: Any) -> None:
            self.learn(state)
            saving(state, plan)

        saver.saving = spied

    def learn(self, state: Any) -> None:
        """By which chunks each block of a request can be loaded."""
        chunk, block = self.sim.side._size, self.sim.settings.block_tokens
        for number, found in enumerate(state.request.block_hashes):
            first, last = number * block // chunk, -(-(number + 1) * block // chunk)
            if last <= len(state.keys):
                self.chains[found].add(tuple(state.keys[first:last]))

    def expected(self) -> dict[Place, set[bytes]]:
        side = self.sim.side
        ledger, names = side._ledger, side.options.tier_names
        has: dict[Place, set[bytes]] = {PLACES[name]: set() for name in names}
        for found, chains in self.chains.items():
            for chain in chains:
                tiers = [[t for t in range(len(names)) if ledger.holds(k, t)] for k in chain]
                if all(tiers):
                    worst = max(min(each) for each in tiers)
                    for tier in {t for each in tiers for t in each if t >= worst}:
                        has[PLACES[names[tier]]].add(found)
        return has

    def check(self) -> None:
        for event in self.sim.side.events.take():
            self.router.take(event)
        self.checks += 1
        for place, blocks in self.expected().items():
            self.differ += blocks != self.router.has[place]
            self.peak[place[0]] = max(self.peak[place[0]], len(blocks))

    def close(self) -> dict[str, Any]:
        events = self.sim.side.events
        left = [len(events._blocks), len(events._of_chunk)]
        self.sim.close()
        return {
            "differ": self.differ,
            "checks": self.checks,
            "wrong": sorted(set(self.router.wrong)),
            "seen": self.router.seen,
            "peak": self.peak,
            "left": left,
        }


def traffic(settings: Settings) -> dict[str, Any]:
    """Random traffic, compared with the Ledger every few steps."""
    world = World(settings)
    sim = world.sim
    step = sim.step

    def checked() -> Any:
        done = step()
        if sim.result.steps % 7 == 0:
            world.check()
        return done

    sim.step = checked  # type: ignore[method-assign]
    result = sim.run()
    assert result.good, result
    sim.side.reset()
    world.check()
    return world.close() | {"counts": result.counts}


def settle(world: World) -> None:
    settle_unchecked(world)
    world.check()


def settle_unchecked(world: World) -> None:
    sim = world.sim
    sim.drain()
    for _ in range(3):
        while sim.jobs.run_one_each():
            pass
        sim.step()


def fixed() -> dict[str, Any]:
    """vLLM clears its own prefix cache, tiers keep theirs: routers are told again."""
    options = {"chunk_tokens": 32, "cpu_size": "64MiB", "weights": "fixed"}
    world = World(Settings(1, options=options))
    world.sim.add("a", list(range(100, 300)), 2)
    settle(world)
    before = set(world.router.has["CPU", None])
    known = set(world.router.has["GPU", None])
    assert world.sim.scheduler.reset_prefix_cache()
    world.sim.add("b", [7], 1)
    settle(world)
    after = world.router.has
    found = {"before": len(before), "same": after["CPU", None] == before}
    return found | {"gpu": [len(known), len(after["GPU", None])]} | world.close()


def recovered() -> dict[str, Any]:
    """Tiers hold what nobody has described, as after a restart: it is announced once a request
    loads it, a block at a time."""
    from cache_core.adapters.vllm.scheduler.events import Events

    options = {"chunk_tokens": 64, "cpu_size": "64MiB", "disk_size": "16MiB"}
    world = World(Settings(1, block_tokens=32, prefix_caching=False, options=options))
    sim, prompt = world.sim, list(range(100, 300))
    sim.add("a", prompt, 1)
    settle(world)
    before = {place[0]: set(blocks) for place, blocks in world.router.has.items()}
    side = sim.side
    side.tell(Events(side._ledger, ("cpu", "disk"), 64, 32))
    world.router.has.clear()
    sim.add("b", [7], 1)
    settle_unchecked(world)
    found = {"unknown": [len(blocks) for blocks in world.router.has.values()]}
    sim.add("c", prompt, 1)
    settle(world)
    after = {place[0]: blocks for place, blocks in world.router.has.items()}
    found["same"] = [after[medium] == before[medium] for medium in ("CPU", "STORAGE")]
    return found | {"blocks": len(before["CPU"])} | world.close()


def alone() -> dict[str, Any]:
    """Of one request, without an engine: what is told of an adapter's, of one that is blended, and
    of one without hashes."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    from cache_core.adapters.vllm.scheduler.events import Events
    from cache_core.adapters.vllm.scheduler.request_state import BlendState, RequestState
    from cache_core.keys import ChunkHasher, Namespace
    from cache_core.layout import KVLayout
    from cache_core.ledger import Ledger

    init_none_hash(sha256)
    hasher = ChunkHasher(Namespace(KVLayout(1, 1, 64, "float32", 64), "m"))

    def told(change: Callable[[RequestState], None], tiers: tuple[str, ...]) -> list[Any]:
        request = Request(
            "r",
            list(range(100, 200)),
            SamplingParams(max_tokens=1),
            None,
            block_hasher=get_request_block_hasher(32, sha256),
            lora_request=LoRARequest("adapter", 7, "path"),
        )
        state = RequestState(request, hasher)
        keys = state.upto(64)
        ledger = Ledger([None] * len(tiers))
        events = Events(ledger, tiers, 64, 32)
        change(state)
        plan = ledger.prepare_store(keys)
        events.saving(state, plan)
        ledger.complete_store(plan.moves, True)
        events.found(state, 0, ledger.lookup(keys))
        assert all(block_hash in request.block_hashes for block_hash in events._blocks)
        return [
            [e.medium, e.locality, e.lora_id, e.lora_name, len(e.token_ids), e.extra_keys]
            for e in events.take()
        ]

    def blended(state: RequestState) -> None:
        state.blend = BlendState([], 0.1)

    def unhashed(state: RequestState) -> None:
        state.request.block_hashes.clear()

    return {
        "adapter": told(lambda state: None, ("cpu", "disk", "remote")),
        "blended": told(blended, ("cpu",)),
        "unhashed": told(unhashed, ("cpu",)),
    }


def off() -> dict[str, Any]:
    """Without KV events nothing is remembered."""
    sim = Simulation(Settings(1))
    sim.add("a", list(range(100, 300)), 2)
    sim.drain()
    found = {"events": sim.side.events, "taken": list(sim.scheduler.connector.take_events())}
    found["changed"] = len(sim.side._ledger.changed())
    sim.close()
    return found


def mixes() -> Iterable[tuple[str, Settings]]:
    small = {"cpu_size": "256KiB", "disk_size": "1MiB"}
    for chunk, block in ((32, 32), (64, 16), (16, 32), (48, 32), (128, 32)):
        for place in ("write_on_insertion", "write_on_eviction"):
            options: dict[str, Any] = {**small, "chunk_tokens": chunk, "placement": place}
            settings = Settings(chunk, requests=30, block_tokens=block, options=options)
            yield (
                f"{chunk}/{block} {place}",
                replace(settings, unread=0.05, asynchronous=chunk > 32),
            )
    options = {**small, "chunk_tokens": 32}
    yield "resets", Settings(5, requests=40, resets=0.05, options=options)


def main() -> None:
    found: dict[str, Any] = {name: traffic(settings) for name, settings in mixes()}
    print(
        json.dumps(
            {
                "traffic": found,
                "fixed": fixed(),
                "recovered": recovered(),
                "off": off(),
                "alone": alone(),
            }
        )
    )


if __name__ == "__main__":
    main()
