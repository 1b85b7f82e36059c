"""Histories through vLLM's scheduler and the connector that once went wrong, each with its outcome.

Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.vllm_sim.engine_config import set_environment
from benchmarks.vllm_sim.runner import VOCABULARY
from benchmarks.vllm_sim.settings import Settings
from benchmarks.vllm_sim.simulation import Simulation

QUIET = Settings(
    seed=1,
    idle=0.0,
    aborts=0.0,
    kv_tokens=12_800,
    budget=1024,
    prefix_caching=False,
    options={"cpu_size": "64MiB", "chunk_tokens": 32, "wait_s": 10},
)
SAVING = "lmcache-save"


@contextlib.contextmanager
def simulation(**changes: Any) -> Iterator[Simulation]:
    with contextlib.closing(Simulation(replace(QUIET, **changes))) as made:
        yield made


def prompt(tokens: int, seed: int = 5) -> list[int]:
    r = random.Random(seed)
    return [r.randrange(3, VOCABULARY) for _ in range(tokens)]


def serve(sim: Simulation, name: str, tokens: list[int], count: int = 4) -> int:
    """Serves one request alone; returns the tokens that it was spared."""
    sim.add(name, tokens, count)
    sim.drain()
    return sim.first_computed[name]


def settled(sim: Simulation) -> None:
    for _ in range(4):
        sim.jobs.run_one_each()
        sim.step()


def failed_loads(asynchronous: bool) -> dict[str, Any]:
    """One request after the other in an idle engine, from a tier that loses what it took."""
    with simulation(asynchronous=asynchronous, unread=0.3, requests=0) as sim:
        for n in range(60):
            serve(sim, f"r{n}", prompt(300 + n, seed=n % 4), 6)
            settled(sim)
        sim.settle()
        return {
            "wrong": sim.result.wrong,
            "compared": sim.result.compared,
            "failed": sim.lost_reads(),
            "leaks": sim.result.leaks,
        }


def neighbours() -> dict[str, Any]:
    """Two requests share a beginning in one pass: one loads it inside the step, in vain, and the
    other takes the same blocks from vLLM's own cache."""
    wrong, lost = list[str](), 0
    for seed in range(12):
        with simulation(seed=seed, unread=0.1, requests=0, prefix_caching=True) as sim:
            shared = prompt(320, seed)
            serve(sim, "first", shared)
            settled(sim)
            sim.forget()
            both = {name: shared + prompt(100, seed=n + seed) for n, name in ((50, "x"), (80, "y"))}
            for name, tokens in both.items():
                sim.add(name, tokens, 3)
            sim.drain()
            settled(sim)
            lost += sim.lost_reads()
            for tier in sim.worker_half.tiers:
                tier._share = 0.0  # type: ignore[attr-defined]
            for name, tokens in both.items():
                sim.forget()
                serve(sim, f"{name} again", [*tokens, 5], 3)
            wrong += sim.result.wrong
    return {"lost": lost, "wrong": wrong}


def holes(how: str) -> dict[str, Any]:
    """While a request runs, what it has stored is lost: by a write that fails, or by a reset."""
    options = dict(QUIET.options) | ({"weights": "fixed"} if how == "reset" else {})
    with simulation(options=options, unwritten=1.0 if how == "write" else 0.0) as sim:
        sim.add("a", prompt(320), 200)
        for _ in range(20):
            sim.step()
        settled(sim)
        if how == "reset":
            sim.reset()
        for tier in sim.worker_half.tiers:
            if how == "write":
                tier._unwritten = 0.0  # type: ignore[attr-defined]
        sim.drain()
        settled(sim)
        return {"spared": serve(sim, "b", [*prompt(320), 7]), "wrong": sim.result.wrong}


def idle() -> dict[str, Any]:
    """What keeps vLLM going on with steps when no request is left."""
    with simulation() as sim:
        sim.jobs.held.add(SAVING)
        serve(sim, "a", prompt(320))
        before = sim.scheduler.has_requests()
        sim.jobs.held.clear()
        settled(sim)
        return {"saving": before, "saved": sim.scheduler.has_requests()}


def reset(how: str, asynchronous: bool) -> dict[str, Any]:
    """Right behind a request, whose KV no tier has taken yet; then new weights."""
    with simulation(asynchronous=asynchronous, prefix_caching=True) as sim:
        sim.jobs.held.add(SAVING)
        serve(sim, "before", prompt(320))
        pending = sim.side._transfers.pending
        if how == "pause":
            sim.pause()
        else:
            sim.reset()
        sim.runner.version += 1
        sim.jobs.held.clear()
        found = [serve(sim, f"after {n}", prompt(320)) for n in range(2)]
        settled(sim)
        sim.settle()
        return {
            "pending": pending,
            "done": sim.result.counts["reset True"],
            "spared": found[0],
            "wrong": sim.result.wrong,
            "leaks": sim.result.leaks,
        }


