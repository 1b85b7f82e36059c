"""Rows chosen by how much they look out of their chunk; needs no profile.

Layers below `layer` run in full. There, q and k of all tokens are projected and each token's
attention to *other* chunks is summed (largest head; position 0 is left out, as a sink it takes what
heads have no use for). Tokens that look outside are those whose KV was wrong without it.

Source: cross-chunk attention as the reason to recompute is Cache-Craft's (Agarwal et al., arXiv
2502.15734), which takes it from stored attention of earlier requests; here it is of this request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.blend_rules.reference import KV, Reused


class AttentionGuided:
    """The selection: the share `ratio` of the reused tokens with the most attention outside their
    chunk in `layer`. One object serves one prompt at a time."""

    def __init__(self, layer: int, ratio: float) -> None:
        self.layer, self.ratio = layer, ratio
        self._prompt: Reused | None = None

    def begin(self, prompt: Reused) -> Tensor:
        """See `Selection`."""
        self._prompt = prompt
        return torch.arange(prompt.exact, prompt.question)

    def narrow(self, layer: int, rows: Tensor, q: Tensor, new: KV, old: KV) -> Tensor:
        """See `Selection`."""
        keep = torch.ones(len(rows), dtype=torch.bool)
        if layer == self.layer and self._prompt is not None:
            prompt = self._prompt
            k = prompt.kv.k[layer, : prompt.question].clone()
            k[rows] = new.k
            best = _outside(q, rows, k, prompt.starts).topk(round(self.ratio * len(rows))).indices
            keep[:] = False
            keep[best] = True
        return keep


def _outside(q: Tensor, rows: Tensor, k: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Largest over heads of the attention [rows] to other chunks, position 0 left out."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5
    at = torch.arange(len(k))
    scores = scores.masked_fill(at[None, :] > rows[:, None], float("-inf"))
    chunk = torch.bucketize(at, torch.tensor(starts), right=True)
    other = (chunk[rows][:, None] != chunk[None, :]) & (at > 0)
    outside: Tensor = (scores.softmax(dim=-1) * other).sum(dim=-1)
    return outside.amax(dim=0)
