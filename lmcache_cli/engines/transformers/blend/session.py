"""One cell of ``--reuse blend`` over the transformers engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cache_core.blend.matcher import Piece
from cache_core.blend.selection import KV, Choice, Reused, make_selection
from cache_core.cache import TieredCache
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.transformers.blend.forward import blend
from lmcache_cli.engines.transformers.blend.prompt import BlendPrompt, Prompts, covered
from lmcache_cli.engines.transformers.blend.quality import judged
from lmcache_cli.engines.transformers.kv_buffer import KvBuffer, wait_for
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from lmcache_cli.engines.transformers.session import WAIT_S, Prefilled, TransformersSession
from lmcache_cli.errors import CellError
from reports.quality import Quality
from workloads.request import Request

_REHEARSED_QUESTION = 64


@dataclass(frozen=True, slots=True)
class _Held:
    """Pieces of a prompt that are in the static KV buffer; ``exact`` ones are never recomputed."""

    exact: list[Piece]
    moved: list[Piece]


class BlendSession(TransformersSession):
    """A session that serves requests over chunks that were encoded alone; what a request lacks is
    encoded and stored after its answer: in :meth:`settle`, or before the next request begins."""

    def __init__(self, engine: ModelRunner, spec: CacheSpec, cache: TieredCache) -> None:
        super().__init__(engine, spec, cache)
        self.runner = engine.layers()
        self.tiers = cache
        self.prompts = Prompts(engine.namespace(spec), _settings(spec).encoding, engine.bos)
        self.choose(spec)
        self._to_encode: tuple[BlendPrompt, list[Piece]] | None = None
        self._last: tuple[KvBuffer, torch.Tensor] | None = None
        self._rehearsed = self.runner.device.type == "cpu"

    def choose(self, spec: CacheSpec) -> None:
        """Takes ratio, selection, check layer and narrowing from ``spec`` for what comes; chunks
        that are stored serve them all. Raises ``CellError`` for a layer that the model lacks."""
        settings = _settings(spec)
        if not 0 <= settings.check_layer < len(self.runner.layers):
            raise CellError(
                f"--blend-check-layer: {settings.check_layer} is no layer of {self.engine.model},"
                f" which has {len(self.runner.layers)}, from 0 on"
            )
        choice = Choice(settings.ratio, settings.check_layer, settings.narrow_layers)
        self._naive = settings.selection == "none" or settings.ratio == 0
        self._chosen = "none" if self._naive else settings.selection, choice
        self.selection = make_selection(*self._chosen)
        self._full = settings.full_prefill

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
        kv = KV(buffer.tensor[:, 0].transpose(1, 2), buffer.tensor[:, 1].transpose(1, 2))
        prompt = Reused(tokens, (0, question), 0, ((0, question),), kv)
        selection = make_selection(*self._chosen)  # its own state is for the requests
        with torch.inference_mode():
            size = min(question, self.spec.chunk_tokens)
            self.runner.rope.rotate(buffer.tensor[:, 0, :, :size], 1, in_place=True)
            blend(self.runner, prompt, buffer.tensor, np.arange(question, n), selection)
        wait_for(self.runner.device)

    def settle(self) -> None:
        self._encode()
        super().settle()

    def clear(self) -> None:
        self._to_encode = None
        super().clear()

    def judge(self, request: Request) -> Quality:
        return judged(self.engine, self._last, request)

    def _before(self) -> None:
        self._encode()

    def _prefill(self, request: Request, buffer: KvBuffer) -> Prefilled:
        engine, now, layers = self.engine, self.engine.now, len(self.runner.layers)
        ids, n = request.token_ids, len(request.token_ids)
        began = now()
        prompt = self.prompts.of(request)
        matched = now()
        keys = [piece.key for piece in (*prompt.exact, *prompt.pieces)]
        # At ratio 1 nothing that could be loaded would be used: it is a full prefill.
        hit, rows = self.tiers.acquire_any([] if self._full else keys, WAIT_S)
        found = now()
        pieces = [(*prompt.exact, *prompt.pieces)[row] for row in rows]
        place = buffer.spans(self.tiers.layout, [(p.start, p.stop) for p in pieces], engine.threads)
        loaded = self.tiers.load(hit, place)
        held = _held(prompt, pieces[: loaded.chunks])
        turned = now()
        for piece in held.moved:
            k = buffer.tensor[:, 0, :, piece.start : piece.stop]
            self.runner.rope.rotate(k, prompt.shift(piece), in_place=True)
        wait_for(self.runner.device)
        ready = now()
        used = [*held.exact, *held.moved]
        cached = covered(used, n)
        fresh = np.flatnonzero(~cached)
        exact = covered(held.exact, n)
        selecting, recomputed = 0.0, 0
        only_tail = not cached[int(fresh[0]) :].any()
        if only_tail and (not held.moved or self._naive):
            logits = engine.forward(buffer, ids[fresh[0] :], int(fresh[0]))
            token_layers = len(fresh) * layers
        else:
            reused = Reused(
                self._tensor(ids),
                prompt.starts,
                int(np.flatnonzero(~exact)[0]),
                tuple((piece.start, piece.stop) for piece in held.moved),
                KV(buffer.tensor[:, 0].transpose(1, 2), buffer.tensor[:, 1].transpose(1, 2)),
            )
            done = blend(self.runner, reused, buffer.tensor, fresh, self.selection)
            logits, token_layers = done.logits, done.token_layers
            selecting, recomputed = done.selecting_s, done.recomputed
        by_tier: dict[str, int] = {}
        in_use = set(used)
        for piece, tier in zip(pieces[: loaded.chunks], hit.tiers, strict=False):
            if piece in in_use:
                name = self.tiers.tiers[tier].name
                by_tier[name] = by_tier.get(name, 0) + piece.stop - piece.start
        there = {piece.key for piece in pieces[: loaded.chunks]}
        lacking = {p.key: p for p in (*prompt.exact, *prompt.pieces) if p.key not in there}
        self._to_encode = (prompt, list(lacking.values())) if not self._full else None
        self.tiers.touch([p.key for p in pieces])
        self._last = (buffer, logits)
        return Prefilled(
            logits,
            loaded=replace(loaded, by_tier=by_tier),
            hit_tokens=by_tier,
            lookup_s=found - began,
            ready_s=ready,
            stored=0 if self._full else len(lacking) * self.tiers.layout.chunk_bytes,
            blended_tokens=sum(p.stop - p.start for p in held.moved),
            selected_tokens=recomputed,
            token_layer_share=token_layers / (n * layers),
            blend_s=(matched - began) + (ready - turned) + selecting,
        )

    def _after(self, request: Request, buffer: KvBuffer, served: Prefilled) -> None:
        """Stores nothing: what was blended is not what the keys mean."""

    @torch.inference_mode()
    def _encode(self) -> None:
        """Encodes what the last request lacked, all chunks in one forward, and stores it."""
        if self._to_encode is None:
            return
        prompt, missing = self._to_encode
        self._to_encode = None
        if not missing:
            return
        engine, lead = self.engine, len(prompt.lead)
        buffer = engine.kv_buffer()
        self._last = None
        if lead:
            self.runner.behind(self._tensor(prompt.lead), buffer.tensor, 0)
        leading = [p for p in missing if p in prompt.exact]
        alone = [p for p in missing if p not in prompt.exact]
        spans = [(p.start, p.stop) for p in leading]
        if alone:
            size = self.spec.chunk_tokens
            chunks = np.stack([prompt.ids[p.start : p.stop] for p in alone])
            self.runner.apart(self._tensor(chunks), buffer.tensor, lead)
            spans += [(lead + i * size, lead + (i + 1) * size) for i in range(len(alone))]
        keys = [p.key for p in (*leading, *alone)]
        buffer.pending = self.tiers.store(keys, buffer.spans(self.tiers.layout, spans, 1))
        prompt.matcher.stored(prompt.ids, alone)

    def _tensor(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> torch.Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.runner.device)


def _held(prompt: BlendPrompt, loaded: Sequence[Piece]) -> _Held:
    """Splits what was loaded into exact and moved pieces. Without all of the lead nothing is exact:
    its rest is computed."""
    there = set(loaded)
    lead = [p for p in prompt.exact if p in there]
    whole = len(lead) == len(prompt.exact)
    exact = list(lead) if whole else []
    moved: list[Piece] = []
    for piece in prompt.pieces:
        if piece in there:
            (exact if whole and prompt.in_place(piece) else moved).append(piece)
    return _Held(exact, moved)


def _settings(spec: CacheSpec) -> BlendSettings:
    if spec.blend is None:
        raise ValueError("a cache without settings of blend")
    return spec.blend
