"""Measures how good a fine-tune is over a base's KV, by the layers that are computed again: in
memory, without tiers.

DroidSpeak profiles a pair of models once like this (sections 3.2 and 4): which layers can't stand
the base's KV, and what a group of them gives back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmcache_cli.engines.transformers.blend.quality import (
    compared,
    forced_logits,
    reference_answers,
)
from lmcache_cli.engines.transformers.cross_model.forward import (
    Computed,
    CrossModelBase,
    prefill,
    prefill_over,
)
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from reports.quality import Quality
from workloads.request import Request

Groups = tuple[range, ...]


@dataclass(frozen=True, slots=True)
class LayerOutcome:
    """The outcome of one prompt over the base's KV. ``logits`` ``[vocabulary]`` are its last
    token's, ``share`` the part of its token-layers that was run to their end."""

    quality: Quality
    logits: Tensor
    share: float


class SharedPrompt:
    """One prompt, whose first ``shared`` tokens the base has prefilled. Keeps the KV of both
    models, and the base's hidden states at every layer, until it is dropped. ``work`` is the KV
    ``[layers, 2, kv_heads, tokens, d]`` of the last outcome."""

    def __init__(
        self, engine: ModelRunner, base: CrossModelBase, request: Request, shared: int
    ) -> None:
        self.engine, self.base, self.runner = engine, base, engine.layers()
        self.ids = torch.from_numpy(request.token_ids.astype(np.int64)).to(engine.loaded.device)
        self.shared = range(shared)
        engine.reserve(len(request.token_ids) + request.max_tokens)
        self.full = reference_answers(engine).answer(request)
        self.cold = engine.forward(engine.kv_buffer(), request.token_ids, 0).clone()
        like = engine.kv_buffer().tensor
        shape = (*like.shape[:3], len(self.ids) + request.max_tokens, like.shape[4])
        self._own, self._theirs, self.work = (
            torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(3)
        )
        width = int(engine.loaded.config.hidden_size)
        self.hidden = {
            layer: torch.empty(shared, width, dtype=like.dtype, device=like.device)
            for layer in range(len(self.runner.layers))
        }
        prefill(self.runner, self.ids, self._own, {})
        logits = prefill(base.runner, self.ids, self._theirs, self.hidden)
        self.base_quality = self._judged(base, logits, self._theirs)

    def over_base(self, groups: Groups) -> LayerOutcome:
        """Runs the fine-tune over the base's KV, with the layers of ``groups`` computed again."""
        self.work.copy_(self._theirs)
        return self._outcome(groups)

    def over_one_layer(self, layer: int) -> LayerOutcome:
        """Runs the fine-tune over its own KV, but one layer's, which is the base's."""
        self.work.copy_(self._own)
        self.work[layer].copy_(self._theirs[layer])
        return self._outcome(())

    def unread(self, groups: Groups) -> bool:
        """Returns whether KV that is computed again is never read: NaN instead of that KV, and of
        that only, leaves the answer the same."""
        self.work.copy_(self._theirs)
        wanted = self._computed(groups).logits
        self.work.copy_(self._theirs)
        for group in groups:
            self.work[group.start : group.stop, :, :, : self.shared.stop] = float("nan")
        return torch.equal(self._computed(groups).logits, wanted)

    def _computed(self, groups: Groups) -> Computed:
        return prefill_over(self.runner, self.ids, self.work, self.shared, groups, self.hidden)

    def _outcome(self, groups: Groups) -> LayerOutcome:
        done = self._computed(groups)
        forced = forced_logits(self.runner, done.logits, self.full.tokens, self.work, len(self.ids))
        share = done.token_layers / (len(self.ids) * len(self.runner.layers))
        return LayerOutcome(compared(self.full.logits, forced), done.logits, share)

    def _judged(self, base: CrossModelBase, first: Tensor, kv: Tensor) -> Quality:
        """Measures the quality of the base itself, instead of the fine-tune's."""
        return compared(
            self.full.logits,
            forced_logits(base.runner, first, self.full.tokens, kv, len(self.ids)),
        )


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """The profile of a pair of models on some prompts, all in the order of the prompts: quality and
    share of token-layers by set of layers, quality by single layer of the base's, and quality of
    the base itself. ``apart`` is the largest difference of logits between computing all and a full
    prefill; ``unread`` says that no set read KV which it computes, on the first prompt."""

    sets: Mapping[str, Sequence[Quality]]
    shares: Mapping[str, float]
    layers: Sequence[Sequence[Quality]]
    base: Sequence[Quality]
    apart: float
    unread: bool


def profile(
    engine: ModelRunner,
    base: CrossModelBase,
    requests: Sequence[tuple[Request, int]],
    sets: Mapping[str, Groups],
    layers: bool = True,
    on_prompt: Callable[[str], None] = lambda name: None,
) -> LayerProfile:
    """Profiles a pair of models on prompts with the number of their tokens that the base has
    prefilled. ``layers`` asks for single layers too, one forward of the rest of a prompt each.
    ``on_prompt`` is told each prompt's name when it is done."""
    count = len(engine.layers().layers)
    whole = (range(count),)
    by_set: dict[str, list[Quality]] = {name: [] for name in sets}
    shares: dict[str, list[float]] = {name: [] for name in sets}
    by_layer: list[list[Quality]] = [[] for _ in range(count if layers else 0)]
    of_base: list[Quality] = []
    apart, unread = 0.0, True
    for request, shared in requests:
        prompt = SharedPrompt(engine, base, request, shared)
        of_base.append(prompt.base_quality)
        apart = max(apart, float((prompt.over_base(whole).logits - prompt.cold).abs().max()))
        for name, groups in sets.items():
            done = prompt.over_base(groups)
            by_set[name].append(done.quality)
            shares[name].append(done.share)
            if len(of_base) == 1:
                unread = unread and prompt.unread(groups)
        for layer, found in enumerate(by_layer):
            found.append(prompt.over_one_layer(layer).quality)
        on_prompt(request.id)
    means = {name: float(np.mean(values)) for name, values in shares.items()}
    return LayerProfile(by_set, means, by_layer, of_base, apart, unread)
