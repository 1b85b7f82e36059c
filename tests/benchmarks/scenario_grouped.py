"""Models whose layers keep different things, through vLLM's scheduler and the connector: what is
kept of them, what is loaded, and who waits for whom.

Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import random
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from benchmarks.vllm_sim.engine_config import set_environment
from benchmarks.vllm_sim.runner import VOCABULARY
from benchmarks.vllm_sim.simulation import Simulation
from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.metadata import LoadDone
from cache_core.adapters.vllm.prefetch import Prefetcher, cached_tokens
from cache_core.adapters.vllm.scheduler.grouped import GroupedLookup, GroupRows
from cache_core.adapters.vllm.scheduler.kept import Kept
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.adapters.vllm.scheduler.transfer_state import TransferState
from cache_core.layout import Group
from cache_core.ledger import Hit, Ledger
from cache_core.residency import Residency
from tests.benchmarks.scenario_scheduling import QUIET
from tests.benchmarks.scenario_scheduling import simulation as quiet

CHUNK = QUIET.options["chunk_tokens"]
SETTINGS: dict[str, Any] = {
    "budget": 2048,
    "prefix_caching": True,
    "options": QUIET.options | {"weights": "fixed"},
}


def simulation(kind: str, **changes: Any) -> contextlib.AbstractContextManager[Simulation]:
    return quiet(kind=kind, **SETTINGS | changes)


class Server:
    """Serves one request after the other; vLLM itself remembers none of them."""

    def __init__(self, sim: Simulation) -> None:
        self.sim, self.random = sim, random.Random(3)
        self.spared: list[int] = []
        self.parts: set[bytes] = set()
        """Chunks that were saved of groups that don't keep everything."""
        saver: Any = sim.side._saver
        admit = saver._admitted

        def admitted(state: Any, found: Any) -> Any:
            parts = (part for part, _ in found if part[0].keeps != "all")
            self.parts.update(group.name(state.keys[chunk]) for group, chunk in parts)
            return admit(state, found)

        saver._admitted = admitted

    def text(self, count: int) -> list[int]:
        return [self.random.randrange(3, VOCABULARY) for _ in range(count)]

    def ask(self, prompt: list[int], count: int) -> list[int]:
        """Returns prompt and answer."""
        name = f"r{len(self.spared)}"
        self.sim.add(name, prompt, count)
        self.sim.drain()
        self.spared.append(self.sim.first_computed[name])
        for _ in range(4):
            self.sim.jobs.run_one_each()
            self.sim.step()
        self.sim.forget()
        return prompt + self.sim.outputs[name]


def chat(server: Server) -> None:
    """Three chats with one system prompt, turn about; what was answered is in the next prompt."""
    system = server.text(330)
    chats = [system + server.text(210) for _ in range(3)]
    for _ in range(4):
        for number, prompt in enumerate(chats):
            chats[number] = server.ask(prompt, 150) + server.text(200)


def agent(server: Server) -> None:
    """Three loops of calls and results behind one list of tools; the third step is tried in three
    ways."""
    tools = server.text(420)
    for _ in range(3):
        loop = tools + server.text(60)
        for step in range(4):
            said = server.ask(loop, 40)
            if step == 2:
                for _ in range(2):
                    server.ask(said + server.text(330), 40)
            loop = said + server.text(330)


TRACES = {"chat": chat, "agent": agent}


def keep_all() -> Any:
    """Every chunk of every group is kept, as if any were as likely as any other to be needed."""
    both = contextlib.ExitStack()
    both.enter_context(mock.patch.object(Kept, "worth", return_value=range(1 << 20)))
    both.enter_context(mock.patch.object(Kept, "passed", return_value=[]))
    return both


def kept(kind: str, trace: str) -> dict[str, Any]:
    """Chunks that are held at the end for the tokens that a trace is spared, in all and of groups
    that don't keep everything: with what is worth keeping, and with everything. All are of one
    size."""
    found: dict[str, Any] = {}
    for how in ("worth", "all"):
        with (
            keep_all() if how == "all" else contextlib.nullcontext(),
            simulation(kind, budget=256) as sim,
        ):
            server = Server(sim)
            TRACES[trace](server)
            ledger = sim.side._ledger
            found[how] = {
                "spared": sum(server.spared),
                "held": ledger.count(0),
                "parts": sum(name in ledger for name in server.parts),
                "wrong": sim.result.wrong,
            }
    return found


