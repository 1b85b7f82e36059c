"""Rows chosen before layer 0, by a deviation that was learnt offline.

A token's KV says what its chunk, encoded alone, knew about it, and so also what it missed: an
unresolved "they" looks different from a resolved one. A linear map from a token's reused KV (K
without its rotation, V) to how far the KV of one deep layer will be from a full prefill's is learnt
per model, from prompts that need no labels. It depends on the chunk alone, so a store may score a
chunk once, when it is written. At reuse the highest scores are run from layer 0 on, where their
inputs are exact embeddings: no layer runs in full, and work is the ratio.

Sources: KV deviation as the measure, and its persistence over layers, are CacheBlend's (Yao et al.,
arXiv 2405.16444), which must run layers in full to see it; that tokens to recompute can be fixed
before the request is EPIC's (Hu et al., arXiv 2410.15332), by place, and Cache-Craft's (Agarwal et
al., arXiv 2502.15734), by attention stored with the chunk. Learning it from the chunk's KV is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.blend_rules.reference import KV, Reused

# Turns K [n, kv heads, head dim] by positions [n]: `Reference.rotate`, or an engine's own.
Rotate = Callable[[Tensor, Tensor], Tensor]


def features(kv: KV, positions: Tensor, layers: Sequence[int], rotate: Rotate) -> Tensor:
    """What is read of each token, [n, features]: K with its rotation undone and V of `layers`.
    `kv` [all layers, n, ...] has K rotated for `positions` [n]."""
    parts: list[Tensor] = []
    for layer in layers:
        parts += [rotate(kv.k[layer], -positions).flatten(1), kv.v[layer].flatten(1)]
    return torch.cat(parts, dim=1)


def deviation(full: KV, reused: KV) -> Tensor:
    """Distance of each token's reused KV from a full prefill's, [layers, n]."""
    squares = (full.k - reused.k).square() + (full.v - reused.v).square()
    return squares.flatten(2).sum(dim=2).sqrt()


@dataclass(frozen=True, slots=True)
class Profile:
    """A linear map from features [n, f] to the deviation at layer `target`: `weights` [f], `bias`.
    `model` identifies the weights it was learnt for; `layers` are those it reads."""

    model: str
    layers: tuple[int, ...]
    target: int
    weights: Tensor
    bias: float

    def scores(self, kv: KV, positions: Tensor, rotate: Rotate) -> Tensor:
        """Expected deviation of each token [n], in the model's units of KV."""
        return features(kv, positions, self.layers, rotate) @ self.weights + self.bias

    def save(self, path: Path) -> None:
        """Writes an `.npz`, replacing what is there."""
        with path.open("wb") as file:
            np.savez(
                file,
                model=np.array(self.model),
                layers=np.array(self.layers),
                target=np.array(self.target),
                weights=self.weights.numpy(),
                bias=np.array(self.bias),
            )

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Reads what `save` wrote. Raises ``OSError``, or ``ValueError`` or ``KeyError`` for a file
        that is no profile."""
        with np.load(path, allow_pickle=False) as kept:
            return cls(
                str(kept["model"]),
                tuple(int(layer) for layer in kept["layers"]),
                int(kept["target"]),
                torch.from_numpy(kept["weights"]),
                float(kept["bias"]),
            )


class Calibration:
    """Sums for a ridge regression; takes any number of prompts in the memory of f x f items.

    `ridge` is the penalty per token in units of a standardised feature."""

    def __init__(self, model: str, layers: Sequence[int], ridge: float = 3e-4) -> None:
        self.model, self.layers, self.ridge = model, tuple(layers), ridge
        self.count = 0
        self._gram = self._sum = self._cross = self._mean = torch.zeros(())

    def add(self, prompt: Reused, full: KV, rotate: Rotate) -> None:
        """Learns from one prompt and its full prefill's KV (at least up to the question)."""
        part = slice(prompt.exact, prompt.question)
        old = KV(prompt.kv.k[:, part], prompt.kv.v[:, part])
        x = features(old, torch.arange(part.start, part.stop), self.layers, rotate).double()
        y = deviation(KV(full.k[:, part], full.v[:, part]), old).double()
        self._gram = self._gram + x.T @ x
        self._cross = self._cross + x.T @ y.T
        self._sum = self._sum + x.sum(dim=0)
        self._mean = self._mean + y.sum(dim=1)
        self.count += x.shape[0]

    def profiles(self) -> list[Profile]:
        """One for each layer as target. Layer 0's KV never deviates: that one scores nothing.

        Raises ``ValueError`` before the first prompt."""
        if not self.count:
            raise ValueError("a profile needs prompts: add some first")
        n = self.count
        mean, aim = self._sum / n, self._mean / n
        covariance = self._gram / n - torch.outer(mean, mean)
        scale = covariance.diagonal().clamp(min=1e-12).sqrt()
        left = covariance / torch.outer(scale, scale)
        left.diagonal().add_(self.ridge)
        right = (self._cross / n - torch.outer(mean, aim)) / scale[:, None]
        weights = torch.linalg.solve(left, right) / scale[:, None]
        bias = aim - mean @ weights
        return [
            Profile(self.model, self.layers, layer, weights[:, layer].float(), float(bias[layer]))
            for layer in range(weights.shape[1])
        ]


class Offline:
    """The selection: the share `ratio` of the reused tokens that a profile expects to deviate
    most, from layer 0 to the last; the exact prefix is never run."""

    def __init__(self, profile: Profile, ratio: float, rotate: Rotate) -> None:
        self.profile, self.ratio, self.rotate = profile, ratio, rotate

    def begin(self, prompt: Reused) -> Tensor:
        """See `Selection`."""
        part = slice(prompt.exact, prompt.question)
        kv = KV(prompt.kv.k[:, part], prompt.kv.v[:, part])
        scores = self.profile.scores(kv, torch.arange(part.start, part.stop), self.rotate)
        best = scores.topk(round(self.ratio * len(scores))).indices
        return best.sort().values + part.start

    def narrow(self, layer: int, rows: Tensor, q: Tensor, new: KV, old: KV) -> Tensor:
        """See `Selection`: keeps all."""
        return torch.ones(len(rows), dtype=torch.bool)
