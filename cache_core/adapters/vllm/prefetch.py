"""Moves chunks of requests that wait from slower tiers to DRAM, on both sides: what is worth it and
within its budget is decided on the scheduler's, and read on the worker's."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from cache_core.adapters.vllm.metadata import FetchSpec, LoadDone, SaveSpec
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.adapters.vllm.scheduler.transfer_state import Loading, TransferState
from cache_core.execute import fetch
from cache_core.io.timed_reads import Staged
from cache_core.layout import Addresses
from cache_core.ledger import Hit, Ledger
from cache_core.plan import Move, Plan
from cache_core.tiers.tier import Read
from cache_core.transfer.chunks import ChunkBuffers, FlatBuffers

logger = logging.getLogger("lmcache")

# What a worker reads at a time, and how often at once from each tier. It takes memory of its own
# until DRAM, where it has a place reserved, has it too: a step or two.
_BATCH_BYTES, _AT_ONCE = 32 << 20, 2
# Of each step: requests that are looked up, and that are considered.
_LOOKUPS, _CONSIDERED = 2, 8


@dataclass(slots=True)
class _Waiting:
    """A request that waits, and its chunks that are to be moved: None before it was looked up."""

    state: RequestState
    chunks: deque[tuple[bytes, int]] | None = None


class Prefetcher:
    """Decides which chunks of waiting requests move to the fastest tier, which is DRAM.

    ``ahead`` returns a request's hit, None while that is not known. Requests are served as they
    came. One that gets to run is served from where its chunks are then.
    """

    ledger: Ledger
    remembered: Callable[[Plan, Sequence[bytes]], Plan]

    def __init__(
        self,
        transfers: TransferState,
        ahead: Callable[[RequestState], Hit | None],
        tiers: Sequence[str],
        count: Callable[[str, float], None],
    ) -> None:
        self._transfers, self._ahead = transfers, ahead
        self._tiers, self._count = tuple(tiers), count
        self._most = self._batch = 0
        self._outdated = 0  # reads up to this number are of keys that are not asked for any more
        self._queue: dict[str, _Waiting] = {}
        self._under_way = [0] * len(tiers)
        self._owner: dict[bytes, str] = {}
        self._owned: dict[str, set[bytes]] = {}
        self._puts: dict[int, dict[bytes, int]] = {}

    def open(
        self,
        ledger: Ledger,
        remembered: Callable[[Plan, Sequence[bytes]], Plan],
        nbytes: int,
        chunk_bytes: int,
    ) -> None:
        """Begins: chunks of ``nbytes`` in all may be on their way, or there and not used yet, for
        requests that wait. ``remembered`` returns a plan without what only leaves our memory."""
        self.ledger, self.remembered = ledger, remembered
        if len(self._tiers) > 1:
            self._most, self._batch = nbytes // chunk_bytes, max(1, _BATCH_BYTES // chunk_bytes)

    @property
    def held(self) -> int:
        """Returns how many chunks are on their way, or there and not used yet."""
        return len(self._owner)

    def arrived(self, state: RequestState) -> None:
        """Takes in a request that waits from now on."""
        if self._most:
            self._queue[state.request.request_id] = _Waiting(state)

    def step(self) -> list[FetchSpec]:
        """Returns what workers shall begin to read now."""
        found: list[FetchSpec] = []
        lookups = 0
        if not self._queue or self._full:
            return found
        for request, waiting in list(islice(self._queue.items(), _CONSIDERED)):
            if waiting.chunks is None and waiting.state.hits is None:
                if lookups == _LOOKUPS or not self._look_up(waiting):
                    break
                lookups += 1
            if waiting.state.hits is not None or not waiting.chunks:
                del self._queue[request]
                continue
            while (spec := self._fetch(waiting)) is not None:
                found.append(spec)
            if len(self._owner) >= self._most:
                break
        return found

    def loaded(self, number: int, loading: Loading) -> SaveSpec:
        """Takes in that all ranks have read (or failed to) what a :class:`FetchSpec` named, and it
        is pinned no more. Returns where it goes: nowhere, if that is not wanted any more."""
        keys, tier = loading.hit.keys, loading.hit.tiers[0]
        self._under_way[tier] -= 1
        names = self._slower(keys[: loading.chunks]) if number > self._outdated else []
        plan = Plan(())
        if names:
            # It counts as used when its request uses it.
            plan = self.ledger.prepare_store(names, len(names))
            plan = self.remembered(plan, names)
        coming = {move.key for move in plan.moves if move.target == 0 and move.index >= 0}
        self._disown([key for key in keys if key not in coming])
        put = self._transfers.number()
        if coming:
            self._puts[put] = dict.fromkeys(coming, tier)
        self._transfers.save(put, "", plan, staged=True)
        wanted = set(names)
        rows = np.array([row for row, key in enumerate(keys) if key in wanted], dtype=np.int32)
        return SaveSpec(put, "", -1, plan, rows, staged=number)

    def saved(self, number: int, moves: Sequence[Move], good: Sequence[bool]) -> None:
        """Takes in that moves of a save have ended, which need not be of :meth:`loaded`."""
        put = self._puts.get(number, {})
        for move, ok in zip(moves, good, strict=True):
            tier = put.pop(move.key, -1) if move.target == 0 else -1
            if tier >= 0 and ok:
                self._count(f"prefetched_chunks:{self._tiers[tier]}", 1)
            elif tier >= 0:
                self._disown([move.key])
        if not put:
            self._puts.pop(number, None)

    def used(self, request: str, hit: Hit) -> None:
        """Takes in that a request gets to run, with this hit."""
        for key, tier in zip(hit.keys, hit.tiers, strict=True):
            if key in self._owner and tier == 0:
                self._disown([key], "used")
        self.ended(request)

    def ended(self, request: str) -> None:
        """Takes in that a request waits no more: what came for it and was not used is as any
        other chunk from now on."""
        self._queue.pop(request, None)
        self._disown(list(self._owned.get(request, ())), "unused")

    def renew(self) -> None:
        """Takes in that keys are others, or forgotten, from now on: requests that wait are looked
        up again, and what is being read goes nowhere."""
        self._outdated = self._transfers.last
        self._disown(list(self._owner), "unused")
        for waiting in self._queue.values():
            waiting.chunks = None

    @property
    def _full(self) -> bool:
        """Returns whether most of DRAM is reserved for what is on its way there: what came now
        would find no room."""
        capacity = self.ledger.capacities[0]
        return capacity is not None and 2 * self.ledger.arriving[0] > capacity

    def _look_up(self, waiting: _Waiting) -> bool:
        """Returns whether the request's hit is known, and keeps what of it is worth moving."""
        hit = self._ahead(waiting.state)
        if hit is not None:
            pairs = zip(hit.keys, hit.tiers, strict=True)
            waiting.chunks = deque((key, tier) for key, tier in pairs if tier > 0)
        return hit is not None

    def _fetch(self, waiting: _Waiting) -> FetchSpec | None:
        """Returns the next read for a request; None if there is none, or it has to wait."""
        request, chunks = waiting.state.request.request_id, waiting.chunks
        room = min(self._batch, self._most - len(self._owner))
        while chunks and room > 0 and self._under_way[chunks[0][1]] < _AT_ONCE:
            wanted: list[bytes] = []
            tier = chunks[0][1]
            while chunks and len(wanted) < room and chunks[0][1] == tier:
                wanted.append(chunks.popleft()[0])
            places = zip(wanted, self.ledger.where(wanted), strict=True)
            # Since the look-up a chunk may have left, come nearer, or gone on its way.
            keys = tuple(
                key
                for key, (here, coming) in places
                if here >> tier & 1 and not (here | coming) & 1 and key not in self._owner
            )
            if not keys:
                continue
            hit = Hit(keys, (tier,) * len(keys))
            self.ledger.pin(hit)
            self._under_way[tier] += 1
            self._owner |= dict.fromkeys(keys, request)
            self._owned.setdefault(request, set()).update(keys)
            number = self._transfers.number()
            self._transfers.load(number, hit, "", 0, 0)
            return FetchSpec(number, hit)
        return None

    def _slower(self, keys: Sequence[bytes]) -> list[bytes]:
        """Returns those of the keys that can be served, and not from DRAM, now or soon."""
        places = zip(keys, self.ledger.where(keys), strict=True)
        return [key for key, (here, coming) in places if here and not (here | coming) & 1]

    def _disown(self, keys: Iterable[bytes], result: str = "") -> None:
        for key in keys:
            request = self._owner.pop(key, None)
            if request is None:
                continue
            self._owned[request].discard(key)
            if not self._owned[request]:
                del self._owned[request]
            if result:
                self._count(f"prefetch_{result}_chunks", 1)