def branch(kind: str) -> dict[str, Any]:
    """Three prompts with one beginning: the first is nowhere known to be shared, the second is seen
    to leave the first, and the third finds what was kept there."""
    with simulation(kind) as sim:
        server = Server(sim)
        shared = server.text(20 * CHUNK + 5)
        for _ in range(3):
            server.ask(shared + server.text(200), 3)
        return {"spared": server.spared, "wrong": sim.result.wrong}


def loaded(kind: str) -> dict[str, Any]:
    """What a hit of a prompt of 1,601 tokens reads of each group, in chunks."""
    with simulation(kind) as sim:
        server = Server(sim)
        prompt = server.text(1601)
        server.ask(prompt, 1)
        loads: list[Any] = []
        start = sim.worker.start_load_kv

        def watched(context: Any) -> None:
            loads.extend(sim.worker._step().loads)
            start(context)

        sim.worker.start_load_kv = watched  # type: ignore[assignment]
        server.ask(prompt, 1)
        rows = [int(row[0]) for load in loads for row in load.blocks]
        groups = len(sim.worker_half.opened().groups)
        return {
            "loads": len(loads),
            "chunks": [rows.count(number) for number in range(groups)],
            "spared": server.spared,
            "wrong": sim.result.wrong,
        }


def overwritten(kind: str) -> dict[str, Any]:
    """Saves wait while the window slides on and its blocks are given to others."""
    with simulation(kind, kv_tokens=1024, budget=64, prefix_caching=False) as sim:
        server = Server(sim)
        sim.jobs.held.add("lmcache-save")
        prompts = [server.text(400) for _ in range(4)]
        for number, prompt in enumerate(prompts):
            sim.add(f"first {number}", prompt, 3)
        sim.drain()
        sim.jobs.held.clear()
        spared = []
        for prompt in prompts:
            server.ask(prompt, 3)
            spared.append(server.spared[-1])
        return {"spared": spared, "wrong": sim.result.wrong}


def prefetcher(
    ledger: Ledger, keys: tuple[bytes, ...], most: int
) -> tuple[Prefetcher, TransferState]:
    """One for a request that waits, of whose keys the disk had all when it was looked up."""
    transfers, hit = TransferState(1), Hit(keys, (1,) * len(keys))
    books: Any = transfers, lambda state: hit, ("cpu", "disk"), lambda name, amount: None
    made = Prefetcher(*books)
    made.open(ledger, lambda plan, _: plan, most, 1)
    waits: Any = SimpleNamespace(request=SimpleNamespace(request_id="a"), hits=None)
    made.arrived(waits)
    return made, transfers


def nearer() -> dict[str, Any]:
    """A long prompt whose chunks have all come to DRAM since it was looked up."""
    keys = tuple(n.to_bytes(32, "big") for n in range(3000))
    ledger = Ledger([None, None])
    ledger.complete_store(ledger.prepare_store(keys).moves, True)
    made, _ = prefetcher(ledger, keys, 1)
    return {"moved": len(made.step()), "pinned": ledger.pinned}


def renewed() -> dict[str, list[int]]:
    """The rows that go to DRAM of two chunks whose read has ended: as ever, and where keys are
    others since it began."""
    found = {}
    for when in ("as ever", "renewed"):
        keys = tuple(n.to_bytes(32, "big") for n in range(2))
        ledger = Ledger([None, None])
        ledger.restore(1, keys)
        made, transfers = prefetcher(ledger, keys, 2)
        (read,) = made.step()
        if when == "renewed":
            made.renew()
        loading = transfers.loaded(LoadDone(read.id, 2, (), 0.0, ()))
        assert loading is not None
        ledger.unpin(loading.hit)
        found[when] = made.loaded(read.id, loading).blocks.tolist()
    return found


def paused() -> list[list[int]]:
    """Tokens that are promised of two chunks that both tiers have, and what is to be loaded for
    them, before and after neither tier could be read."""
    groups = [Group(0, ("a",), 16, 0), Group(1, ("b",), CHUNK, 0, "state")]
    keys = [bytes([number]) * 32 for number in range(2)]
    ledger = Ledger([8, 8])
    for move in ledger.prepare_store([g.name(key) for key in keys for g in groups]).moves:
        ledger.complete_store([move], True)
    sizes = {"cpu_size": 1 << 20, "disk_size": 1 << 20, "disk_path": "x", "chunk_tokens": CHUNK}
    options = ConnectorOptions.parse(sizes)
    lookup = GroupedLookup(options, ledger, None, 16, lambda plan: None, lambda: 0.0)
    lookup.rows, lookup.kept = GroupRows(groups, [0, 1], CHUNK), Kept(CHUNK, True)
    found = []
    for name in "ab":
        asked = SimpleNamespace(
            request_id=name, num_tokens=70, num_prompt_tokens=70, shared_prefix_boundary=0
        )
        hasher: Any = SimpleNamespace(chunk_tokens=CHUNK)
        state = RequestState(asked, hasher, keys=list(keys))
        assert lookup.find(state, 0)
        found.append([lookup.held(state), len(state.found)])
        done: Any = SimpleNamespace(asked=((0, True), (1, True)))
        lookup.suspended(done)
    return found


