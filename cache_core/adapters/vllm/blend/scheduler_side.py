"""Plans blend on the scheduler side: where parts of a prompt begin that may stand anywhere, which
of them a request reuses, and which are encoded for later.

A blended request's KV is not what its tokens alone would give. So it must not be found by others:
it is not saved, and vLLM's own prefix cache knows it under a salt of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.metadata import BlendPiece, BlendSpec, EncodeSpec, SaveSpec
from cache_core.adapters.vllm.scheduler.request_state import (
    BlendSegment,
    BlendSpan,
    BlendState,
    RequestState,
)
from cache_core.blend.matcher import RollingIndex
from cache_core.keys import ChunkHasher
from cache_core.ledger import Hit, Ledger, Plan

PARAMETER = "lmcache"


FIND = "find"
"""The value of ``segments`` that asks to look for known segments, where a list would name them."""


def alone(hasher: ChunkHasher) -> ChunkHasher:
    """Returns the hasher of chunks that were encoded without what stands before their segment:
    after a BOS, which is dropped. Within a segment, a chunk's key names all of the segment up to
    it."""
    extra = {**hasher.namespace.extra, "encoded": "alone behind bos"}
    return ChunkHasher(replace(hasher.namespace, extra=extra))


class Segments:
    """Finds the segments of prompts. Remembers the first chunk of each segment that a client named,
    and looks for those in prompts whose segments are not given."""

    def __init__(self, chunk_tokens: int) -> None:
        self._size = chunk_tokens
        self._known = RollingIndex(chunk_tokens)

    def of(self, prompt: Sequence[int], told: object, hasher: ChunkHasher) -> list[BlendSegment]:
        """Returns the segments of a prompt. ``told`` is what the client says: ``[[start, stop],
        ...]``, or :data:`FIND`. Raises ``ValueError`` for bounds that are not valid."""
        tokens = np.asarray(prompt, dtype=np.int32)
        searched = told == FIND
        bounds = self._search(tokens) if searched else _checked(told, len(tokens))
        found = []
        for start, stop in bounds:
            keys = hasher.keys(tokens[start:stop]).prefix
            if keys:
                found.append(BlendSegment(start, stop, tuple(keys)))
                if not searched:
                    first = tokens[start : start + self._size]
                    self._known.add(first, first.tobytes())
        return found

    def _search(self, tokens: NDArray[np.int32]) -> list[tuple[int, int]]:
        starts: list[int] = []
        candidates, hashes = self._known.candidates(tokens)
        for at, value in zip(candidates.tolist(), hashes.tolist(), strict=True):
            far = not starts or at >= starts[-1] + self._size
            if far and self._known.key(value) == tokens[at : at + self._size].tobytes():
                starts.append(at)
        return list(zip(starts, [*starts[1:], len(tokens)], strict=True)) if starts else []


def settings_of(request: Any) -> Mapping[str, Any]:
    """Returns what the client set under ``kv_transfer_params`` for this connector; empty if
    nothing."""
    given = request.kv_transfer_params
    ours = given.get(PARAMETER) if isinstance(given, Mapping) else None
    return ours if isinstance(ours, Mapping) else {}


def _checked(told: object, length: int) -> list[tuple[int, int]]:
    if not isinstance(told, list | tuple):
        raise ValueError(f"segments are {told!r}; they must be [[start, stop], ...]")
    bounds: list[tuple[int, int]] = []
    for pair in told:
        whole = isinstance(pair, list | tuple) and len(pair) == 2
        if not whole or not all(type(n) is int for n in pair):
            raise ValueError(f"a segment is {pair!r}; it must be [start, stop]")
        start, stop = pair
        if not (bounds[-1][1] if bounds else 0) <= start <= stop <= length:
            raise ValueError(
                f"segment [{start}, {stop}] lies outside the prompt of {length} tokens, or"
                " overlaps the one before"
            )
        bounds.append((start, stop))
    return bounds


logger = logging.getLogger("vllm.lmcache")


class BlendScheduler:
    """Finds, plans and encodes segments. ``bos`` (a token, or none) stands before each segment when
    it is encoded alone."""

    def __init__(self, options: ConnectorOptions, bos: Sequence[int], block_tokens: int) -> None:
        self._options, self._bos, self._block_tokens = options, list(bos), block_tokens
        self._size = options.chunk_tokens
        self._segments = Segments(options.chunk_tokens)
        self._pool: Any = None
        self._lent: dict[int, list[Any]] = {}

    def bind(self, pool: Any) -> None:
        """Sets vLLM's block pool, from which encoding borrows blocks."""
        self._pool = pool

    def prepare(self, state: RequestState) -> None:
        """Finds the segments of a request that has come. Must be called before vLLM looks for the
        request in its own prefix cache."""
        request = state.request
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
            found = self._segments.of(prompt, told, alone(state.hasher))
        except ValueError as error:
            logger.warning("lmcache.%s: not blended", error)
            return
        if not found:
            return
        state.blend = BlendState(found, float(ratio))
        # Hashes of its blocks are its own from here on: what is blended is never found by others.
        request.cache_salt = f"{request.cache_salt or ''} blended {uuid4().hex}"
        request.block_hashes.clear()
        request.update_block_hashes()

    def plan(self, state: RequestState, ledger: Ledger, exact: int) -> int | None:
        """Plans the reuse of held segments after the ``exact`` first tokens. Returns where the last
        one ends; None without one."""
        blend = state.blend
        if blend is None:
            return None
        blend.spans, blend.exact = [], exact
        last = state.request.num_tokens - 1
        for segment in blend.segments:
            hit = ledger.lookup(segment.keys)
            stop = min(segment.start + len(hit) * self._size, last)
            start = max(segment.start, exact)
            if stop <= start:
                continue
            skip = (start - segment.start) // self._size
            part = Hit(hit.keys[skip:], hit.tiers[skip:])
            shift = segment.start - len(self._bos)
            blend.spans.append(
                BlendSpan(start, stop, segment.start + skip * self._size, part, shift)
            )
        return blend.spans[-1].stop if blend.spans else None

    def message(self, state: RequestState) -> BlendSpec:
        """Returns what workers need for the latest plan. The request is blended from here on."""
        blend = state.blend
        assert blend is not None
        blend.used = True
        end = blend.spans[-1].stop
        fresh = np.ones(end, dtype=bool)
        fresh[: blend.exact] = False
        for span in blend.spans:
            fresh[span.start : span.stop] = self._chosen(span, blend.ratio)
        positions = np.flatnonzero(fresh).astype(np.int32)
        tokens = np.array(state.request.all_token_ids[:end], dtype=np.int32)[positions]
        pieces = tuple(
            BlendPiece(span.hit, span.first, span.start, span.stop, span.shift)
            for span in blend.spans
        )
        return BlendSpec(pieces, tokens, positions)

    def encode(
        self, state: RequestState, ledger: Ledger, next_id: int
    ) -> list[tuple[EncodeSpec, Plan]]:
        """Returns what is to be encoded alone now that the request has ended, and borrows the
        blocks for it. Ids count up from ``next_id``."""
        blend = state.blend
        request = state.request
        if blend is None or self._pool is None or request.status.name == "FINISHED_ABORTED":
            return []
        jobs: list[tuple[EncodeSpec, Plan]] = []
        for segment in blend.segments:
            keys = segment.keys
            if len(ledger.lookup(keys)) == len(keys) or ledger.pending(keys):
                continue
            text = request.prompt_token_ids[segment.start : segment.start + len(keys) * self._size]
            tokens = np.array([*self._bos, *text], dtype=np.int32)
            need = -(-len(tokens) // self._block_tokens)
            if self._pool.get_num_free_blocks() < 2 * need:
                continue
            plan = ledger.prepare_store(keys)
            if not plan.moves:
                continue
            lent = self._pool.get_new_blocks(need)
            number = next_id + len(jobs)
            self._lent[number] = lent
            blocks = np.array([block.block_id for block in lent], dtype=np.int32)
            bos = len(self._bos)
            save = SaveSpec(number, request.request_id, state.epoch, plan, blocks, bos)
            jobs.append((EncodeSpec(save, tokens), plan))
        return jobs

    def encoded(self, number: int) -> None:
        """Gives back the blocks of an encoding that is done."""
        lent = self._lent.pop(number, None)
        if lent is not None:
            self._pool.free_blocks(lent)

    def _chosen(self, span: BlendSpan, ratio: float) -> NDArray[np.bool_]:
        """Returns which tokens of a span are computed anew: the first of each segment, which miss
        most of what stands before them (EPIC, Hu et al. 2024, section 4), or as many at random."""
        length = span.stop - span.start
        count = round(ratio * length)
        chosen = np.zeros(length, dtype=bool)
        if self._options.blend_selection == "random":
            rng = np.random.default_rng(length)
            chosen[rng.permutation(length)[:count]] = True
        else:
            chosen[:count] = True
        return chosen
