"""Published and trivial selections for the reference, to compare with.

`Rows` is any choice made beforehand (all, none, the first of each chunk, random ones); `Deviation`
is CacheBlend's rule (Yao et al., arXiv 2405.16444) without its gradual narrowing; `first` is EPIC's
(Hu et al., arXiv 2410.15332).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.blend_rules.reference import KV, Reused


class Rows:
    """The rows that `choose` returns, from layer 0 to the last."""

    def __init__(self, choose: Callable[[Reused], Tensor]) -> None:
        self.choose = choose

    def begin(self, prompt: Reused) -> Tensor:
        """See `Selection`."""
        return self.choose(prompt)

    def narrow(self, layer: int, rows: Tensor, q: Tensor, new: KV, old: KV) -> Tensor:
        """See `Selection`: keeps all."""
        return torch.ones(len(rows), dtype=torch.bool)


class Deviation:
    """All rows below `layer`; from it on the share `ratio` whose KV deviates most there."""

    def __init__(self, layer: int, ratio: float) -> None:
        self.layer, self.ratio = layer, ratio

    def begin(self, prompt: Reused) -> Tensor:
        """See `Selection`."""
        return every(prompt)

    def narrow(self, layer: int, rows: Tensor, q: Tensor, new: KV, old: KV) -> Tensor:
        """See `Selection`."""
        keep = torch.ones(len(rows), dtype=torch.bool)
        if layer == self.layer:
            squares = (new.k - old.k).square() + (new.v - old.v).square()
            keep[:] = False
            keep[squares.flatten(1).sum(dim=1).topk(round(self.ratio * len(rows))).indices] = True
        return keep


def every(prompt: Reused) -> Tensor:
    """All rows below the question: a full prefill."""
    return torch.arange(prompt.question)


def nothing(prompt: Reused) -> Tensor:
    """No row: naive reuse."""
    return torch.arange(0)


def first(ratio: float) -> Callable[[Reused], Tensor]:
    """The first `ratio` of each chunk, at least one token."""

    def choose(prompt: Reused) -> Tensor:
        parts = pairwise(prompt.starts)
        return torch.cat([torch.arange(a, a + max(1, round(ratio * (b - a)))) for a, b in parts])

    return choose


def scattered(ratio: float, seed: int) -> Callable[[Reused], Tensor]:
    """A random `ratio` of all rows; each call draws on."""
    source = torch.Generator().manual_seed(seed)

    def choose(prompt: Reused) -> Tensor:
        drawn = torch.randperm(prompt.question, generator=source)
        return drawn[: round(ratio * prompt.question)].sort().values

    return choose