def elsewhere(how: str) -> list[int]:
    """Tokens that are promised of two chunks, and what is to be loaded for them, where the second
    one's state is in a tier that can't be read now and the first one's in the remote, which could
    not be read either (``out``) or was not heard of for long (``unheard``)."""
    groups = [Group(0, ("a",), 16, 0), Group(1, ("b",), CHUNK, 0, "state")]
    keys = [bytes([number]) * 32 for number in range(2)]
    ledger = Ledger([8, 8, 8])
    for tier in (0, 1):
        ledger.restore(tier, [groups[0].name(key) for key in keys])
    ledger.restore(0, [groups[1].name(keys[1])])
    ledger.restore(2, [groups[1].name(keys[0])])
    sizes = {"cpu_size": 1 << 20, "disk_size": 1 << 20, "disk_path": "x", "chunk_tokens": CHUNK}
    options = ConnectorOptions.parse(sizes | {"remote": "some:where"})
    lookup = GroupedLookup(options, ledger, None, 16, lambda plan: None, lambda: 0.0)
    lookup.rows, lookup.kept = GroupRows(groups, [0, 1], CHUNK), Kept(CHUNK, True)
    if how == "unheard":
        lookup._residency = Residency(ledger, 2)
    lookup.suspended(LoadDone(0, 0, (), 0.0, ((0, True), (2, how == "out"))))
    asked = SimpleNamespace(
        request_id="a", num_tokens=70, num_prompt_tokens=70, shared_prefix_boundary=0
    )
    state = RequestState(asked, cast(Any, SimpleNamespace(chunk_tokens=CHUNK)), keys=keys)
    assert lookup.find(state, 0)
    return [lookup.held(state), len(state.found)]


def in_the_way() -> dict[str, Any]:
    """Two requests load; there is room for both loads, which need few blocks of local attention,
    but not for one of them and for all that the other computes when its load fails."""
    prompts = [[3 + (7919 * n * n + n + seed) % 2000 for n in range(700)] for seed in (1, 2)]
    room = {"kv_tokens": 2048, "block_tokens": 16, "prefix_caching": False}
    with simulation("full+local", unread=1e-9, **room) as sim:
        for number, prompt in enumerate(prompts):
            sim.add(f"before {number}", prompt, 1)
            sim.drain()
        while sim.jobs.run_one_each():
            sim.step()
        (tier,) = sim.worker_half.tiers
        read = tier.read

        def first_in_vain(*given: Any) -> Any:
            tier._share = 1.0 - (sim.lost_reads() > 0)  # type: ignore[attr-defined]
            return read(*given)

        with mock.patch.object(tier, "read", first_in_vain):
            for number, prompt in enumerate(prompts):
                sim.add(f"r{number}", prompt, 1)
            sim.drain(most=200)
        ended = sorted(name for name in sim.outputs if name.startswith("r"))
        return {"lost": sim.lost_reads() > 0, "ended": ended, "stuck": sim.result.stuck}


def another_vllm() -> int:
    """Tokens of 70 that are not to be moved ahead where vLLM's prefix cache has other verbs."""
    manager = SimpleNamespace(prefix_cache_lookup_enabled=lambda request: True)
    return cached_tokens(manager, SimpleNamespace(num_tokens=70, block_hashes=[]))


def main() -> None:
    set_environment()
    found: dict[str, Any] = {}
    for kind in ("full+window", "full+state"):
        for trace in TRACES:
            found[f"kept, {kind}, {trace}"] = kept(kind, trace)
    for kind in ("full+window", "full+local", "full+state", "window", "lengths+state"):
        found[f"branch, {kind}"] = branch(kind)
        found[f"loaded, {kind}"] = loaded(kind)
    for kind in ("full+window", "window"):
        found[f"overwritten, {kind}"] = overwritten(kind)
    found["nearer"], found["renewed"], found["paused"] = nearer(), renewed(), paused()
    found["elsewhere"] = {how: elsewhere(how) for how in ("out", "unheard", "there")}
    found["in the way"] = in_the_way()
    found["another vLLM"] = another_vllm()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
