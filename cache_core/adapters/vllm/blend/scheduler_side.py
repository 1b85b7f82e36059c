"""Plans blend on the scheduler side: where parts of a prompt begin that may stand anywhere, which
of them a request reuses, and which are encoded for later.

A blended request's KV is not what its tokens alone would give. So it is not saved, and vLLM's own
prefix cache knows it under a salt of its own: requests find it there that are blended as much.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.metadata import (
    BlendPiece,
    BlendSpec,
    EncodeSpec,
    SaveSpec,
    SeenDone,
)
from cache_core.adapters.vllm.scheduler.request_state import (
    BlendSegment,
    BlendSpan,
    BlendState,
    RequestState,
)
from cache_core.blend.matcher import RollingIndex, average_key, segment_keys
from cache_core.blend.seen import SeenTable, learning_tokens, sighting_worth
from cache_core.blend.selection import chosen
from cache_core.keys import ChunkHasher
from cache_core.ledger import Hit, Ledger, Plan

PARAMETER = "lmcache"


FIND = "find"
"""The value of ``segments`` that asks to look for known segments, where a list would name them."""


def alone(hasher: ChunkHasher, bos: Sequence[int]) -> ChunkHasher:
    """Returns the hasher of chunks that were encoded without what stands before their segment:
    after ``bos`` (a token, or none), which is dropped. Within a segment, a chunk's key names all of
    the segment up to it."""
    extra = {**hasher.namespace.extra, "encoded": f"alone behind {list(bos)}"}
    return ChunkHasher(replace(hasher.namespace, extra=extra))


class Segments:
    """Finds the segments of prompts. Remembers the first chunk of each segment that a client named,
    and looks for those in prompts whose segments are not given."""

    def __init__(self, chunk_tokens: int) -> None:
        self._size = chunk_tokens
        self._known = RollingIndex(chunk_tokens)

    def of(
        self, prompt: Sequence[int], told: object, chunks: ChunkHasher, bos: Sequence[int] = ()
    ) -> list[BlendSegment]:
        """Returns the segments of a prompt, keyed for an encoding behind ``bos``, by the hasher of
        what is not encoded alone. ``told`` is what the client says: ``[[start, stop], ...]``, or
        :data:`FIND`. A BOS right before the first is a segment too: with it nothing before a
        question is left to compute. Raises ``ValueError`` for bounds that are not valid."""
        tokens, hasher = np.asarray(prompt, dtype=np.int32), alone(chunks, bos)
        searched = told == FIND
        bounds = self._search(tokens) if searched else _checked(told, len(tokens))
        found = []
        for start, stop in bounds:
            keys = segment_keys(tokens[start:stop], hasher)
            if keys:
                averages = tuple(average_key(key, hasher) for key in keys)
                found.append(BlendSegment(start, stop, tuple(keys), averages, tuple(bos)))
                if not searched and stop - start >= self._size:
                    first = tokens[start : start + self._size]
                    self._known.add(first, first.tobytes())
        if bos and found and found[0].start == len(bos) and list(prompt[: len(bos)]) == list(bos):
            keys = segment_keys(tokens[: len(bos)], alone(chunks, ()))
            found.insert(0, BlendSegment(0, len(bos), tuple(keys)))
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
Lack = NDArray[np.float32]
# What ended in another way may have blocks that nothing was written to.
_COMPUTED = ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED", "FINISHED_REPETITION")


class _Look(NamedTuple):
    """Chunks that ranks are asked to see, what that counts, and what some have seen."""

    keys: tuple[bytes, ...]
    counts: float
    lacks: list[tuple[Lack, ...]]


class BlendScheduler:
    """Finds, plans and encodes segments. ``bos`` (a token, or none) stands before each segment when
    it is encoded alone. ``cpu_tokens`` is what the cpu tier holds."""

    def __init__(
        self,
        options: ConnectorOptions,
        bos: Sequence[int],
        block_tokens: int,
        ranks: int = 1,
        cpu_tokens: int = 0,
    ) -> None:
        self._options, self._bos, self._block_tokens = options, list(bos), block_tokens
        self._size, self._ranks = options.chunk_tokens, ranks
        self._segments = Segments(options.chunk_tokens)
        self._pool: Any = None
        self._lent: dict[int, list[Any]] = {}
        self._looks: dict[int, _Look] = {}
        self.seen = SeenTable(learning=learning_tokens(cpu_tokens))
        self._gone: list[bytes] = []
        if options.disk_size:
            self.seen.load(options.folder)

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
            found = self._segments.of(prompt, told, state.hasher, self._bos)
        except ValueError as error:
            logger.warning("lmcache.%s: not blended", error)
            return
        if not found:
            return
        state.blend = BlendState(found, float(ratio))
        # What is blended is found by requests alone that are blended as much, and by no other.
        request.cache_salt = f"{request.cache_salt or ''} blended {float(ratio):g}"
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
            hit, lacks = Hit((), ()), list[Lack]()
            if self._as_alone(state, segment):
                hit = ledger.lookup(segment.keys)
            if blend.ratio and len(hit) < len(segment.keys):
                average = ledger.lookup(segment.averages)
                known = self._lacks(segment.keys[: len(average)])
                if len(known) > len(hit):
                    lacks = known
                    hit = Hit(average.keys[: len(known)], average.tiers[: len(known)])
            stop = min(segment.start + len(hit) * self._size, segment.stop, last)
            start = max(segment.start, exact)
            if stop <= start:
                continue
            skip = (start - segment.start) // self._size
            part = Hit(hit.keys[skip:], hit.tiers[skip:])
            first, shift = segment.start + skip * self._size, segment.start - len(segment.bos)
            lack = None
            if lacks:
                lack = np.concatenate(lacks)[start - segment.start : stop - segment.start]
            blend.spans.append(BlendSpan(start, stop, first, part, shift, lack))
        if blend.spans and blend.spans[-1].stop <= len(self._bos):
            blend.spans = []  # a BOS alone is not worth a load, nor that the prompt is not saved
        return blend.spans[-1].stop if blend.spans else None

    def message(self, state: RequestState, ledger: Ledger) -> BlendSpec:
        """Returns what workers need for the latest plan, whose chunks count as used. The request
        is blended from here on."""
        blend = state.blend
        assert blend is not None
        blend.used = True
        for span in blend.spans:
            ledger.touch(span.hit.keys)
        end = blend.spans[-1].stop
        fresh = np.ones(end, dtype=bool)
        fresh[: blend.exact] = False
        for span in blend.spans:
            fresh[span.start : span.stop] = False
        moved = [span for span in blend.spans if span.lack is not None]
        if moved:
            at = np.concatenate([np.arange(span.start, span.stop) for span in moved])
            lack = np.concatenate([span.lack for span in moved if span.lack is not None])
            fresh[at] = chosen(lack, blend.ratio)
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
        """Returns what is to be encoded alone now that the request has ended: what is not stored,
        and what it computed in a context. What was seen often enough then is saved as an average.
        Borrows the blocks for it, and keeps those of the request. Ids count up from
        ``next_id``."""
        blend, request = state.blend, state.request
        if blend is None or self._pool is None or request.status.name not in _COMPUTED:
            return []
        if state.mixed:
            return []  # contexts of other weights are not to be averaged in
        jobs: list[tuple[EncodeSpec, Plan]] = []
        for segment in blend.segments:
            keys = segment.keys
            rows = self._to_see(state, segment)
            # What is reused elsewhere, as an average, does not need what it is alone.
            stored = len(ledger.lookup(keys)) == len(keys) or not self._as_alone(state, segment)
            if (stored and not rows) or ledger.pending((*keys, *segment.averages)):
                continue
            bos = len(segment.bos)
            need = -(-(bos + len(keys) * self._size) // self._block_tokens)
            if self._pool.get_num_free_blocks() < 2 * need:
                continue
            length = segment.stop - segment.start
            counts = sighting_worth(segment.start - bos, length)
            self.seen.begin_anew(keys[row] for row in rows)
            full = bool(rows) and all(
                row not in rows or self.seen.completes(key, counts) for row, key in enumerate(keys)
            )
            # Of chunks that stand before those, it has no average.
            first = rows[0] if full else 0
            plan = ledger.prepare_store(segment.averages[first:] if full else keys)
            if not plan.moves and not rows:
                continue
            lent = self._pool.get_new_blocks(need)
            kept = [self._pool.blocks[number] for number in state.blocks] if rows else []
            self._pool.touch(kept)
            number = next_id + len(jobs)
            self._lent[number] = [*lent, *kept]
            seen = tuple(keys[row] for row in rows)
            # An average that is saved has all contexts, whatever is pushed out meanwhile.
            counted = max(counts, self.seen.least) if full else counts
            self._looks[number] = _Look(seen, counted, [])
            text = request.prompt_token_ids[segment.start : segment.stop]
            blocks = np.array([block.block_id for block in lent], dtype=np.int32)
            offset = bos + first * self._size
            save = SaveSpec(number, request.request_id, state.epoch, plan, blocks, offset)
            tokens = np.array([*segment.bos, *text], dtype=np.int32)
            context = np.array(state.blocks if rows else [], dtype=np.int32)
            gone, self._gone = tuple(self._gone), []
            look = (segment.start, length, rows, seen, counts, full, gone)
            jobs.append((EncodeSpec(save, tokens, context, *look), plan))
        return jobs

    def saw(self, reports: Iterable[SeenDone]) -> None:
        """Takes in what ranks saw. A token's number is the largest of all ranks', each of which has
        heads of its own."""
        for done in reports:
            look = self._looks[done.id]
            look.lacks.append(done.lacks)
            if len(look.lacks) == self._ranks:
                del self._looks[done.id]
                gone: list[bytes] = []
                for row, key in enumerate(look.keys):
                    lack = np.maximum.reduce([lacks[row] for lacks in look.lacks])
                    gone += self.seen.add(key, lack, look.counts)
                # What a worker is seeing again right now is better kept, and so is what the first
                # chunks of a passage pushed out of the rest of it: that is being learnt again.
                seeing = {key for other in self._looks.values() for key in other.keys}
                self._gone += [k for k in gone if k not in seeing and k not in self.seen]

    def close(self) -> None:
        """Keeps what was seen for chunks that outlive the process."""
        if self._options.disk_size:
            try:
                self.seen.save(self._options.folder)
            except OSError as error:
                logger.warning("what blend has seen is not kept: %s", error)

    def encoded(self, number: int) -> None:
        """Gives back the blocks of an encoding that is done."""
        lent = self._lent.pop(number, None)
        if lent is not None:
            self._pool.free_blocks(lent)

    def _lacks(self, keys: Sequence[bytes]) -> list[Lack]:
        """Returns what leading chunks were seen to lack, up to the first that is not known."""
        found: list[Lack] = []
        for key in keys:
            lack = self.seen.get(key)
            if lack is None:
                break
            found.append(lack)
        return found

    def _as_alone(self, state: RequestState, segment: BlendSegment) -> bool:
        """Returns whether a segment is reused as it is alone: everywhere if nothing is computed
        again, else where it is encoded, since there it is exact."""
        assert state.blend is not None
        start = len(segment.bos)
        before = tuple(state.request.prompt_token_ids[:start])
        return not state.blend.ratio or (segment.start == start and before == segment.bos)

    def _to_see(self, state: RequestState, segment: BlendSegment) -> tuple[int, ...]:
        """Returns which of the segment's chunks the request computed in a context."""
        blend = state.blend
        assert blend is not None
        if self._as_alone(state, segment):
            return ()
        rows = []
        for row in range(len(segment.keys)):
            start = segment.start + row * self._size
            reused = start < blend.exact or any(s.start <= start < s.stop for s in blend.spans)
            if not reused:
                rows.append(row)
        return tuple(rows)
