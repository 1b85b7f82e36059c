"""Finds what tiers can give a request now: the Ledger's hit, less what can't be promised. A tier
that other processes fill too is asked, without holding up the scheduler."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.adapters.vllm.scheduler.transfer_state import by_tier
from cache_core.ledger import Hit, Ledger, Plan
from cache_core.residency import FRESH_S, Residency
from cache_core.tiers import Tier
from cache_core.tiers.suspensions import Suspensions
from cache_core.tiers.tier import Read

if TYPE_CHECKING:  # it needs vLLM, and look-ups are tested without
    from cache_core.adapters.vllm.metadata import BlendSpec, BlockIds, LoadDone

logger = logging.getLogger("lmcache")

_PAUSE_S = 1.0
Tables = Sequence[Sequence[int]]
"""A request's blocks in vLLM from token 0 on, of each of its groups of layers; 0 where it has none
any more."""


@dataclass(frozen=True, slots=True)
class PlannedLoad:
    """A load of ``hit``, whose first chunk begins at token ``first``, to ``blocks`` (see
    :class:`~cache_core.adapters.vllm.metadata.LoadSpec`): ``split`` counts its tokens by tier,
    ``written`` are the blocks that it writes to."""

    hit: Hit
    first: int
    blocks: BlockIds
    split: dict[str, int]
    written: Sequence[int]


class RemoteLookup:
    """The open questions to a tier that other processes fill too, by request. ``tier`` is a
    connection of its own."""

    def __init__(self, tier: Tier, clock: Callable[[], float] = time.monotonic) -> None:
        self._tier, self._clock = tier, clock
        self._pool = ThreadPoolExecutor(2, "lmcache-ask")
        self._open: dict[str, tuple[Sequence[bytes], Future[list[Read]]]] = {}
        self._asked: dict[str, float] = {}
        self._unheard: set[str] = set()

    def plan(
        self,
        request: str,
        keys: Sequence[bytes],
        residency: Residency,
        run: bool = True,
        ahead: bool = False,
    ) -> Plan | None:
        """Asks what the tier has of the request's chunks, and adopts them: of a ``run`` those up to
        the first that nobody has. Returns what leaves the tier for them; None: not known yet. One
        round trip for what nobody here knows of, asked for once, and for what was not heard of for
        long; again if that is so once more, unless the tier did not answer. Asked ``ahead`` of its
        turn, a request that has waited for long since asks once more in its turn."""
        hit = residency.lookup(keys, run)
        rest = keys[len(hit) :]
        if not run:
            known = set(hit.keys)
            rest = [key for key in keys if key not in known]
        if request not in self._open:
            now = self._clock()
            lately = now - self._asked.get(request, -math.inf) < FRESH_S
            if not lately:
                self._unheard.discard(request)
            unsure = [] if request in self._unheard else residency.unsure(hit)
            if not ahead and lately:
                self._asked[request] = math.inf
            asked = unsure if lately else [*unsure, *rest]
            if not asked:
                return Plan(())
            self._asked[request] = now if ahead else math.inf
            self._open[request] = (asked, self._pool.submit(self._tier.read, asked, None))
        question, future = self._open[request]
        if not future.done():
            return None
        del self._open[request]
        try:
            answers = [Read(answer) for answer in future.result()]
        except Exception:  # a tier of a third party may raise: it costs hits, never a request
            logger.exception("asking for %d chunks failed", len(question))
            answers = [Read.LATER] * len(question)
        if Read.LATER in answers:
            self._unheard.add(request)
        register = residency.register_run if run else residency.register
        return register(rest, residency.heard(question, answers))

    def forget(self, request: str) -> None:
        """Forgets the questions of a request that has ended."""
        self._open.pop(request, None)
        self._asked.pop(request, None)
        self._unheard.discard(request)

    def forget_all(self) -> None:
        """Drops the open questions: no tier has anything under the keys that requests have now."""
        self._open.clear()

    def close(self) -> None:
        """Ends the questions and the connection."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tier.close()


