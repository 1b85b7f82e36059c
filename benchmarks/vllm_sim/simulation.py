"""vLLM's own scheduler and this project's connector, with real bytes and no model."""

from __future__ import annotations

import random
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.vllm_sim.engine_config import engine_config
from benchmarks.vllm_sim.jobs import Jobs
from benchmarks.vllm_sim.layers import FakeKV
from benchmarks.vllm_sim.runner import (
    FIRST_TOKEN,
    VOCABULARY,
    FakeRunner,
    after,
    expected,
    root,
    sample,
)
from benchmarks.vllm_sim.settings import Settings
from benchmarks.vllm_sim.unreliable import Unreliable

# Steps in a row without a token or a new request, behind which nothing will come any more.
_STUCK = 3000
_LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 255, 256, 257, 384, 511, 512, 640]


@dataclass(slots=True)
class Result:
    """What a history came to. ``wrong`` requests got other tokens than the model's; ``leaks`` says
    what was held though nothing needed it; ``stuck`` requests never ended."""

    steps: int = 0
    requests: int = 0
    compared: int = 0
    reads_wrong: int = 0
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    leaks: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        """Whether all was right, and nothing was left."""
        return not (self.wrong or self.stuck or self.leaks)


def import_all() -> None:
    """What every simulation needs."""
    import vllm.v1.core.sched.async_scheduler
    import vllm.v1.structured_output  # noqa: F401

    import cache_core.adapters.vllm.connector  # noqa: F401