def overwritten() -> dict[str, Any]:
    """vLLM gives blocks to another request while they are still being saved."""
    with simulation(kv_tokens=512, budget=512) as sim:
        sim.jobs.held.add(SAVING)
        serve(sim, "a", prompt(400))
        free = sim.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        serve(sim, "b", prompt(400, seed=6))
        sim.jobs.held.clear()
        settled(sim)
        spared = serve(sim, "c", prompt(400))
        sim.settle()
        return {
            "free": free,
            "blocks": sim.settings.blocks,
            "spared": spared,
            "wrong": sim.result.wrong,
            "leaks": sim.result.leaks,
        }


def own_prefix() -> dict[str, Any]:
    """vLLM has in its own cache what no tier has taken yet."""
    with simulation(prefix_caching=True) as sim:
        sim.jobs.held.add(SAVING)
        serve(sim, "a", prompt(320))
        before = sim.result.steps
        sim.add("b", prompt(320) + prompt(30, seed=6), 1)
        while "b" not in sim.first_computed and sim.result.steps < before + 50:
            sim.step()
        steps, spared = sim.result.steps - before, sim.first_computed.get("b")
        sim.drain()
        sim.jobs.held.clear()
        return {"steps": steps, "spared": spared}


def burst() -> dict[str, Any]:
    """Sixteen hits at once in an idle engine: how many are loaded inside the step."""
    with simulation(kv_tokens=12_800) as sim:
        for n in range(16):
            serve(sim, f"w{n}", prompt(320, seed=n), 1)
        settled(sim)
        for n in range(16):
            sim.add(f"x{n}", prompt(320, seed=n), 4)
        step = sim.step()
        loads = step.kv_connector_metadata.loads
        sim.drain()
        return {
            "in step": sum(load.in_step for load in loads),
            "loads": len(loads),
            "wrong": sim.result.wrong,
        }


def decoding() -> dict[str, Any]:
    """What is given to the Ledger while a request with a long prompt decodes, and at its end."""
    with simulation() as sim:
        ledger = sim.side._ledger
        assert ledger is not None
        admitted: list[int] = []
        touched: list[int] = []
        admit, touch = ledger.prepare_store, ledger.touch

        def admits(keys: Any, *rest: Any, **more: Any) -> Any:
            admitted.append(len(keys))
            return admit(keys, *rest, **more)

        def touches(keys: Any, *rest: Any) -> None:
            touched.append(len(keys))
            touch(keys, *rest)

        with (
            mock.patch.object(ledger, "prepare_store", admits),
            mock.patch.object(ledger, "touch", touches),
        ):
            sim.add("long", prompt(1024), 320)
            sizes = []
            while sim.live:
                sizes += [len(save.blocks) for save in sim.step().kv_connector_metadata.saves]
        order = ledger.keys(0)
        keys = sim.side._hashers.of(SimpleNamespace(cache_salt=None, lora_request=None)).keys(
            prompt(1024)
        )
        places = [order.index(key) for key in keys.prefix]
        return {
            "first": admitted[0],
            "then": sorted(set(admitted[1:])),
            "times": len(admitted),
            "touched": touched,
            "blocks of a save": sorted(set(sizes[1:])),
            "head outlives tail": places == sorted(places, reverse=True),
        }


def hashing() -> dict[str, Any]:
    """A thousand long prompts come at once: none is hashed by the scheduler's own thread."""
    with simulation(kv_tokens=12_800) as sim:
        sim.jobs.held.add("lmcache-hash")
        for n in range(30):
            sim.add(f"q{n}", prompt(600, seed=n), 1)
        with mock.patch("cache_core.adapters.vllm.scheduler.request_state.wait"):
            step = sim.step()
        waiting = len(step.num_scheduled_tokens)
        sim.jobs.held.clear()
        sim.drain()
        sim.settle()
        return {"scheduled": waiting, "wrong": sim.result.wrong, "leaks": sim.result.leaks}


