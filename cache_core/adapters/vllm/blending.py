"""The scheduler's half of blend: which segments a request reuses, and which are encoded for later.

A blended request's KV is not what its tokens alone would give. So it must not be found by others:
it is not saved, and vLLM's own prefix cache knows it under a salt of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from cache_core.adapters.vllm.messages import Blend, Encode, Piece, Save
from cache_core.adapters.vllm.options import ConnectorOptions
from cache_core.adapters.vllm.segments import FIND, Segment, Segments, alone, settings_of
from cache_core.adapters.vllm.tracked import Tracked
from cache_core.ledger import Hit, Ledger, Plan

logger = logging.getLogger("vllm.lmcache")


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` .. ``stop`` of a prompt that are held as ``hit``, whose first chunk belongs
    at token ``first``; ``turn`` is how far K has to be turned."""

    start: int
    stop: int
    first: int
    hit: Hit
    turn: int


@dataclass(slots=True)
class Blended:
    """Of one request. ``used`` says that its KV is blended."""

    segments: list[Segment]
    ratio: float
    spans: list[Span] = field(default_factory=list)
    exact: int = 0
    used: bool = False


class Blending:
    """``bos`` (a token, or none) stands before each segment when it is encoded alone."""

    def __init__(self, options: ConnectorOptions, bos: Sequence[int], block_tokens: int) -> None:
        self._options, self._bos, self._block_tokens = options, list(bos), block_tokens
        self._size = options.chunk_tokens
        self._segments = Segments(options.chunk_tokens)
        self._pool: Any = None
        self._lent: dict[int, list[Any]] = {}

    def bind(self, pool: Any) -> None:
        """vLLM's block pool: encoding borrows blocks from it."""
        self._pool = pool

    def prepare(self, tracked: Tracked) -> None:
        """A request has come: finds its segments. Must be called before vLLM looks for it in its
        own prefix cache."""
        request = tracked.request
        given = settings_of(request)
        ratio = given.get("ratio", self._options.blend_ratio)
        if not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            logger.warning("lmcache.ratio is %r, not a number from 0 to 1: not blended", ratio)
            return
        if request.lora_request is not None or ratio == 1:
            return
        if request.mm_features or request.prompt_embeds is not None:
            return  # token ids don't say what placeholders stand for
        prompt = request.prompt_token_ids
        try:
            told = given.get("segments", FIND if self._options.blend_find else None)
            if told is None:
                return  # exact results, unless the client or the operator asks for others
            found = self._segments.of(prompt, told, alone(tracked.hasher))
        except ValueError as error:
            logger.warning("lmcache.%s: not blended", error)
            return
        if not found:
            return
        tracked.blend = Blended(found, float(ratio))
        # Hashes of its blocks are its own from here on: what is blended is never found by others.
        request.cache_salt = f"{request.cache_salt or ''} blended {uuid4().hex}"
        request.block_hashes.clear()
        request.update_block_hashes()

    def plan(self, tracked: Tracked, ledger: Ledger, exact: int) -> int | None:
        """Where the last held segment behind the ``exact`` first tokens ends; None without one."""
        blend = tracked.blend
        if blend is None:
            return None
        blend.spans, blend.exact = [], exact
        last = tracked.request.num_tokens - 1
        for segment in blend.segments:
            hit = ledger.lookup(segment.keys)
            stop = min(segment.start + len(hit) * self._size, last)
            start = max(segment.start, exact)
            if stop <= start:
                continue
            skip = (start - segment.start) // self._size
            part = Hit(hit.keys[skip:], hit.tiers[skip:])
            turn = segment.start - len(self._bos)
            blend.spans.append(Span(start, stop, segment.start + skip * self._size, part, turn))
        return blend.spans[-1].stop if blend.spans else None

    def message(self, tracked: Tracked) -> Blend:
        """What workers need for the latest plan. The request is blended from here on."""
        blend = tracked.blend
        assert blend is not None
        blend.used = True
        end = blend.spans[-1].stop
        fresh = np.ones(end, dtype=bool)
        fresh[: blend.exact] = False
        for span in blend.spans:
            fresh[span.start : span.stop] = self._chosen(span, blend.ratio)
        positions = np.flatnonzero(fresh).astype(np.int32)
        tokens = np.array(tracked.request.all_token_ids[:end], dtype=np.int32)[positions]
        pieces = tuple(
            Piece(span.hit, span.first, span.start, span.stop, span.turn) for span in blend.spans
        )
        return Blend(pieces, tokens, positions)

    def encode(self, tracked: Tracked, ledger: Ledger, next_id: int) -> list[tuple[Encode, Plan]]:
        """What is to be encoded alone now that the request has ended, and borrows the blocks.
        Ids count up from ``next_id``."""
        blend = tracked.blend
        request = tracked.request
        if blend is None or self._pool is None or request.status.name == "FINISHED_ABORTED":
            return []
        jobs: list[tuple[Encode, Plan]] = []
        for segment in blend.segments:
            keys = segment.keys
            if len(ledger.lookup(keys)) == len(keys) or ledger.pending(keys):
                continue
            text = request.prompt_token_ids[segment.start : segment.start + len(keys) * self._size]
            tokens = np.array([*self._bos, *text], dtype=np.int32)
            need = -(-len(tokens) // self._block_tokens)
            if self._pool.get_num_free_blocks() < 2 * need:
                continue
            plan = ledger.admit(keys)
            if not plan.moves:
                continue
            lent = self._pool.get_new_blocks(need)
            number = next_id + len(jobs)
            self._lent[number] = lent
            blocks = np.array([block.block_id for block in lent], dtype=np.int32)
            bos = len(self._bos)
            save = Save(number, request.request_id, tracked.epoch, plan, blocks, bos)
            jobs.append((Encode(save, tokens), plan))
        return jobs

    def encoded(self, number: int) -> None:
        """The job is done: gives its blocks back."""
        lent = self._lent.pop(number, None)
        if lent is not None:
            self._pool.free_blocks(lent)

    def _chosen(self, span: Span, ratio: float) -> NDArray[np.bool_]:
        """Which tokens of a span are computed anew: the first of each segment, which miss most of
        what stands before them (EPIC, Hu et al. 2024, section 4), or as many at random."""
        length = span.stop - span.start
        count = round(ratio * length)
        chosen = np.zeros(length, dtype=bool)
        if self._options.blend_selection == "random":
            rng = np.random.default_rng(length)
            chosen[rng.permutation(length)[:count]] = True
        else:
            chosen[:count] = True
        return chosen
