"""One cell of ``--reuse blend`` over the transformers engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch

from cache_core.blend.matcher import Piece
from cache_core.blend.selection import Contexts, chosen, deviation
from cache_core.cache import TieredCache
from cache_core.plan import StoreOutcome
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.transformers.blend.forward import blend
from lmcache_cli.engines.transformers.blend.prompt import BlendPrompt, Prompts, covered
from lmcache_cli.engines.transformers.blend.quality import forced_logits, judged
from lmcache_cli.engines.transformers.kv_buffer import KvBuffer, wait_for
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from lmcache_cli.engines.transformers.session import WAIT_S, Prefilled, TransformersSession
from reports.quality import Quality
from workloads.request import Request

logger = logging.getLogger("lmcache")
_REHEARSED_QUESTION = 64


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What is to be learnt from a request after its answer: the pieces that it had to compute, in
    ``context`` as long as that was lent ``lent`` times. Those in ``stored`` are in the tiers,
    alone. ``begins`` are those to keep where they stand, ``gone`` are keys that make room."""

    prompt: BlendPrompt
    computed: list[Piece]
    stored: frozenset[bytes]
    begins: Mapping[Piece, bytes]
    gone: Sequence[bytes]
    context: KvBuffer
    lent: int


class BlendSession(TransformersSession):
    """A session that serves requests over segments that were encoded alone. What a request lacks is
    encoded and stored after its answer, and what that deviates by from the request's own KV is
    remembered, and averaged with it: in :meth:`settle`, or before the next request begins."""

    def __init__(
        self, engine: ModelRunner, spec: CacheSpec, cache: TieredCache, bos: int | None
    ) -> None:
        super().__init__(engine, spec, cache)
        self.runner = engine.layers()
        self.tiers = cache
        encoding, room = _settings(spec).encoding, self.capacities()
        self.prompts = Prompts(engine.namespace(spec), encoding, bos, room)
        # Of a cache that starts with what was left there, the numbers are as old as the chunks.
        self._kept = spec.folder if spec.lasting and "disk" in spec.tiers else None
        if self._kept is not None:
            self.prompts.seen.load(self._kept)
        self.choose(spec)
        self._contexts = Contexts()
        self._lesson: _Lesson | None = None
        self._storing: Future[StoreOutcome] | None = None
        self._last: tuple[KvBuffer, torch.Tensor] | None = None
        self._rehearsed = self.runner.device.type == "cpu"

    def choose(self, spec: CacheSpec) -> None:
        """Takes the ratio from ``spec`` for what comes; chunks that are stored, and what they were
        seen to lack, serve all."""
        self._ratio = _settings(spec).ratio

    def ready(self) -> None:
        if not self._rehearsed:
            self._rehearsed = True
            self.rehearse()

    def rehearse(self) -> None:
        """Blends a prompt of no meaning, as long as a static KV buffer: a GPU loads a kernel when
        it first runs, for which the first request would pay. Leaves nothing but a buffer's
        contents."""
        buffer = self.engine.kv_buffer()
        n = buffer.capacity - 1
        question = max(1, n - _REHEARSED_QUESTION)
        tokens = torch.zeros(n, dtype=torch.int64, device=self.runner.device)
        some = np.random.default_rng(0).random(question, dtype=np.float32)
        rows = np.flatnonzero(np.append(chosen(some, self._ratio), np.ones(n - question, bool)))
        with torch.inference_mode():
            size = min(question, self.spec.chunk_tokens)
            self.runner.rope.rotate(buffer.tensor[:, 0, :, :size], 1, in_place=True)
            blend(self.runner, tokens, buffer.tensor, rows)
        wait_for(self.runner.device)

    def settle(self) -> None:
        self._learn()
        super().settle()

    def clear(self) -> None:
        self._lesson = None
        self.prompts.seen.clear()
        self.prompts.beginnings.clear()
        self._contexts.clear()
        super().clear()

    def close(self) -> None:
        self._learn()
        super().close()
        if self._kept is not None:
            try:
                self.prompts.seen.save(self._kept)
            except OSError as error:
                logger.warning("what blend has seen is not kept: %s", error)

    def forced(self, tokens: torch.Tensor, past: int) -> torch.Tensor:
        """Returns the logits ``[m, vocabulary]`` of given tokens ``[m]`` behind the ``past`` tokens
        of the request that was served last. Raises ``RuntimeError`` if its KV is gone."""
        if self._last is None:
            raise RuntimeError("forced() comes right after its request was served")
        kv, first = self._last
        return forced_logits(self.runner, first, tokens, kv.tensor, past)

    def judge(self, request: Request) -> Quality:
        return judged(self.engine, self._last, request)

    def _before(self) -> None:
        self._learn()

    def _prefill(self, request: Request, buffer: KvBuffer) -> Prefilled:
        engine, now, layers = self.engine, self.engine.now, len(self.runner.layers)
        ids, n = request.token_ids, len(request.token_ids)
        began = now()
        prompt = self.prompts.of(request)
        # At ratio 1 nothing that could be loaded would be used: it is a full prefill.
        reuse = self.prompts.usable(prompt, self._held, self._ratio)
        matched, usable = now(), list(reuse)
        hit, rows = self.tiers.acquire_any([way.key for way in reuse.values()], WAIT_S)
        found = now()
        pieces = [usable[row] for row in rows]
        place = buffer.spans(self.tiers.layout, [(p.start, p.stop) for p in pieces], engine.threads)
        loaded = self.tiers.load(hit, place)
        held = {piece: reuse[piece] for piece in pieces[: loaded.chunks]}
        turned = now()
        moved = [piece for piece, way in held.items() if way.moved]
        self._turn(buffer, prompt, moved)
        again = self._again(moved)
        wait_for(self.runner.device)
        ready = now()
        cached = covered(held, n)
        cached[again] = False
        at = np.flatnonzero(~cached)
        if not cached[at[0] :].any():
            logits = engine.forward(buffer, ids[at[0] :], int(at[0]))
        else:
            logits = blend(self.runner, self._tensor(ids), buffer.tensor, at)
        lacking = [p for p in prompt.pieces if p not in held] if self._ratio < 1 else []
        if self._ratio:  # plain reuse has no averages
            self.prompts.seen.begin_anew(piece.key for piece in lacking)
        known, _ = self.tiers.acquire_any([piece.key for piece in lacking])
        self.tiers.release(known)
        stored = frozenset(known.keys)
        self.tiers.touch([reuse[piece].key for piece in pieces])
        begins, gone = self.prompts.beginnings.keep(prompt, held, self._ratio)
        self._lesson = _Lesson(prompt, lacking, stored, begins, gone, buffer, buffer.lent)
        self._last = (buffer, logits)
        by_tier: dict[str, int] = {}
        for piece, tier in zip(held, hit.tiers, strict=False):
            name = self.tiers.tiers[tier].name
            by_tier[name] = by_tier.get(name, 0) + piece.stop - piece.start
        new = [piece for piece in lacking if piece.key not in stored]
        full = [p for p in lacking if self.prompts.seen.completes(p.key, prompt.worth(p))]
        return Prefilled(
            logits,
            loaded=replace(loaded, by_tier=by_tier),
            hit_tokens=by_tier,
            lookup_s=found - began,
            ready_s=ready,
            stored=(len(begins) + len(new) + len(full)) * self.tiers.layout.chunk_bytes,
            blended_tokens=sum(p.stop - p.start for p, way in held.items() if not way.exact),
            selected_tokens=len(again),
            token_layer_share=len(at) * layers / (n * layers),
            blend_s=(matched - began) + (ready - turned),
        )

    def _held(self, keys: Sequence[bytes]) -> frozenset[bytes]:
        hit, _ = self.tiers.acquire_any(keys, WAIT_S)
        self.tiers.release(hit)
        return frozenset(hit.keys)

    def _turn(self, buffer: KvBuffer, prompt: BlendPrompt, moved: Sequence[Piece]) -> None:
        """Turns the K of pieces to where they stand, those of a segment that follow one another at
        once."""
        for run in _runs(moved):
            k = buffer.tensor[:, 0, :, run[0].start : run[-1].stop]
            self.runner.rope.rotate(k, prompt.shift(run[0]), in_place=True)

    def _again(self, moved: Sequence[Piece]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns the positions in ``moved`` that are to be computed again, ascending."""
        if not moved or self._ratio == 0:
            return np.empty(0, dtype=np.int64)
        lacks = [self.prompts.seen.get(piece.key) for piece in moved]
        assert all(lack is not None for lack in lacks)
        mask = chosen(np.concatenate([lack for lack in lacks if lack is not None]), self._ratio)
        at = np.concatenate([np.arange(piece.start, piece.stop) for piece in moved])
        return np.asarray(at[mask], dtype=np.int64)

    def _after(self, request: Request, buffer: KvBuffer, served: Prefilled) -> None:
        """Stores nothing: what was blended is not what the keys mean."""

    @torch.inference_mode()
    def _learn(self) -> None:
        """Encodes the segments that the last request lacked alone, in one forward, stores them, and
        sees how far they are from what the request itself computed: of those that were seen often
        enough now, it stores the average."""
        lesson, self._lesson = self._lesson, None
        if lesson is None:
            return
        prompt, seen = lesson.prompt, lesson.context.lent == lesson.lent
        parts = [piece for piece in lesson.computed if not prompt.is_lead(piece)]
        buffer, alone = lesson.context, dict[Piece, int]()
        if lesson.computed:
            buffer = self.engine.kv_buffer(keep=lesson.context)
            self._last = None
            alone = self._encode(lesson, buffer)
            old = [piece for piece in parts if piece not in alone and not prompt.exact(piece)]
            # Before anything is stored, which may push it out.
            self._fetch(old if seen else [], alone, buffer)
        self.tiers.discard(lesson.gone)
        if seen:
            places = {piece: piece.start for piece in lesson.begins}
            self._store(lesson.context, lesson.begins, places)
        if not lesson.computed:
            return
        prompt.matcher.stored(prompt.ids, parts)
        new = [piece for piece in lesson.computed if piece.key not in lesson.stored]
        self._store(buffer, {piece: piece.key for piece in new}, alone)
        shown = [p for p in parts if seen and p in alone and not prompt.exact(p)]
        self._see(lesson, shown, alone, buffer)
        # Known behind the sightings: one may push out what another begins to learn.
        full = self.prompts.learnt(prompt, shown)
        if full and self._storing is not None:
            self._storing.result()
        for piece in full:
            own = buffer.tensor[..., alone[piece] : alone[piece] + piece.stop - piece.start, :]
            own.copy_(self._contexts.average(piece.key, own))
        self._store(buffer, {piece: prompt.average(piece) for piece in full}, alone)

    def _store(
        self, buffer: KvBuffer, keys: Mapping[Piece, bytes], at: Mapping[Piece, int]
    ) -> None:
        """Stores pieces, which begin ``at`` rows of the buffer, under their keys."""
        if keys:
            spans = [(at[piece], at[piece] + piece.stop - piece.start) for piece in keys]
            place = buffer.spans(self.tiers.layout, spans, 1)
            if self._storing is not None:
                # What is on its way makes no room: what does would depend on the clock.
                self._storing.result()
            self._storing = buffer.pending = self.tiers.store(list(keys.values()), place)

    def _encode(self, lesson: _Lesson, buffer: KvBuffer) -> dict[Piece, int]:
        """Encodes segments of which a piece is not stored alone into the buffer, each from its
        start to its last such piece. Returns where each piece that was computed begins there."""
        prompt = lesson.prompt
        lead, new = len(prompt.lead), [p for p in lesson.computed if p.key not in lesson.stored]
        if lead and new:
            self.runner.behind(self._tensor(prompt.lead), buffer.tensor, 0)
        alone = {piece: piece.start for piece in new if prompt.is_lead(piece)}
        parts = [piece for piece in lesson.computed if not prompt.is_lead(piece)]
        texts, end = [], lead
        for segment, group in groupby(parts, lambda piece: piece.segment):
            pieces = list(group)
            stop = max((p.stop for p in pieces if p.key not in lesson.stored), default=segment)
            if stop > segment:
                texts.append(self._tensor(prompt.ids[segment:stop]))
                alone |= {p: end + p.start - segment for p in pieces if p.stop <= stop}
                end += len(texts[-1])
        if texts:
            self.runner.apart(texts, buffer.tensor, lead)
        return alone

    def _fetch(self, old: Sequence[Piece], alone: dict[Piece, int], buffer: KvBuffer) -> None:
        """Brings pieces that are stored behind what ``alone`` has in the buffer, and adds them."""
        hit, rows = self.tiers.acquire_any([piece.key for piece in old])
        begin = max((at + piece.stop - piece.start for piece, at in alone.items()), default=0)
        spans = []
        for row in rows:
            spans.append((begin, begin + old[row].stop - old[row].start))
            begin = spans[-1][1]
        loaded = self.tiers.load(hit, buffer.spans(self.tiers.layout, spans, 1))
        for row, (at, _) in list(zip(rows, spans, strict=True))[: loaded.chunks]:
            alone[old[row]] = at

    def _see(
        self, lesson: _Lesson, parts: Sequence[Piece], alone: dict[Piece, int], buffer: KvBuffer
    ) -> None:
        """Remembers how far pieces that the request computed are from their segments alone, and
        what they are in its context."""
        for run in _runs(parts, alone):
            first, length = run[0], run[-1].stop - run[0].start
            context = lesson.context.tensor[..., first.start : first.start + length, :]
            own = buffer.tensor[..., alone[first] : alone[first] + length, :]
            k = self.runner.rope.rotate(own[:, 0], lesson.prompt.shift(first))
            lack = deviation(context[:, 0], context[:, 1], k, own[:, 1])
            turned = context.clone()
            self.runner.rope.rotate(turned[:, 0], -lesson.prompt.shift(first), in_place=True)
            for piece in run:
                begin, end = piece.start - first.start, piece.stop - first.start
                counts = lesson.prompt.worth(piece)
                gone = self.prompts.seen.add(piece.key, lack[begin:end], counts)
                self._contexts.add(piece.key, turned[..., begin:end, :], counts)
                self._contexts.forget(gone)

    def _tensor(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> torch.Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.runner.device)


def _runs(pieces: Sequence[Piece], places: Mapping[Piece, int] | None = None) -> list[list[Piece]]:
    """Cuts pieces, in order, into runs of a segment that follow one another, in ``places`` too."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        before = runs[-1][-1] if runs else None
        follows = before and before.stop == piece.start and before.segment == piece.segment
        if before and follows and places:
            follows = places[piece] - places[before] == piece.start - before.start
        if follows:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _settings(spec: CacheSpec) -> BlendSettings:
    if spec.blend is None:
        raise ValueError("a cache without settings of blend")
    return spec.blend
