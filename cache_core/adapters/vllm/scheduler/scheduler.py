"""Keeps the Ledger on the scheduler side: decides what to load, save and forget; moves no byte."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cache_core.adapters.vllm.blend.scheduler_side import BlendScheduler
from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.identity import Hashers
from cache_core.adapters.vllm.metadata import (
    NO_OFFER,
    Grown,
    LoadDone,
    LoadSpec,
    Offer,
    SaveDone,
    StepMeta,
    TiersOpened,
    WorkerReport,
)
from cache_core.adapters.vllm.prefetch import Prefetcher
from cache_core.adapters.vllm.scheduler.events import Events
from cache_core.adapters.vllm.scheduler.lookup import RemoteLookup, Tables, TierLookup
from cache_core.adapters.vllm.scheduler.request_state import RequestBook, RequestState
from cache_core.adapters.vllm.scheduler.saver import Saver
from cache_core.adapters.vllm.scheduler.transfer_state import (
    Generations,
    TransferState,
    merged_inventories,
)
from cache_core.ledger import NOWHERE, Hit, Ledger, Move, Plan
from cache_core.sizing.prefill_cost import LEAST_PRICED_TOKENS, Savings
from cache_core.tiers import Tier
from cache_core.trace_writer import TraceWriter

logger = logging.getLogger("lmcache")


class SchedulerSide(RequestBook):
    """Follows vLLM's calls in their order: look-up, allocation, step, report, end. ``remote`` is a
    connection of its own, to ask only, to a tier that others fill too. ``most_pending`` chunks may
    be on their way out of vLLM's blocks, of ``block_tokens``, at once; beyond that, saving waits.
    ``always_between``: vLLM can't undo what it computed on top of a load in a step that failed."""

    def __init__(
        self,
        options: ConnectorOptions,
        hashers: Hashers,
        *,
        ranks: int,
        block_tokens: int,
        most_pending: int,
        remote: Tier | None = None,
        recorder: TraceWriter | None = None,
        blend_scheduler: BlendScheduler | None = None,
        always_between: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(hashers, clock)
        self.options = options
        self.events: Events | None = None
        self._ranks, self._block_tokens, self._most_pending = ranks, block_tokens, most_pending
        self._always_between = always_between
        self._transfers = TransferState(ranks)
        self._prefetcher = Prefetcher(self._transfers, self._ahead, options.tier_names, self._count)
        self.blend_scheduler = blend_scheduler
        self._remote_lookup = RemoteLookup(remote) if remote is not None else None
        self._size, self._recorder = options.chunk_tokens, recorder
        self._ledger: Ledger | None = None
        self._lookup: TierLookup | None = None
        self._saver: Saver | None = None
        self.cached_tokens: Callable[[Any], int] = lambda request: 0
        """Returns how many tokens of a request vLLM's own prefix cache has."""
        self._meta, self._last_report = StepMeta(0), 0.0
        self._steps: dict[int, tuple[float, list[tuple[int, int]]]] = {}
        self._busy = False
        self._savings = Savings()
        self.stale = False  # whether vLLM's own prefix cache may be of other weights
        self._generations = Generations(hashers, self._transfers, len(options.tier_names))

    def opened(self, ranks: Sequence[TiersOpened]) -> Ledger:
        """Returns the Ledger: what all of the workers' open tiers hold can be hit from now on."""
        options, far = self.options, self._remote_lookup
        self._ledger, surplus = merged_inventories(ranks, options, far is not None)
        self._open_books(ranks, self._ledger)
        assert self._lookup is not None
        room = options.prefetch_bytes, max(rank.chunk_bytes for rank in ranks)
        self._prefetcher.open(self._ledger, self._lookup.remembered, *room)
        self._discard(surplus)
        unseen = self.options.weights == "watched" and not all(rank.watched for rank in ranks)
        if unseen and self.options.lasting:
            self.renew("weights can't be watched")
            logger.warning('no restart finds this engine\'s KV; see "weights" in the docs')
        return self._ledger

    def _open_books(self, ranks: Sequence[TiersOpened], ledger: Ledger) -> None:
        far, size = self._remote_lookup, self._block_tokens
        self._lookup = TierLookup(self.options, ledger, far, size, self._free, self._clock)
        books = ledger, self._lookup, self._hashers, self._transfers
        self._saver = Saver(*books, size, self._most_pending, self._count)

    def tell(self, events: Events) -> None:
        """Has ``events`` report to routers what tiers hold, from now on."""
        assert self._saver is not None
        self.events, self._saver.saving = events, events.saving

    def arrived(self, request: Any) -> None:
        """Takes in a new request of vLLM's, which has not looked for it anywhere."""
        reason = self._hashers.adapter(request).unknown
        if reason:
            self._leave_uncached(request, reason)
        state = self._track(request)
        if state is None:
            return
        if state.hits is None:
            self._hashing.begin(state)
            self._prefetcher.arrived(state)
        if self.blend_scheduler is not None:
            self.blend_scheduler.prepare(state)

    def matched(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """Returns tokens beyond ``computed`` to load (None: ask again), and if between steps."""
        ledger, lookup = self._ledger, self._lookup
        state = self._requests.get(request.request_id)
        # A thousand may wait, and each is asked for in each pass.
        waits = state is not None and state.awaited and not state.epoch
        if waits and state is not None and lookup is not None and lookup.awaits(state, computed):
            return None, False
        state = self._track(request)
        if state is None or ledger is None or lookup is None:
            return 0, False
        if request.num_computed_tokens == 0:
            # It has no KV but what vLLM's own prefix cache gives, which may be of other weights.
            state.mixed = computed > 0 and (self.stale or state.adapter.renamed)
        if state.epoch:
            # What could not be read now may fail again at once, and again.
            state.computed = computed
            return None if state.stands_aside() else 0, False
        try:
            if not self._hashing.ready(state):
                return None, False
            state.hash_upto(request.num_tokens)
        except Exception:  # whatever its prompt is made of: it costs hits, never the engine
            logger.exception("request %s is not cached", request.request_id)
            self._leave_uncached(request, "unhashable")
            return 0, False
        if not lookup.find(state, computed):
            return None, False
        held = lookup.held(state)
        if self.blend_scheduler is not None and state.blend is not None:
            end = self.blend_scheduler.plan(state, ledger, max(computed, held))
            if end is not None:
                return end - computed, False
        external = held - computed
        if external < self.options.min_load_tokens:
            return 0, False
        return external, self._between_steps(state.found.tiers)

    def allocated(self, request: Any, tables: Tables, external: int) -> None:
        """Plans the load of ``external`` tokens to the request's blocks."""
        state = self._requests.get(request.request_id)
        ledger, saver, lookup = self._ledger, self._saver, self._lookup
        if state is None or ledger is None or saver is None or lookup is None:
            return
        start, end = state.computed, state.computed + external
        if state.hits is None:
            state.hits = {"device": start}
            self._count("hit_tokens:device", start)
            self._count("prompt_tokens", request.num_prompt_tokens)
        if external <= 0:
            self._prefetcher.ended(request.request_id)
            return
        blend, whole_end = None, end
        if self.blend_scheduler is not None and state.blend is not None and state.blend.spans:
            blend, end = self.blend_scheduler.message(state, ledger), state.blend.exact
        if self.events is not None:
            self.events.found(state, start // self._size, state.found)
        planned = lookup.planned(state, tables, end, whole_end, blend)
        if blend is not None:
            reused = sum(planned.split.values())
            self._count("blend_reused_tokens", reused - len(blend.tokens))
            self._count("blend_computed_tokens", len(blend.tokens))
        between = blend is None and self._between_steps(planned.hit.tiers)
        number = self._transfers.number()
        pinned = ledger.pin(planned.hit)
        self._prefetcher.used(request.request_id, pinned)
        for tier in pinned.tiers:
            self._count(f"promised_chunks:{self.options.tier_names[tier]}", 1)
        self._transfers.load(number, pinned, request.request_id, start, whole_end)
        self._meta.loads.append(
            LoadSpec(
                number,
                request.request_id,
                state.epoch,
                pinned,
                planned.first,
                start,
                end,
                planned.blocks,
                not between,
                blend,
                tuple(saver.before_writing(planned.written)),
            )
        )
        for name, tokens in planned.split.items():
            self._count(f"hit_tokens:{name}", tokens)
            if request.num_preemptions <= 0:
                state.hits[name] = state.hits.get(name, 0) + tokens

    def sources(self, request: Any, external: int) -> dict[str, int]:
        """Returns the latest look-up's external tokens by tier."""
        state, lookup = self._requests.get(request.request_id), self._lookup
        return lookup.split(state, external) if state and lookup else {}

    def step(
        self, scheduled: Mapping[str, int], grown: Iterable[Grown], offer: Offer = NO_OFFER
    ) -> StepMeta:
        """Ends a scheduling step: returns what workers shall do in it. ``scheduled`` maps requests
        to the tokens that this step computes, in blocks of which it has ``grown`` some."""
        meta, saver = self._meta, self._saver
        if saver is not None:
            meta.after |= saver.grown(grown, self._requests)
            meta.after |= saver.before_writing(offer.copied)
            saver.offer = offer
        parts: list[tuple[int, int]] = []
        requests, size = self._requests, self._size
        for name, tokens in scheduled.items():
            state = requests.get(name)
            if state is None:
                continue
            request = state.request
            computed = request.num_computed_tokens
            parts.append((tokens, computed))
            if saver is not None and saver.due(state, (computed + tokens) // size):
                # Token ids of what runs ahead of the sampler are not known yet.
                known = min(computed + tokens, request.num_tokens)
                save = saver.save(state, known // size)
                if save is not None:
                    meta.saves.append(save)
        meta.fetches += self._prefetcher.step()
        self._busy = bool(scheduled)
        self._hashing.next_pass(self._busy)
        if sum(scheduled.values()) >= LEAST_PRICED_TOKENS:
            self._steps[meta.step] = (self._clock(), parts)
            meta.timed = True
        self._meta = StepMeta(meta.step + 1, meta.generation)
        return meta

    def passed(self) -> None:
        """Notes that a step is over of which workers have nothing to report."""
        self._last_report = self._clock()

    def reported(self, report: WorkerReport) -> None:
        """Takes in what workers did in a step, and that it is over."""
        now = self._clock()
        began, parts = self._steps.pop(report.step, (now, []))
        self._savings.saw(parts, now - max(began, self._last_report))
        self._last_report = now
        for load in report.loads:
            self._loaded(load)
        for save in report.saves:
            self._saved(save)
        if self.blend_scheduler is not None:
            self.blend_scheduler.saw(report.seen)
        if report.outdated >= self._meta.generation:
            self.renew("weights changed in memory")
            self.stale = True
        if saved := self._savings.take():
            self._count("prefill_seconds_saved", saved)

    def finished(self, request: Any) -> None:
        """Ends a request. vLLM may have its blocks back at once; the Saver knows which it reads."""
        self._uncached.discard(request.request_id)
        self._prefetcher.ended(request.request_id)
        if self._remote_lookup is not None:
            self._remote_lookup.forget(request.request_id)
        state = self._requests.pop(request.request_id, None)
        if state is None:
            return
        self._hashing.ended(state)
        if self._recorder is not None:
            self._recorder.write(state.served())
        if self._saver is not None:
            self._saver.order(state)
            if self.blend_scheduler is not None:
                self._saver.encode(state, self.blend_scheduler, self._meta)

    @property
    def pending(self) -> bool:
        """Returns whether workers have something to do, or to report, though no request runs."""
        return bool(self._meta.encodes or self._meta.plans) or self._transfers.busy

    def reset(self, ours: bool = True) -> None:
        """Forgets every chunk: weights may be others now. If they are promised to be fixed, only
        where the reset is of ``ours``, not of vLLM's own prefix cache alone."""
        if self.options.weights == "watched":
            self.renew("the cache was reset")
        elif ours and self._ledger is not None:
            self._free(Plan(tuple(self._ledger.clear())))
            for state in self._requests.values():
                state.saved = state.ordered = 0
            self._prefetcher.renew()

    def renew(self, why: str) -> None:
        """Begins a new generation of keys: nothing that was kept until now is found again."""
        self._free(self._generations.renew(why, self._requests.values(), self._ledger))
        self._meta.generation = self._generations.number
        for state in self._requests.values():
            if state.hits is None:
                self._hashing.begin(state)
        if self._remote_lookup is not None:
            self._remote_lookup.forget_all()
        self._prefetcher.renew()

    def close(self) -> None:
        """Ends look-ups and the recording."""
        self._hashing.close()
        for open_one in (self.blend_scheduler, self._remote_lookup, self._recorder):
            if open_one is not None:
                open_one.close()

    def check(self) -> None:
        """Proves the Ledger's invariants; raises :class:`~cache_core.ledger.LedgerError`."""
        if self._ledger is not None:
            self._ledger.check()

    def _ahead(self, state: RequestState) -> Hit | None:
        """Returns what the hit of a request that waits would be now; None if that is not known."""
        try:
            if self._lookup is None or not self._hashing.done(state):
                return None
        except Exception:  # noqa: BLE001 - its look-up says so
            return Hit((), ())
        return self._lookup.ahead(state, self.cached_tokens(state.request))

    def _between_steps(self, tiers: Sequence[int]) -> bool:
        # Of several that come into an idle engine, none is to wait for another one's load.
        busy = self._busy or bool(self._meta.loads)
        names = {self.options.tier_names[tier] for tier in tiers}
        return self._always_between or self.options.between_steps(names, busy)

    def _loaded(self, done: LoadDone) -> None:
        ledger, lookup = self._ledger, self._lookup
        assert ledger is not None and lookup is not None
        loading = self._transfers.loaded(done)
        for tier in lookup.suspended(done):
            self._count(f"suspensions:{self.options.tier_names[tier]}", 1)
        if loading is None:
            return
        # Not before every rank is through: what is forgotten may be overwritten.
        for key, tier in dict.fromkeys(loading.gone):
            lookup.lost(key, tier)
            if ledger.forget(key, tier):
                self._discard([(key, tier)])
        ledger.unpin(loading.hit)
        self._free(self._generations.ended(done.id, loading.hit.keys, ledger))
        if not loading.request:
            self._meta.saves.append(self._prefetcher.loaded(done.id, loading))
            return
        for tier in loading.hit.tiers[: loading.chunks]:
            self._count(f"delivered_chunks:{self.options.tier_names[tier]}", 1)
        if loading.whole:
            self._savings.loaded(loading.end - loading.start, loading.start, loading.seconds)
            return
        self._count("failed_loads", 1)
        state = self._requests.get(loading.request)
        if state is not None:
            state.lose_load()

    def _saved(self, done: SaveDone) -> None:
        saved = self._transfers.saved(done)
        ledger, saver = self._ledger, self._saver
        assert ledger is not None and saver is not None
        for move, good in zip(saved.moves, saved.good, strict=True):
            ledger.complete_store([move], good)
        self._free(self._generations.ended(done.id, (move.key for move in saved.moves), ledger))
        self._prefetcher.saved(done.id, saved.moves, saved.good)
        failed = [move for move, good in zip(saved.moves, saved.good, strict=True) if not good]
        if failed:
            self._count("failed_saves", len(failed))
            if saved.request in self._requests:
                saver.failed(self._requests[saved.request], failed)
            if self._ranks > 1:  # some rank may have it
                self._discard((move.key, move.target) for move in failed)
        if saved.free:
            saver.free(done.id)
            if self.blend_scheduler is not None:
                self.blend_scheduler.encoded(done.id)

    def _discard(self, chunks: Iterable[tuple[bytes, int]]) -> None:
        self._free(Plan(tuple(Move(key, tier, NOWHERE, -1) for key, tier in chunks)))

    def _free(self, plan: Plan) -> None:
        if plan.moves:
            self._meta.plans.append(plan)