class TierLookup:
    """Looks requests up in ``ledger``: leaves out tiers that could not be read lately, and what a
    remote tier was not heard of for long, which ``remote_lookup`` asks for; ``free`` is given what
    leaves the Ledger for what it answers. ``block_tokens`` is vLLM's."""

    def __init__(
        self,
        options: ConnectorOptions,
        ledger: Ledger,
        remote_lookup: RemoteLookup | None,
        block_tokens: int,
        free: Callable[[Plan], None],
        clock: Callable[[], float],
    ) -> None:
        self._options, self._ledger, self._remote_lookup = options, ledger, remote_lookup
        self._block_tokens, self._free, self._clock = block_tokens, free, clock
        self._suspensions = Suspensions(len(options.tier_names), _PAUSE_S, clock)
        self._residency: Residency | None = None
        if remote_lookup is not None:
            shared = options.tier_names.index("remote")
            self._residency = Residency(ledger, shared, clock=clock)

    def find(self, state: RequestState, computed: int) -> bool:
        """Looks for the request's chunks after those that ``computed`` tokens cover, which vLLM
        has: ``state.found`` is what can be loaded. A tier whose pause is over may be tried.
        Returns False while the request has to wait, for what continues its hit and is being stored
        or asked for right now, and has not waited for that for too long."""
        if self.awaits(state, computed):
            return False
        first = computed // state.hasher.chunk_tokens
        keys = state.keys[first:]
        known = self._asked(state, keys)
        hit = self._ledger.lookup(keys)
        # What is stored after a gap makes no prefix longer.
        rest = keys[len(hit) : len(hit) + 1]
        state.awaited = rest[0] if rest and self._ledger.pending(rest) else b""
        if self._has_to_wait(state, known):
            return False
        if self._residency is not None:
            hit = self._residency.sure(hit)
        state.found = self._suspensions.without(self._ledger, hit, self._out(state, hit))
        return True

    def ahead(self, state: RequestState, computed: int) -> Hit | None:
        """Returns what the request's hit would be now, of tiers that are not suspended; None while
        a remote is being asked. Changes nothing of the request."""
        keys, first = state.keys, computed // state.hasher.chunk_tokens
        if not self._asked(state, keys, ahead=True):
            return None
        return self._sound(self._ledger.lookup(keys[first:]))

    def held(self, state: RequestState) -> int:
        """Returns how many leading tokens of the request vLLM and the latest look-up have."""
        size = self._options.chunk_tokens
        # The last token is always computed: its logits are wanted.
        held = (state.computed // size + len(state.found)) * size
        return int(min(held, state.request.num_tokens - 1))

    def planned(
        self, state: RequestState, tables: Tables, end: int, last: int, blend: BlendSpec | None
    ) -> PlannedLoad:
        """Returns the load of the latest look-up's tokens up to ``end``, and of what ``blend``
        brings up to token ``last``."""
        start, size, hit = state.computed, self._options.chunk_tokens, state.found
        first, count = start // size, -(-end // size) - start // size
        wanted = Hit(hit.keys[:count], hit.tiers[:count])
        split = by_tier(self._options, wanted, start, end, first * size)
        if blend is not None:
            for piece in blend.pieces:
                found = by_tier(self._options, piece.hit, piece.start, piece.stop, piece.first)
                split = {n: split.get(n, 0) + found.get(n, 0) for n in split | found}
                keys, tiers = wanted.keys + piece.hit.keys, wanted.tiers + piece.hit.tiers
                wanted = Hit(keys, tiers)
        written = tables[0][start // self._block_tokens : -(-last // self._block_tokens)]
        blocks = np.array(tables[0], dtype=np.int32)
        return PlannedLoad(wanted, first * size, blocks, split, written)

    def split(self, state: RequestState, external: int) -> dict[str, int]:
        """Returns the latest look-up's first ``external`` tokens by tier."""
        start, size = state.computed, self._options.chunk_tokens
        return by_tier(self._options, state.found, start, start + external, start // size * size)

    def remembered(self, plan: Plan, keys: Sequence[bytes]) -> Plan:
        """Returns the plan of an admission of ``keys`` without what only leaves our memory: the
        remote tier keeps that."""
        if self._residency is None:
            return plan
        return self._residency.without_forgotten(plan, keys)

    def lost(self, key: bytes, tier: int) -> None:
        """Records that a tier could not give the chunk, and never will."""
        if self._residency is not None:
            self._residency.lost(key, tier)

    def suspended(self, done: LoadDone) -> list[int]:
        """Records a load that was carried out. Returns the tiers that are left out of look-ups for
        a while from now on."""
        return [tier for tier, later in done.asked if self._suspensions.saw(tier, later)]

    def awaits(self, state: RequestState, computed: int) -> bool:
        """Returns whether the request goes on waiting for the chunk that its latest look-up named,
        if ``computed`` is as it was then."""
        if computed != state.computed:
            state.computed, state.awaited = computed, b""
        waits = state.awaited and self._ledger.pending([state.awaited])
        return bool(waits) and self._may_wait(state)

    def _has_to_wait(self, state: RequestState, known: bool) -> bool:
        """Returns whether the request has to be asked for again: a chunk of its hit is on its way,
        or what a remote tier has is not ``known``."""
        if known and not state.awaited:
            state.waiting_since = None
            return False
        return self._may_wait(state)

    def _out(self, state: RequestState, hit: Hit) -> frozenset[int]:
        """Returns the tiers that the request's hit has to do without for now. One whose pause is
        over may be tried."""
        # Asked again, for want of blocks, say, a request keeps the try that it was given.
        suspended = self._suspensions.out(hit.tiers) - state.tried
        out = self._suspensions.out(set(hit.tiers) - state.tried, probe=True)
        state.tried |= suspended - out
        return out

    def _unsure(self, hit: Hit) -> set[bytes]:
        """Returns the hit's chunks that a remote was not heard of for long."""
        return set(self._residency.unsure(hit) if self._residency is not None else ())

    def _sound(self, hit: Hit) -> Hit:
        """Returns what of a hit can be promised without a try of a suspended tier."""
        if self._residency is not None:
            hit = self._residency.sure(hit)
        return self._suspensions.without(self._ledger, hit, self._suspensions.out(hit.tiers))

    def _may_wait(self, state: RequestState) -> bool:
        now = self._clock()
        if state.waiting_since is None:
            state.waiting_since = now
        return now - state.waiting_since < self._options.wait_s

    def _asked(
        self, state: RequestState, keys: Sequence[bytes], run: bool = True, ahead: bool = False
    ) -> bool:
        """Returns whether the remote's answer is in (or none is needed); adopts what it has, of a
        ``run`` no more than its head."""
        if self._remote_lookup is None or self._residency is None:
            return True
        name = state.request.request_id
        plan = self._remote_lookup.plan(name, keys, self._residency, run, ahead)
        if plan is not None:
            self._free(plan)
        return plan is not None
