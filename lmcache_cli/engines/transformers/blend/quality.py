"""Measures blend's quality: its next-token distributions against those of a full prefill."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmcache_cli.engines.transformers.blend.runner import LayerRunner
from lmcache_cli.engines.transformers.kv_buffer import KvBuffer
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from reports.quality import Quality
from workloads.request import Request

_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """A full prefill's greedy answer: tokens ``[m]`` and the logits ``[m, vocabulary]`` that gave
    them, float32."""

    tokens: Tensor
    logits: Tensor


class ReferenceAnswers:
    """Full-prefill answers of requests, computed once for all cells; up to 256 MiB are kept."""

    def __init__(self, engine: ModelRunner) -> None:
        self._engine, self._runner = engine, engine.layers()
        self._kept: OrderedDict[tuple[bytes, int], ReferenceAnswer] = OrderedDict()

    def answer(self, request: Request) -> ReferenceAnswer:
        """Returns what reuse off answers to the request. Uses a static KV buffer of the engine."""
        key = (request.token_ids.tobytes(), request.max_tokens)
        kept = self._kept.pop(key, None)
        self._kept[key] = kept if kept is not None else self._compute(request)
        while len(self._kept) > 1 and self._bytes() > _MOST_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _compute(self, request: Request) -> ReferenceAnswer:
        engine, n = self._engine, len(request.token_ids)
        buffer = engine.kv_buffer()
        first = engine.forward(buffer, request.token_ids, 0)
        tokens = [int(first.argmax())]
        while len(tokens) < request.max_tokens:
            step = np.array(tokens[-1:], dtype=np.int32)
            tokens.append(int(engine.forward(buffer, step, n + len(tokens) - 1).argmax()))
        answer = torch.tensor(tokens, device=first.device)
        return ReferenceAnswer(answer, forced_logits(self._runner, first, answer, buffer.tensor, n))

    def _bytes(self) -> int:
        return sum(answer.logits.nbytes for answer in self._kept.values())


def reference_answers(engine: ModelRunner) -> ReferenceAnswers:
    """Returns the answers of the model's full prefills, which cells share."""
    return engine.once("reference answers", lambda: ReferenceAnswers(engine))


@torch.inference_mode()
def forced_logits(
    runner: LayerRunner, first: Tensor, tokens: Tensor, kv: Tensor, past: int
) -> Tensor:
    """Returns the logits ``[m, vocabulary]``, float32, of an answer whose tokens ``[m]`` are given,
    after ``past`` rows of ``kv``; ``first`` are those of the first token. Writes KV after
    ``past``."""
    if len(tokens) == 1:
        return first[None].float()
    behind = runner.logits(runner.behind(tokens[:-1], kv, past))
    return torch.cat([first[None], behind]).float()


def compared(full: Tensor, other: Tensor) -> Quality:
    """Returns KL(full || other) in nats and top-1 agreement of logits ``[m, vocabulary]``, averaged
    over the m positions."""
    p, q = full.double().log_softmax(-1), other.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    same = (full.argmax(-1) == other.argmax(-1)).double()
    return Quality(float(kl.mean()), float(same.mean()), len(full))


def judged(engine: ModelRunner, last: tuple[KvBuffer, Tensor] | None, request: Request) -> Quality:
    """Measures the quality of the request that ``engine`` served last, outside of all numbers:
    ``last`` is its KV and its first logits. Raises ``RuntimeError`` if that is gone."""
    if last is None:
        raise RuntimeError("judge() comes right after its request was served")
    kv, first = last
    full = reference_answers(engine).answer(request)
    n = len(request.token_ids)
    forced = forced_logits(engine.layers(), first, full.tokens, kv.tensor, n)
    return compared(full.logits, forced)
