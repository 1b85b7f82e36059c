"""The scheduler's half: the Ledger. Decides what to load, save and forget; moves no byte."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cache_core.adapters.vllm.agreement import agreed, by_tier
from cache_core.adapters.vllm.asking import Asking
from cache_core.adapters.vllm.blending import Blending
from cache_core.adapters.vllm.events import Events
from cache_core.adapters.vllm.generations import Generations
from cache_core.adapters.vllm.identity import Hashers
from cache_core.adapters.vllm.lookup import Lookup
from cache_core.adapters.vllm.messages import (
    Load,
    LoadDone,
    Save,
    SaveDone,
    StepMeta,
    TiersOpened,
    WorkerReport,
)
from cache_core.adapters.vllm.options import ConnectorOptions
from cache_core.adapters.vllm.tracked import Tracked
from cache_core.adapters.vllm.transfers import Transfers
from cache_core.ledger import NOWHERE, Hit, Ledger, Move, Plan
from cache_core.prefill import Savings
from cache_core.recording import TraceWriter
from cache_core.tiers import Tier

logger = logging.getLogger("lmcache")


class SchedulerHalf:
    """Follows vLLM's calls in their order: look-up, allocation, step, report, end.

    ``remote`` is a connection of its own to a tier that other processes fill too, to ask only.
    ``most_pending`` chunks may be on their way into tiers at once; behind that, saving waits.
    """

    def __init__(
        self,
        options: ConnectorOptions,
        hashers: Hashers,
        *,
        ranks: int,
        most_pending: int,
        remote: Tier | None = None,
        recorder: TraceWriter | None = None,
        blending: Blending | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self.counts: dict[str, float] = {}
        self.events: Events | None = None
        self._hashers, self._ranks, self._clock = hashers, ranks, clock
        self._most_pending = most_pending
        self._transfers = Transfers(ranks)
        self._recorder = recorder
        self.blending = blending
        self._asking = Asking(remote) if remote is not None else None
        self._size = options.chunk_tokens
        self._ledger: Ledger | None = None
        self._lookup: Lookup | None = None
        self._requests: dict[str, Tracked] = {}
        self._meta = StepMeta(0)
        self._awaited: set[str] = set()
        self._steps: dict[int, tuple[float, list[tuple[int, int]]]] = {}
        self._last_report = 0.0
        self._running: set[str] = set()
        self._savings = Savings()
        self._uncached: set[str] = set()
        self.stale = False  # whether vLLM's own prefix cache may be of other weights
        self._generations = Generations(hashers, self._transfers, len(options.tier_names))

    def opened(self, ranks: Sequence[TiersOpened]) -> Ledger:
        """Every worker's tiers are open: what all of them hold can be hit from now on. Returns the
        books of it."""
        self._ledger, surplus = agreed(ranks, self.options, self._asking is not None)
        self._lookup = Lookup(self.options, self._ledger, self._asking, self._free, self._clock)
        self._discard(surplus)
        unseen = self.options.weights == "watched" and not all(rank.watched for rank in ranks)
        if unseen and self.options.lasting:
            self.renew("weights can't be watched")
            logger.warning('no restart finds this engine\'s KV; see "weights" in the docs')
        return self._ledger

    def arrived(self, request: Any) -> None:
        """vLLM has a new request, and has not looked for it anywhere."""
        reason = self._hashers.adapter(request).unknown
        if reason:
            self._uncached.add(request.request_id)
            self._count(f"uncached_requests:{reason}", 1)
        if self.blending is not None:
            tracked = self._track(request)
            if tracked is not None:
                self.blending.prepare(tracked)

    def matched(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """Tokens beyond ``computed`` that can be loaded (None: ask again), and whether between
        steps."""
        tracked = self._track(request)
        ledger, lookup = self._ledger, self._lookup
        if tracked is None or ledger is None or lookup is None:
            return 0, False
        if request.num_computed_tokens == 0:
            # It has no KV but what vLLM's own prefix cache gives, which may be of other weights.
            tracked.mixed = computed > 0 and (self.stale or tracked.adapter.renamed)
        tracked.computed = computed
        if tracked.epoch:
            # What could not be read now may fail again at once, and again.
            return 0, False
        keys = tracked.upto(request.num_tokens)
        if lookup.must_wait(tracked, keys):
            return None, False
        hit = lookup.hit(tracked, keys)
        if self.blending is not None and tracked.blend is not None:
            exact = max(computed, min(len(hit) * self._size, request.num_tokens - 1))
            end = self.blending.plan(tracked, ledger, exact)
            if end is not None:
                return end - computed, False
        # The last token is always computed: its logits are wanted.
        external = min(len(hit) * self._size, request.num_tokens - 1) - computed
        if external < self.options.min_load_tokens:
            return 0, False
        return external, self._between_steps(hit.tiers[computed // self._size :])

    def allocated(self, request: Any, blocks: Sequence[int], external: int) -> None:
        """vLLM has the blocks for ``external`` tokens, the first of the request from token 0 on."""
        tracked = self._requests.get(request.request_id)
        ledger, lookup = self._ledger, self._lookup
        if tracked is None or ledger is None or lookup is None:
            return
        start, end = tracked.computed, tracked.computed + external
        if tracked.hits is None:
            tracked.hits = {"device": start}
            self._count("hit_tokens:device", start)
            self._count("prompt_tokens", request.num_prompt_tokens)
        if external <= 0:
            return
        blend, whole_end = None, end
        if self.blending is not None and tracked.blend is not None and tracked.blend.spans:
            blend, end = self.blending.message(tracked), tracked.blend.exact
        first, last = start // self._size, -(-end // self._size)
        hit = lookup.again(tracked)
        if self.events is not None:
            self.events.found(tracked, hit)
        wanted = Hit(hit.keys[first:last], hit.tiers[first:last])
        split = by_tier(self.options, wanted, start, end, start // self._size * self._size)
        if blend is not None:
            for piece in blend.pieces:
                found = by_tier(self.options, piece.hit, piece.start, piece.stop, piece.first)
                split = {n: split.get(n, 0) + found.get(n, 0) for n in split | found}
                keys, tiers = wanted.keys + piece.hit.keys, wanted.tiers + piece.hit.tiers
                wanted = Hit(keys, tiers)
            self._count("blend_reused_tokens", sum(split.values()) - len(blend.tokens))
            self._count("blend_computed_tokens", len(blend.tokens))
        between = blend is None and self._between_steps(wanted.tiers)
        number = self._transfers.number()
        pinned = ledger.pin(wanted)
        for tier in pinned.tiers:
            self._count(f"promised_chunks:{self.options.tier_names[tier]}", 1)
        self._transfers.load(number, pinned, request.request_id, start, whole_end)
        self._meta.loads.append(
            Load(
                number,
                request.request_id,
                tracked.epoch,
                pinned,
                first * self._size,
                start,
                end,
                np.array(blocks, dtype=np.int32),
                not between,
                blend,
            )
        )
        for name, tokens in split.items():
            self._count(f"hit_tokens:{name}", tokens)
            if request.num_preemptions <= 0:
                tracked.hits[name] = tracked.hits.get(name, 0) + tokens

    def sources(self, request: Any, external: int) -> dict[str, int]:
        """The latest look-up's external tokens by tier."""
        tracked = self._requests.get(request.request_id)
        if tracked is None or self._lookup is None:
            return {}
        start = tracked.computed
        hit = self._lookup.again(tracked)
        first = start // self._size
        part = Hit(hit.keys[first:], hit.tiers[first:])
        return by_tier(self.options, part, start, start + external, first * self._size)

    def step(
        self,
        scheduled: Mapping[str, int],
        blocks_of: Callable[[str], Sequence[int]],
        preempted: Iterable[str],
    ) -> StepMeta:
        """Ends a scheduling step: what workers shall do in it. ``scheduled`` maps requests to the
        tokens that this step computes."""
        meta = self._meta
        meta.preempted = frozenset(preempted)
        meta.awaited, self._awaited = frozenset(self._awaited), set()
        parts: list[tuple[int, int]] = []
        for name, tokens in scheduled.items():
            tracked = self._requests.get(name)
            if tracked is None:
                continue
            request = tracked.request
            parts.append((tokens, request.num_computed_tokens))
            # Token ids of what runs ahead of the sampler are not known yet.
            known = min(request.num_computed_tokens + tokens, request.num_tokens)
            self._save(tracked, known // self._size, blocks_of)
        self._running = set(scheduled)
        self._steps[meta.step] = (self._clock(), parts)
        self._meta = StepMeta(meta.step + 1, meta.generation)
        return meta

    def reported(self, report: WorkerReport) -> None:
        """What workers did."""
        now = self._clock()
        began, parts = self._steps.pop(report.step, (now, []))
        self._savings.saw(parts, now - max(began, self._last_report))
        self._last_report = now
        for load in report.loads:
            self._loaded(load)
        for save in report.saves:
            self._saved(save)
        if report.outdated >= self._meta.generation:
            self.renew("weights changed in memory")
            self.stale = True
        saved = self._savings.take()
        if saved:
            self._count("prefill_seconds_saved", saved)

    def finished(self, request: Any) -> bool:
        """Whether vLLM must keep the request's blocks until its saves are done."""
        self._running.discard(request.request_id)
        self._uncached.discard(request.request_id)
        if self._asking is not None:
            self._asking.forget(request.request_id)
        tracked = self._requests.pop(request.request_id, None)
        if tracked is None:
            return False
        if self._recorder is not None:
            self._recorder.write(tracked.served())
        self._encode(tracked)
        if tracked.jobs:
            self._awaited.add(request.request_id)
        return bool(tracked.jobs)

    def reset(self, ours: bool = True) -> None:
        """Forgets every chunk: weights may be others now. If they are promised to be fixed, only
        where the reset is of ``ours``, not of vLLM's own prefix cache alone."""
        if self.options.weights == "watched":
            self.renew("the cache was reset")
        elif ours and self._ledger is not None:
            self._free(Plan(tuple(self._ledger.clear())))

    def renew(self, why: str) -> None:
        """Begins a new generation of keys: nothing that was kept until now is found again."""
        self._free(self._generations.renew(why, self._requests.values(), self._ledger))
        self._meta.generation = self._generations.number
        if self._asking is not None:
            self._asking.forget_all()

    def take_counts(self) -> dict[str, float]:
        """Counters since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def close(self) -> None:
        """Ends look-ups and the recording."""
        if self._asking is not None:
            self._asking.close()
        if self._recorder is not None:
            self._recorder.close()

    def check(self) -> None:
        """Proves the Ledger's invariants; raises :class:`~cache_core.ledger.LedgerError`."""
        if self._ledger is not None:
            self._ledger.check()

    def _track(self, request: Any) -> Tracked | None:
        name = request.request_id
        if name in self._uncached:
            return None
        if name not in self._requests:
            adapter, salt = self._hashers.adapter(request), request.cache_salt or ""
            self._requests[name] = Tracked(request, self._hashers.of(request), adapter, salt)
        return self._requests[name]

    def _between_steps(self, tiers: Sequence[int]) -> bool:
        names = {self.options.tier_names[tier] for tier in tiers}
        return self.options.between_steps(names, bool(self._running))

    def _save(
        self, tracked: Tracked, chunks: int, blocks_of: Callable[[str], Sequence[int]]
    ) -> None:
        ledger, lookup = self._ledger, self._lookup
        if ledger is None or lookup is None or chunks <= tracked.saved:
            return
        if tracked.mixed or (tracked.blend is not None and tracked.blend.used):
            return
        if self._hashers.adapter(tracked.request) != tracked.adapter:
            tracked.mixed = True  # loaded again from other files, while this request ran
            return
        if self._transfers.pending >= self._most_pending:
            self._count("saves_deferred", 1)
            return
        keys = tracked.upto(chunks * self._size)
        plan = ledger.admit(keys, tracked.used)
        if self.events is not None:
            self.events.saving(tracked, plan)
        plan = lookup.remembered(plan, keys)
        tracked.saved, tracked.used = chunks, max(tracked.used, chunks)
        if not plan.moves:
            return
        name = tracked.request.request_id
        number = self._transfers.number()
        self._transfers.save(number, name, plan)
        tracked.jobs.add(number)
        blocks = np.array(blocks_of(name), dtype=np.int32)
        self._meta.saves.append(Save(number, name, tracked.epoch, plan, blocks))

    def _encode(self, tracked: Tracked) -> None:
        if self.blending is None or self._ledger is None:
            return
        last = self._transfers.last
        for encode, plan in self.blending.encode(tracked, self._ledger, last + 1):
            number = self._transfers.number()
            self._transfers.save(number, encode.save.request, plan)
            tracked.jobs.add(number)
            self._meta.encodes.append(encode)

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
        for tier in loading.hit.tiers[: loading.chunks]:
            self._count(f"delivered_chunks:{self.options.tier_names[tier]}", 1)
        if loading.whole:
            self._savings.loaded(loading.end - loading.start, loading.start, loading.seconds)
            return
        self._count("failed_loads", 1)
        tracked = self._requests.get(loading.request)
        if tracked is not None:
            tracked.epoch += 1
            tracked.saved = 0

    def _saved(self, done: SaveDone) -> None:
        saved = self._transfers.saved(done)
        ledger = self._ledger
        assert ledger is not None
        for move, good in zip(saved.moves, saved.good, strict=True):
            ledger.settle([move], good)
        self._free(self._generations.ended(done.id, (move.key for move in saved.moves), ledger))
        failed = saved.good.count(False)
        if failed:
            self._count("failed_saves", failed)
            if self._ranks > 1:  # some rank may have it
                bad = zip(saved.moves, saved.good, strict=True)
                self._discard((move.key, move.target) for move, good in bad if not good)
        if saved.free:
            if self.blending is not None:
                self.blending.encoded(done.id)
            tracked = self._requests.get(saved.request)
            if tracked is not None:
                tracked.jobs.discard(done.id)

    def _discard(self, chunks: Iterable[tuple[bytes, int]]) -> None:
        self._free(Plan(tuple(Move(key, tier, NOWHERE, -1) for key, tier in chunks)))

    def _free(self, plan: Plan) -> None:
        if plan.moves:
            self._meta.plans.append(plan)

    def _count(self, name: str, amount: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + amount
