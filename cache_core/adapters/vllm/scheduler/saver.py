"""Decides what of requests' KV is saved, and knows which of vLLM's blocks are still read for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from cache_core.adapters.vllm.blend.scheduler_side import BlendScheduler
from cache_core.adapters.vllm.identity import Hashers
from cache_core.adapters.vllm.metadata import NO_OFFER, Grown, SaveSpec, StepMeta
from cache_core.adapters.vllm.scheduler.lookup import TierLookup
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.adapters.vllm.scheduler.transfer_state import TransferState
from cache_core.ledger import Ledger, Move, Plan

logger = logging.getLogger("lmcache")

# A request's chunks are put in order again when so many have come since, and such a share.
_REORDER, _REORDER_SHARE = 64, 4


class Saver:
    """Admits what requests have computed to ``ledger``, each chunk once.

    vLLM frees blocks without waiting for what is being saved from them. So it is recorded here what
    they are (:meth:`reads`), and whoever writes to a block first waits for the saves that
    :meth:`before_writing` names. ``most_pending`` chunks may be on their way out of blocks at once;
    beyond that, saving waits. ``block_tokens`` is vLLM's.
    """

    def __init__(
        self,
        ledger: Ledger,
        lookup: TierLookup,
        hashers: Hashers,
        transfers: TransferState,
        block_tokens: int,
        most_pending: int,
        count: Callable[[str, float], None],
    ) -> None:
        self._ledger, self._lookup, self._hashers = ledger, lookup, hashers
        self._transfers, self._block_tokens = transfers, block_tokens
        self._most_pending, self._count = most_pending, count
        self.saving: Callable[[RequestState, Plan], None] = lambda state, plan: None
        """A function that is called with each plan and its request."""
        self.offer = NO_OFFER
        """What vLLM says of the step that is being scheduled."""
        self._reading: dict[int, tuple[int, ...]] = {}
        self._blocks: dict[int, Sequence[int]] = {}

    def due(self, state: RequestState, chunks: int) -> bool:
        """Returns whether :meth:`save` has something to do now that so many chunks are computed."""
        return chunks > state.saved

    def save(self, state: RequestState, chunks: int) -> SaveSpec | None:
        """Returns what is to be saved now that the request's first ``chunks`` chunks are, or are
        about to be, computed; None for nothing. It takes as much work as those that are new."""
        first = state.saved
        if chunks <= first or not self._ready(state, chunks):
            return None
        size = state.hasher.chunk_tokens
        keys = state.keys[first:chunks]
        parent = state.keys[first - 1] if first else None
        plan = self._ledger.prepare_store(keys, state.used, parent=parent, depth=first)
        self.saving(state, plan)
        plan = self._lookup.remembered(plan, keys)
        self._saved(state, chunks)
        if not plan.moves:
            return None
        number = self._transfers.number()
        self._transfers.save(number, state.request.request_id, plan)
        begin = first * size // self._block_tokens
        blocks = state.blocks[begin : -(-chunks * size // self._block_tokens)]
        self.reads(number, blocks)
        return SaveSpec(
            number,
            state.request.request_id,
            state.epoch,
            plan,
            np.array(blocks, dtype=np.int32),
            -begin * self._block_tokens,
        )

    def _saved(self, state: RequestState, chunks: int) -> None:
        """Records that the Ledger was given the request's first ``chunks`` chunks."""
        first, state.saved, state.used = state.saved, chunks, max(state.used, chunks)
        if not first:
            state.ordered = chunks
        elif chunks - state.ordered > max(_REORDER, state.ordered // _REORDER_SHARE):
            self.order(state)

    def _ready(self, state: RequestState, chunks: int) -> bool:
        """Returns whether the request's first ``chunks`` chunks may be saved; their keys are known
        then."""
        if state.mixed:
            return False
        if state.blend is not None and (state.blend.used or state.computed):
            return False  # what vLLM has under a salt of blend's may be blended
        if self._hashers.adapter(state.request) != state.adapter:
            state.mixed = True  # loaded again from other files, while this request ran
            return False
        if self._transfers.pending >= self._most_pending:
            self._count("saves_deferred", 1)
            return False
        try:
            state.hash_upto(chunks * state.hasher.chunk_tokens)
        except Exception:  # whatever its tokens are: it costs hits, never the engine
            logger.exception("request %s is not saved", state.request.request_id)
            state.mixed = True
            return False
        return True

    def order(self, state: RequestState) -> None:
        """Puts what was saved of a request in parts in the order of one use: the head of a prefix
        is to outlive its tail."""
        if state.saved > state.ordered and not state.mixed:
            self._ledger.touch(state.keys[: state.saved], state.saved)
            state.ordered = state.saved

    def failed(self, state: RequestState, moves: Iterable[Move]) -> None:
        """Has chunks of the request that no tier took saved again with what comes next, which
        nobody could reach without them."""
        lost = [m.index for m in moves if m.index >= 0 and m.key not in self._ledger]
        state.saved = min([state.saved, *lost])
        state.ordered = min(state.ordered, state.saved)

    def encode(self, state: RequestState, blend_scheduler: BlendScheduler, meta: StepMeta) -> None:
        """Adds to ``meta`` what is to be encoded now that the request has ended."""
        for encode, plan in blend_scheduler.encode(state, self._ledger, self._transfers.last + 1):
            self._transfers.save(self._transfers.number(), encode.save.request, plan)
            meta.after |= self.before_writing(encode.save.blocks.tolist())
            meta.encodes.append(encode)

    def reads(self, number: int, blocks: Sequence[int]) -> None:
        """Records that the save reads these blocks until :meth:`free`."""
        self._blocks[number] = blocks
        for block in blocks:
            self._reading[block] = (*self._reading.get(block, ()), number)

    def free(self, number: int) -> None:
        """Records that the save has read its blocks, on all ranks."""
        for block in self._blocks.pop(number, ()):
            left = tuple(other for other in self._reading[block] if other != number)
            if left:
                self._reading[block] = left
            else:
                del self._reading[block]

    def grown(self, grown: Iterable[Grown], requests: Mapping[str, RequestState]) -> set[int]:
        """Takes in that requests were given blocks. Returns the saves that have to be through with
        them before the step that writes to them."""
        after: set[int] = set()
        for name, tables, computed, anew in grown:
            blocks = tables[0]
            begin = computed // self._block_tokens if anew else 0
            after |= self.before_writing(blocks[begin:])
            state = requests.get(name)
            if state is not None and anew:
                state.blocks = list(blocks)
            elif state is not None:
                state.blocks += blocks
        return after

    def before_writing(self, blocks: Iterable[int]) -> set[int]:
        """Returns the saves that have to be through with these blocks before a write to them."""
        if not self._reading:
            return set()
        found = self._reading.keys() & blocks
        return {number for block in found for number in self._reading[block]}
