"""Moves bytes between tiers and vLLM's blocks on the worker side. Decides nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from cache_core.adapters.vllm.blend.worker_side import BlendWorkerSide, RotatedBuffers
from cache_core.adapters.vllm.metadata import (
    FetchSpec,
    LoadDone,
    LoadSpec,
    SaveDone,
    SaveSpec,
    StepMeta,
    TiersOpened,
    WorkerReport,
)
from cache_core.adapters.vllm.metrics import observe
from cache_core.adapters.vllm.prefetch import StagedChunks
from cache_core.adapters.vllm.worker.group_blocks import GroupBlocks, move_bytes, read_bytes
from cache_core.adapters.vllm.worker.kv_blocks import (
    EngineBlocks,
    OnLoaded,
    Slots,
    no_wait,
    save_slots,
    slots_within,
)
from cache_core.adapters.vllm.worker.layerwise import LayerGates, LayerwiseBuffers, Pass
from cache_core.execute import Executed, fetch
from cache_core.plan import NOWHERE, Hit, Move, Plan
from cache_core.plan_executor import TIMEOUT_S, PlanExecutor
from cache_core.tiers import Tier
from cache_core.tiers.suspensions import Suspensions
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers

logger = logging.getLogger("lmcache")

# A tier that could not be read after so long is not asked again for so long, at first.
_LONG_S = 1.0
_PAUSE_S = 5.0


class WorkerSide:
    """Loads and saves what the scheduler side decided, and reports it.

    Plans and saves are handed to the tiers' threads in their order
    (:class:`~cache_core.plan_executor.PlanExecutor`), by one that waits for what they need of the
    engine. Loads between steps have a thread for each tier, which serves those whose slowest chunk
    it has: none waits for a slower tier than its own. A load inside a step is the caller's.
    ``block_tokens`` is vLLM's.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        blocks: EngineBlocks,
        block_tokens: int,
        chunk_tokens: int,
        layer_names: Sequence[str] = (),
        layerwise: bool = False,
        blend_worker: BlendWorkerSide | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tiers = tuple(tiers)
        self.blocks = blocks
        self.counts: dict[str, float] = {}
        self._blend_worker = blend_worker
        self._block_tokens, self._size, self._clock = block_tokens, chunk_tokens, clock
        self._saver = ThreadPoolExecutor(1, "lmcache-save")
        self._loaders = [ThreadPoolExecutor(1, f"lmcache-load-{tier.name}") for tier in self.tiers]
        self._fetchers = [ThreadPoolExecutor(1, f"lmcache-fetch-{t.name}") for t in self.tiers]
        self._staged = StagedChunks(self._read, blocks.chunk_bytes, clock)
        self._executor = PlanExecutor(self.tiers, blocks.chunk_bytes, self._executed, clock=clock)
        self._suspensions = Suspensions(len(self.tiers), _PAUSE_S, clock)
        self._writing: dict[tuple[bytes, int], tuple[int, int, int]] = {}  # save, row, bytes
        self._lock = threading.Lock()
        self._report = WorkerReport(-1)
        self._saves: dict[int, tuple[str, Future[None]]] = {}
        self._loads: dict[str, Future[None]] = {}
        self._bad_blocks: set[int] = set()
        self._not_received: set[str] = set()
        self._bad_epoch: dict[str, int] = {}
        self._gone: set[str] = set()
        self._refused: set[int] = set()
        self._gates = LayerGates(layer_names) if layerwise else None
        self._pass = Pass()

    def opened(self) -> TiersOpened:
        """Returns what the scheduler side needs to know of this worker's tiers."""
        return TiersOpened(
            self.blocks.chunk_bytes,
            [tier.capacity for tier in self.tiers],
            [tier.recovered() for tier in self.tiers],
            groups=blocks.groups if isinstance(blocks := self.blocks, GroupBlocks) else (),
            tables=blocks.tables if isinstance(blocks, GroupBlocks) else (),
        )

    def before_overwriting(self, meta: StepMeta) -> None:
        """Waits for the saves that read blocks which the step writes to."""
        self._wait_for(meta.after)

    def refuse(self, meta: StepMeta) -> None:
        """Has the step's loads and saves fail, before :meth:`start_loads`: weights are others than
        those that its keys name."""
        self._refused |= {load.id for load in meta.loads}
        for save in [*meta.saves, *(encode.save for encode in meta.encodes)]:
            self._bad_epoch[save.request] = max(save.epoch, self._bad_epoch.get(save.request, -1))
        with self._lock:
            self._report.outdated = meta.generation

    def start_loads(self, meta: StepMeta) -> None:
        """Loads what this step needs; lets its other loads begin."""
        for spec in meta.fetches:
            self._fetchers[spec.hit.tiers[0]].submit(self._fetch, spec)
        # Steps that are still under way may use the blocks that vLLM has given to these requests.
        fence = self.blocks.fence(loading=True) if meta.loads else no_wait
        now = self._pass = Pass()
        for load in meta.loads:
            given = (load, fence, now)
            if not load.in_step:
                self._loads[load.request] = self._loader(load).submit(self._load, *given, None)
            elif self._gates is None:
                self._load(*given, None)
            else:
                job = self._loader(load).submit(self._load, *given, self._gates.open())
                self._gates.loads.append(job)
        if self._blend_worker is not None:
            if self._gates is not None:
                self._gates.wait_loads()
            self._blend_worker.compute(meta.loads)
        if self._gates is not None and meta.saves:
            # They follow the forward pass, layer by layer, instead of coming after it.
            self._gates.expect_layers(now)
            self._start_saves(meta.saves, meta.plans)

    def layer_needed(self, name: str) -> None:
        """Waits until the layer's KV of the loads inside this step is there."""
        if self._gates is not None:
            self._gates.wait_loaded(name)

    def layer_done(self, name: str) -> None:
        """Records that the step has computed the layer's KV."""
        if self._gates is not None:
            self._gates.computed(name, self.blocks.fence())

    def end_step(self, meta: StepMeta) -> None:
        """Lets saves begin: the forward pass is over."""
        if self._blend_worker is not None:
            seen = self._blend_worker.encode(meta.encodes, self.blocks)
            with self._lock:
                self._report.seen += seen
        if self._gates is not None:
            self._gates.all_computed(self.blocks.fence())
            for load in self._gates.take_loads():
                load.result()
        if not self._pass.beside:
            self._start_saves(meta.saves, meta.plans)
        # Never beside the forward pass: what they save is computed after it.
        self._start_saves([encode.save for encode in meta.encodes], ())

    def finished(self, gone: Iterable[str]) -> set[str]:
        """Returns the requests whose loads between steps are done. ``gone`` are requests that vLLM
        has finished."""
        self._gone.update(gone)
        for number in [number for number, (_, job) in self._saves.items() if job.done()]:
            with self._lock:
                del self._saves[number]
        if self._gone:
            # A save that is still queued has to know that it is of a failed load.
            over = self._gone - {request for request, _ in self._saves.values()}
            self._gone -= over
            for request in over:
                self._bad_epoch.pop(request, None)
        loaded = {request for request, job in self._loads.items() if job.done()}
        for request in loaded:
            self._loads.pop(request).result()
        return loaded

    def bad_blocks(self) -> set[int]:
        """Returns vLLM's blocks that a load left without KV, since the last call."""
        with self._lock:
            bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def failed(self, finished: Iterable[str]) -> set[str]:
        """Returns those of the requests, whose loads are done, that have to begin anew: where
        groups of layers have blocks of their own, a load that is not whole is none."""
        with self._lock:
            found = self._not_received.intersection(finished)
            self._not_received -= found
        return found

    def report(self, meta: StepMeta) -> WorkerReport | None:
        """Returns what was done since the last report; None where there is nothing to say: a step
        that decodes is no work for the scheduler."""
        with self._lock:
            if self._report.empty and not meta.timed:
                return None
            report, self._report = self._report, WorkerReport(-1)
        report.step = meta.step
        return report

    def take_counts(self) -> dict[str, float]:
        """Returns what was counted since the last call."""
        with self._lock:
            counts, self.counts = self.counts, {}
        return counts

    def close(self) -> None:
        """Finishes loads and saves and closes the tiers; abandons a tier that hangs."""
        if self._gates is not None:
            self._gates.all_computed(self.blocks.fence())
        for loader in (*self._fetchers, *self._loaders):
            loader.shutdown(wait=True)
        self._saver.shutdown(wait=True)
        self._executor.close(TIMEOUT_S)

    def _start_saves(self, saves: Sequence[SaveSpec], plans: Sequence[Plan]) -> None:
        if not saves and not plans:
            return
        fence = self.blocks.fence()
        for plan in plans:
            self._saver.submit(self._executor.submit, plan, None)
        for save in saves:
            job: Future[None] = Future()
            with self._lock:
                self._saves[save.id] = save.request, job
            self._saver.submit(self._save, save, fence, job, self._pass)

    def _wait_for(self, saves: Iterable[int]) -> None:
        for number in saves:
            with self._lock:
                _, job = self._saves.get(number, ("", None))
            if job is not None:
                job.result()

    def _loader(self, load: LoadSpec) -> ThreadPoolExecutor:
        return self._loaders[max(load.hit.tiers, default=0)]

    def _load(
        self, load: LoadSpec, fence: Callable[[], None], now: Pass, loaded: OnLoaded | None
    ) -> None:
        self._wait_for(load.after)
        began = self._clock()
        pieces = load.blend.pieces if load.blend is not None else ()
        exact = len(load.hit) - sum(len(piece.hit) for piece in pieces)
        grouped = load.blocks.ndim > 1
        table = load.blocks[:exact].astype(np.int64)
        if not grouped:
            table = self._table(load, load.first, exact, range(load.start, load.end))
        target: ChunkBuffers = self.blocks.place(table)
        if loaded is not None:
            target = LayerwiseBuffers(self.blocks, table, loaded)
        parts = [(Hit(load.hit.keys[:exact], load.hit.tiers[:exact]), load.first, table, target)]
        for piece in pieces:
            table = self._table(load, piece.first, len(piece.hit), range(piece.start, piece.stop))
            assert self._blend_worker is not None
            turn = partial(self._blend_worker.rotate, delta=piece.shift)
            rotated = RotatedBuffers(self.blocks, table, turn)
            parts.append((piece.hit, piece.first, table, rotated))
        gone: list[tuple[bytes, int]] = []
        asked: dict[int, bool] = {}
        end = max([load.end, *(piece.stop for piece in pieces)])
        done, good = 0, end
        if load.id in self._refused:
            parts, good = [], load.start
        for hit, first, slots, place in parts:
            got = 0
            try:
                fence()
                for run in fetch(self._read, hit, place, self._clock):
                    nbytes = read_bytes(self.blocks, slots[got:], run.answers)
                    self._count_tier("read", run.tier, nbytes, run.seconds)
                    got += run.usable
                    gone += [(key, run.tier) for key in run.gone]
                    asked[run.tier] = asked.get(run.tier, False) or run.later
            except Exception:  # a broken tier costs hits, never a request
                logger.exception("loading %d chunks failed", len(hit))
            done += got
            if got < len(hit):
                good = min(good, first + got * self._size)
        with self._lock:
            if grouped and done < len(load.blocks):
                self._not_received.add(load.request)
                self._bad_epoch[load.request] = load.epoch
            elif good < end:
                now.failed |= load.in_step
                first = max(good, load.start) // self._block_tokens
                last = -(-end // self._block_tokens)
                self._bad_blocks.update(int(b) for b in load.blocks[first:last])
                self._bad_epoch[load.request] = load.epoch
            told = LoadDone(load.id, done, tuple(gone), self._clock() - began, (*asked.items(),))
            self._report.loads.append(told)

    def _fetch(self, spec: FetchSpec) -> None:
        report, nbytes = self._staged.fetch(spec)
        self._count_tier("prefetched", spec.hit.tiers[0], nbytes, report.seconds)
        with self._lock:
            self._report.loads.append(report)

    def _read(self, tier: int, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        """Reads chunks of a tier, ``LATER`` for all if it has just kept a load waiting in vain: a
        step may have many loads, and the scheduler hears of it only afterwards."""
        if self._suspensions.out([tier], probe=True):
            return [Read.LATER] * len(keys)
        began = self._clock()
        answers = self._executor.read(tier, keys, place)
        late = Read.LATER in answers and self._clock() - began >= _LONG_S
        self._suspensions.saw(tier, late)
        return answers

    def _table(self, load: LoadSpec, first: int, chunks: int, wanted: range) -> Slots:
        tokens = range(first, first + chunks * self._size)
        return slots_within(load.blocks, self._block_tokens, tokens, wanted).reshape(-1, self._size)

    def _save(
        self, save: SaveSpec, fence: Callable[[], None], job: Future[None], now: Pass
    ) -> None:
        writes = [move for move in save.plan.moves if move.target != NOWHERE]
        sizes = move_bytes(self.blocks, save, writes)
        with self._lock:
            for row, (move, nbytes) in enumerate(zip(writes, sizes, strict=True)):
                self._writing[move.key, move.target] = save.id, row, nbytes

        def finished(chunks: int) -> None:
            with self._lock:
                self._report.saves.append(SaveDone(save.id, (), free=True))
            job.set_result(None)

        plan, place = save.plan.without_engine, None
        try:
            fence()
            prepared, place = self._prepared(save, now)
            plan = prepared
        except Exception:
            logger.exception("saving %d chunks failed", len(writes))
        tried = {(move.key, move.target) for move in plan.moves}
        self._settled((m, False) for m in writes if (m.key, m.target) not in tried)
        self._executor.wait_for_room()
        self._executor.submit(plan, place, finished)

    def _prepared(self, save: SaveSpec, now: Pass) -> tuple[Plan, ChunkBuffers | None]:
        """Returns what of the plan can be carried out, and buffers of its chunks."""
        if save.staged >= 0:
            staged = self._staged.take(save.staged, save.blocks.tolist())
            return save.plan if staged is not None else save.plan.without_engine, staged
        indexes = [m.index for m in save.plan.moves if m.target != NOWHERE and m.index >= 0]
        for load in now.loads:
            load.result()
        if now.failed or self._bad_epoch.get(save.request, -1) >= save.epoch:
            # Computed on top of a load that failed. What leaves tiers still has to.
            return save.plan.without_engine, None
        if not indexes:
            return save.plan, None
        first, last = min(indexes), max(indexes) + 1
        table = save_slots(save, self._block_tokens, self._size, first, last)
        place: ChunkBuffers = self.blocks.place(table)
        if self._gates is not None and now.beside:
            wait = partial(self._gates.wait_computed, now.number)
            place = LayerwiseBuffers(self.blocks, table, None, wait)
        return save.plan.shifted(first), place

    def _executed(self, done: Executed) -> None:
        settled = list(zip(done.moves, done.good, strict=True))
        written = [self._writing[move.key, move.target][2] for move, ok in settled if ok]
        self._count_tier("write", done.target, sum(written), done.seconds)
        if done.dropped:
            name = f"dropped_chunks:{self.tiers[done.target].name}"
            with self._lock:
                self.counts[name] = self.counts.get(name, 0.0) + len(done.moves)
        self._settled(settled)

    def _settled(self, moves: Iterable[tuple[Move, bool]]) -> None:
        """Reports moves that have ended, save by save."""
        with self._lock:
            saves: dict[int, list[tuple[int, bool]]] = {}
            for move, good in moves:
                number, row, _ = self._writing.pop((move.key, move.target))
                saves.setdefault(number, []).append((row, good))
            for number, settled in saves.items():
                self._report.saves.append(SaveDone(number, tuple(settled)))

    def _count_tier(self, verb: str, tier: int, nbytes: int, seconds: float) -> None:
        name = self.tiers[tier].name
        with self._lock:
            for what, amount in (("bytes", nbytes), ("seconds", seconds)):
                key = f"{verb}_{what}:{name}"
                self.counts[key] = self.counts.get(key, 0.0) + amount
            if verb == "read":
                observe(self.counts, f"load_seconds:{name}", seconds)