def cached_tokens(manager: Any, request: Any) -> int:
    """Returns how many tokens of a request the prefix cache of vLLM's ``manager`` has now, all if
    the request reads no cache, or if this vLLM can't be asked."""
    if getattr(request, "skip_reading_prefix_cache", False):
        return int(request.num_tokens)
    try:
        if not manager.prefix_cache_lookup_enabled(request):
            return 0
        find = manager.coordinator.find_longest_cache_hit
        return int(find(request.block_hashes, request.num_tokens - 1)[1])
    except Exception as error:  # noqa: BLE001 - vLLM's inner parts: no prefetch, never no engine
        _can_not_ask(f"{type(error).__name__}: {error}")
        return int(request.num_tokens)


@cache
def _can_not_ask(why: str) -> None:
    logger.warning("no chunk is moved ahead: vLLM's prefix cache can't be asked (%s)", why)


class StagedChunks:
    """The worker's memory for what a :class:`FetchSpec` reads, until a save takes it. ``read``
    reads chunks of a tier, ``clock`` is in seconds."""

    def __init__(
        self,
        read: Callable[[int, Sequence[bytes], ChunkBuffers | None], list[Read]],
        chunk_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._read, self._chunk_bytes, self._clock = read, chunk_bytes, clock
        self._there: dict[int, Staged] = {}

    def fetch(self, spec: FetchSpec) -> tuple[LoadDone, int]:
        """Reads what ``spec`` names. Returns the report, and how many bytes were read."""
        began, hit, done = self._clock(), spec.hit, 0
        gone: list[tuple[bytes, int]] = []
        asked: tuple[tuple[int, bool], ...] = ()
        try:
            memory = Staged(len(hit), self._chunk_bytes)
            for run in fetch(self._read, hit, memory.place(len(hit)), self._clock):
                done += run.usable
                gone += [(key, run.tier) for key in run.gone]
                asked = ((run.tier, run.later),)
            self._there[spec.id] = memory
        except Exception:  # a broken tier, or no memory: it costs the prefetch, never a request
            logger.exception("reading %d chunks ahead failed", len(hit))
            done = 0
        report = LoadDone(spec.id, done, tuple(gone), self._clock() - began, asked)
        return report, done * self._chunk_bytes

    def take(self, number: int, rows: Sequence[int]) -> ChunkBuffers | None:
        """Returns those of the chunks that were read, and gives up their memory; None if there are
        none. The memory lives as long as the buffers."""
        memory = self._there.pop(number, None)
        if memory is None or not len(rows):
            return None
        return _Kept(memory.addresses[list(rows)], self._chunk_bytes, memory)


class _Kept(FlatBuffers):
    """Buffers in memory that lives as long as they do."""

    def __init__(self, addresses: Addresses, chunk_bytes: int, memory: Staged) -> None:
        super().__init__(addresses, chunk_bytes)
        self._memory = memory