def unhashable() -> dict[str, Any]:
    """Whatever a prompt is made of, the scheduler goes on."""
    with simulation() as sim:
        counts: Counter[str] = Counter()
        count = sim.side._count
        sim.side._count = lambda name, amount: (counts.update({name: amount}), count(name, amount))
        with mock.patch("cache_core.keys.ChunkHasher.keys", side_effect=TypeError("no")):
            spared = serve(sim, "odd", prompt(320))
        again = [serve(sim, f"plain {n}", prompt(320)) for n in range(2)]
        settled(sim)
        again.append(serve(sim, "plain", prompt(320)))
        sim.settle()
        return {
            "spared": spared,
            "reasons": {k: v for k, v in counts.items() if k.startswith("uncached")},
            "again": again[-1],
            "leaks": sim.result.leaks,
        }


FETCHING = "lmcache-fetch-disk"
SMALL = {"cpu_size": "256KiB", "disk_size": "16MiB", "chunk_tokens": 32, "prefetch_size": "96KiB"}


def prefetch(how: str, placement: str = "write_on_insertion") -> dict[str, Any]:
    """A request waits for vLLM's blocks, which another one has. Eight chunks of it are on disk
    alone (``middle``: all but the first two), six of which the budget has room for."""
    options = SMALL | {"placement": placement, "weights": "fixed"}
    lost = 1.0 if how == "failing" else 0.0
    counts: Counter[str] = Counter()
    with simulation(kv_tokens=1024, block_tokens=16, options=options, unread=lost) as sim:
        for side in (sim.side, sim.worker_half):
            add_up(side, counts)
        document = prompt(256)
        serve(sim, "before", [*document, 5], 1)
        for n in range(3):
            serve(sim, f"other {n}", prompt(512, seed=10 + n), 1)
        if how == "middle":
            serve(sim, "beginning", [*document[:64], 6], 1)
        runs = 700 if how != "middle" else 400  # what is saved of it leaves the two in DRAM
        sim.add("runs", prompt(runs, seed=20), 60)
        sim.step()
        if how == "aborted":
            sim.jobs.held.add(FETCHING)
        sim.add("waits", document + prompt(1000 - runs, seed=21), 2)
        most = max(sim.side._prefetcher.held for _ in range(6) if sim.step())
        pinned = sim.side._ledger.pinned if sim.side._ledger is not None else -1
        if how == "aborted":
            from vllm.v1.request import RequestStatus

            sim.scheduler.finish_requests(["waits", "runs"], RequestStatus.FINISHED_ABORTED)
            sim.live.clear()
            sim.drain()
            going_on = sim.scheduler.has_requests()
            sim.jobs.held.clear()
            settled(sim)
            counts["going on"] = going_on and not sim.scheduler.has_requests()
        tiers: Counter[int] = Counter()
        while sim.live:
            for load in sim.step().kv_connector_metadata.loads:
                tiers.update(load.hit.tiers)
        sim.settle()
        return {
            "most": most,
            "pinned": pinned,
            "loaded": [tiers[0], tiers[1]],
            "counts": {n: c for n, c in counts.items() if "prefetch" in n and "seconds" not in n},
            "going on": counts["going on"],
            "wrong": sim.result.wrong,
            "leaks": sim.result.leaks,
        }


def add_up(side: Any, counts: Counter[str]) -> None:
    """Counts what vLLM takes from a side."""
    take = side.take_counts

    def taken() -> dict[str, float]:
        found: dict[str, float] = take()
        counts.update({name: round(amount) for name, amount in found.items()})
        return found

    side.take_counts = taken


def grows() -> dict[str, Any]:
    """While a request waits, another one computes what it begins with."""
    with simulation(kv_tokens=1024, block_tokens=16) as sim:
        sim.add("runs", prompt(640), 60)
        sim.step()
        sim.add("waits", prompt(640) + prompt(100, seed=21), 2)
        sim.step()
        waited = "waits" not in sim.first_computed
        sim.drain()
        return {
            "waited": waited,
            "spared": sim.first_computed["waits"],
            "wrong": sim.result.wrong,
        }


def main() -> None:
    set_environment()
    both = {False: "", True: ", async"}
    found: dict[str, Any] = {}
    for asynchronous, name in both.items():
        found[f"failed loads{name}"] = failed_loads(asynchronous)
        for how in ("reset", "pause"):
            found[how + name] = reset(how, asynchronous)
    for how in ("write", "reset"):
        found[f"holes, {how}"] = holes(how)
    for how in ("used", "aborted", "failing", "middle"):
        found[f"prefetch, {how}"] = prefetch(how)
    found["prefetch, exclusive"] = prefetch("used", "write_on_eviction")
    for history in (
        grows,
        neighbours,
        idle,
        overwritten,
        own_prefix,
        burst,
        decoding,
        hashing,
        unhashable,
    ):
        found[history.__name__] = history()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