class Simulation:
    """One history. :meth:`run` serves random traffic; a scenario of its own adds requests and
    takes steps. Close it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.result = Result()
        self.jobs = Jobs(settings.seed, settings.idle)
        self.now = 0.0
        self._random = random.Random(settings.seed)
        self._stack = ExitStack()
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._started: deque[tuple[Any, Any]] = deque()
        self.outputs: dict[str, list[int]] = defaultdict(list)
        self._asked: dict[str, tuple[list[int], int, int]] = {}
        self.live: dict[str, int | None] = {}
        self.first_computed: dict[str, int] = {}
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Ends both halves and removes the tiers' files."""
        self.scheduler.shutdown()
        self.worker.shutdown()
        self._stack.close()

    def add(self, name: str, prompt: Sequence[int], count: int, **settings: Any) -> None:
        """A request for ``count`` tokens. ``settings``: salt, priority, abort_after (steps)."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        salt = settings.get("salt")
        request = Request(
            name,
            list(prompt),
            SamplingParams(temperature=0, max_tokens=count, ignore_eos=True),
            None,
            block_hasher=self._block_hasher,
            cache_salt=salt,
            priority=settings.get("priority", 0),
            arrival_time=self.now,
        )
        self.runner.salts[name] = salt
        self._asked[name] = (list(prompt), count, self.runner.version)
        self.live[name] = settings.get("abort_after")
        self.result.requests += 1
        self.scheduler.add_request(request)

    def step(self) -> Any:
        """Schedules and executes once, and takes what an earlier step brought. Returns what was
        scheduled."""
        self.result.steps += 1
        self.now += 0.05
        self.jobs.tick()
        step = self.scheduler.schedule()
        for fetch in step.kv_connector_metadata.fetches:
            self.result.counts["fetched"] += len(fetch.hit)
        for load in step.kv_connector_metadata.loads:
            self.result.counts["loaded"] += load.end - load.start
        for new in step.scheduled_new_reqs:
            self.first_computed[new.req_id] = new.num_computed_tokens
        self.result.counts["preempted"] += len(step.preempted_req_ids or ())
        self._started.append((step, self.runner.execute(step)))
        if len(self._started) > self.settings.asynchronous:
            self._finish_one()
        return step

    def drain(self, most: int = _STUCK) -> None:
        """Steps until no request is left."""
        idle, scheduler = 0, self.scheduler
        while self.live or self._started or scheduler.has_unfinished_requests():
            if self._started and not self.live and not scheduler.has_unfinished_requests():
                self._finish_one()
                continue
            idle = 0 if self.step().total_num_scheduled_tokens else idle + 1
            if idle > most:
                self.result.stuck += [*self.live]
                return

    def reset(self) -> None:
        """All caches are emptied, the connector's too; running requests begin anew."""
        done = self.scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
        self.result.counts[f"reset {done}"] += 1

    def update_weights(self) -> None:
        """New weights, and then a reset, as reinforcement learning does it, again until vLLM does
        it. What is running then has no right answer any more."""
        while self._started:
            self._finish_one()
        self.runner.version += 1
        for name in self.live:
            prompt, count, _ = self._asked[name]
            self._asked[name] = (prompt, count, -1)
        while not self._try(self.reset):
            for _ in range(20):  # asked at every step, no request would get on
                self.step()
        self.result.counts["updates"] += 1

    def forget(self) -> None:
        """Empties vLLM's own prefix cache of what no request uses, and no tier."""
        pool = self.scheduler.kv_cache_manager.block_pool
        for block in pool.blocks:
            if block.ref_cnt == 0:
                pool._maybe_evict_cached_block(block)

    def pause(self) -> None:
        """As an engine goes to sleep: all requests are ended, and all caches emptied."""
        from vllm.v1.request import RequestStatus

        while self._started:
            self._finish_one()
        self.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        self.live.clear()
        self.reset()
        self.result.counts["pauses"] += 1

    def run(self) -> Result:
        """Serves the traffic of the settings."""
        made, idle = 0, 0
        settings, r = self.settings, self._random
        documents = [self._tokens(700) for _ in range(3)]
        while made < settings.requests or self.live:
            for _ in range(r.randrange(3)):
                if made < settings.requests and len(self.live) < settings.at_once:
                    self._add_random(f"r{made}", documents)
                    made += 1
            if r.random() < settings.resets:
                self._try(self.reset)
            if r.random() < settings.updates:
                self._try(self.update_weights)
            if r.random() < settings.pauses:
                self._try(self.pause)
            if settings.forgets and r.random() < settings.forgets:
                self.forget()
            idle = 0 if self.step().total_num_scheduled_tokens else idle + 1
            if idle > _STUCK:
                self.result.stuck += [*self.live]
                return self.result
            self._abort_some()
            if self.result.steps % 50 == 0:
                self.side.check()
        self.drain()
        self.settle()
        return self.result

    def settle(self) -> None:
        """What is under way ends; counts what is still held."""
        for _ in range(6):
            while self.jobs.run_one_each():
                pass
            self.step()
        while self._started:
            self._finish_one()
        self.side.check()
        pool = self.scheduler.kv_cache_manager.block_pool
        side, ledger = self.side, self.side._ledger
        held = {"requests": len(side._requests), "fenced": len(side._saver._reading)}
        held["on their way"] = side._transfers.pending
        held["moved ahead"] = side._prefetcher.held
        ahead = side._prefetcher
        held["read ahead"] = sum(ahead._under_way) + len(ahead._puts) + len(ahead._queue)
        held["staged"] = len(self.worker_half._staged._there)
        # What clearing leaves is pinned or pending.
        ledger.clear()
        held["protected"] = sum(ledger.count(tier) for tier in range(len(ledger.capacities)))
        # One block is vLLM's own: the null block.
        held["blocks"] = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        self.result.leaks = {name: count for name, count in held.items() if count}
        self.result.reads_wrong = self.runner.reads_wrong
        self.result.counts["lost"] = self.lost_reads()

    def lost_reads(self) -> int:
        """Reads that failed."""
        return sum(getattr(tier, "lost", 0) for tier in self.worker_half.tiers)

    def _try(self, act: Any) -> bool:
        """Whether vLLM did it."""
        try:
            act()
        except RuntimeError as error:
            # vLLM refuses while a request waits for a transfer: that is its own rule.
            if "Failed to reset KV cache" not in str(error):
                raise
            self.result.counts["reset raised"] += 1
            return False
        return True

    def _finish_one(self) -> None:
        step, output = self._started.popleft()
        told = self.scheduler.update_from_output(step, output)
        for outputs in told.values():
            for output in outputs.outputs:
                name = output.request_id
                self.outputs[name] += output.new_token_ids
                if output.finish_reason is not None and name in self.live:
                    del self.live[name]
                    self._compare(name, str(output.finish_reason))
        if self.settings.drafts:
            self._draft()

    def _compare(self, name: str, reason: str) -> None:
        prompt, count, version = self._asked[name]
        self.result.counts[f"finished {reason}"] += 1
        if version < 0:
            return
        self.result.compared += 1
        start = root(version, self.runner.salts[name])
        if self.outputs[name] != expected(prompt, count, start):
            self.result.wrong.append(name)

    def _draft(self) -> None:
        from vllm.v1.outputs import DraftTokenIds

        names, drafts = [], []
        for request in self.scheduler.running:
            names.append(request.request_id)
            state = root(self.runner.version, self.runner.salts[request.request_id])
            for token in request.all_token_ids:
                state = after(state, token)
            guess: list[int] = []
            for _ in range(self.settings.drafts if request.num_output_tokens else 0):
                right = self._random.random() < 0.6
                guess.append(sample(state) if right else self._tokens(1)[0])
                state = after(state, guess[-1])
            drafts.append(guess)
        self.scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))

    def _add_random(self, name: str, documents: Sequence[list[int]]) -> None:
        r = self._random
        prompt = list(r.choice(documents)[: r.choice(_LENGTHS)])
        kind = r.random()
        if kind < 0.35:
            prompt += self._tokens(r.randrange(1, 70))
        elif kind < 0.5:
            prompt = self._tokens(r.choice(_LENGTHS))
        elif kind < 0.65 and self._asked:
            prompt = list(r.choice(list(self._asked.values()))[0])
        self.add(
            name,
            prompt,
            r.choice([1, 2, 5, 17, 33, 40]),
            salt=r.choice([None] * 4 + ["a"]),
            priority=r.randrange(3) if self.settings.priorities else 0,
            abort_after=r.randrange(12) if r.random() < self.settings.aborts else None,
        )

    def _abort_some(self) -> None:
        from vllm.v1.request import RequestStatus

        for name, left in list(self.live.items()):
            if left is None:
                continue
            self.live[name] = left - 1
            if left == 0:
                self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
                del self.live[name]
                self.result.counts["aborted"] += 1

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(count)]

    def _build(self) -> None:
        from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import (
            get_request_block_hasher,
            init_none_hash,
            resolve_kv_cache_block_sizes,
        )
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.structured_output import StructuredOutputManager

        from cache_core.adapters.vllm.connector import TieredKVConnector
        from cache_core.plan_executor import PlanExecutor

        settings = self.settings
        config, kv_config = engine_config(settings, self._scratch)
        init_none_hash(sha256)
        block_tokens, hashed_tokens = resolve_kv_cache_block_sizes(kv_config, config)
        self._block_hasher = get_request_block_hasher(hashed_tokens, sha256)
        for name, stand_in in (
            ("worker.worker.ThreadPoolExecutor", self.jobs.executor),
            ("worker.worker.Future", self.jobs.future),
            ("worker.worker.PlanExecutor", partial(PlanExecutor, threads=False)),
            ("scheduler.request_state.ThreadPoolExecutor", self.jobs.executor),
            ("scheduler.request_state.wait", self.jobs.wait),
        ):
            patch = mock.patch(f"cache_core.adapters.vllm.{name}", stand_in)
            self._stack.enter_context(patch)
        module = "cache_core.adapters.vllm.connector.open_tiers"
        self._stack.enter_context(mock.patch(module, self._open_tiers))
        self._kv = FakeKV(settings.kind, settings.blocks, settings.block_tokens)
        self.worker = TieredKVConnector(config, KVConnectorRole.WORKER, kv_config)
        self.worker.register_kv_caches(self._kv.registered())
        make = AsyncScheduler if settings.asynchronous else Scheduler
        self.scheduler: Any = make(
            vllm_config=config,
            kv_cache_config=kv_config,
            structured_output_manager=StructuredOutputManager(config),
            block_size=block_tokens,
            hash_block_size=hashed_tokens,
            log_stats=True,
        )
        connector = self.scheduler.connector
        self.side = connector.scheduler
        self.side._clock = self.side._hashing._clock = lambda: self.now
        handshake = self.worker.get_handshake_metadata()
        connector.set_xfer_handshake_metadata_pp_aware({(0, 0): handshake})
        worker = self.worker.worker
        assert worker is not None
        self.worker_half = worker
        self.runner = FakeRunner(self.worker, self._kv)

    def _open_tiers(self, options: Any, chunk_bytes: int, *more: Any) -> Any:
        from cache_core.adapters.vllm.worker.open_tiers import open_tiers

        settings = self.settings
        tiers = open_tiers(options, chunk_bytes, *more)
        if not settings.unread and not settings.unwritten:
            return tiers
        return [
            Unreliable(tier, settings.seed + place, settings, chunk_bytes)
            for place, tier in enumerate(tiers)
        ]
