"""Selects the reused tokens to compute again, by what they were seen to lack. torch is imported
with this file only.

A request that computes a passage in full has both of its KVs: in context, and, once it is encoded,
alone. How far they lie apart at each token says how much that token takes from what stands before
its passage. That is one number per token (:func:`deviation`), kept by
:class:`~cache_core.blend.seen.SeenTable`; the tokens with the largest are computed again where the
passage is reused (:func:`chosen`). They are known before layer 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Deviations = NDArray[np.float32]


def deviation(k: Tensor, v: Tensor, alone_k: Tensor, alone_v: Tensor) -> Deviations:
    """Returns how far each token's KV in context lies from that of its passage alone, ``[tokens]``.

    All are ``[layers, kv_heads, tokens, head_dim]``, K turned to the same positions. Of each layer,
    the distances of K and V, each in units of its own mean square in context, count alike; a
    token's number is its layer's largest.
    """
    found = torch.zeros(k.shape[2], device=k.device)
    for layer in range(len(k)):
        both = _apart(k[layer], alone_k[layer]) + _apart(v[layer], alone_v[layer])
        found = torch.maximum(found, both)
    return np.asarray(found.cpu().numpy(), dtype=np.float32)


class Contexts:
    """What chunks were computed to be in contexts, summed until they are seen often enough: KV as
    it would be were they encoded alone, in its own dtype if that has two bytes or more. What a
    :class:`~cache_core.blend.seen.SeenTable` forgets is to be forgotten here."""

    def __init__(self) -> None:
        self._sums: dict[bytes, tuple[Tensor, float]] = {}

    def add(self, key: bytes, kv: Tensor, counts: float) -> None:
        """Takes in a chunk's KV in one context, of any shape, and what that sighting ``counts``: at
        0 there was nothing to see."""
        if counts <= 0:
            return
        total, weight = self._sums.pop(key, (None, 0.0))
        new = kv.float() * counts if total is None else total.float() + kv.float() * counts
        self._sums[key] = new.to(kv.dtype if kv.itemsize > 1 else new.dtype), weight + counts

    def average(self, key: bytes, alone: Tensor) -> Tensor:
        """Returns the average of a chunk's KV ``alone`` and in all contexts, and forgets those."""
        total, weight = self._sums.pop(key, (None, 0.0))
        if total is None:
            return alone
        return ((alone.float() + total.float()) / (1 + weight)).to(alone.dtype)

    def forget(self, keys: Iterable[bytes]) -> None:
        """Forgets chunks."""
        for key in keys:
            self._sums.pop(key, None)

    def clear(self) -> None:
        """Forgets all chunks."""
        self._sums.clear()


def chosen(deviations: Deviations, ratio: float) -> NDArray[np.bool_]:
    """Returns which of a prompt's reused tokens to compute again: the share ``ratio`` of them, to
    the nearest token, whose deviations ``[tokens]`` are largest; of equal ones the first."""
    count = budget(ratio, len(deviations))
    mask = np.zeros(len(deviations), dtype=np.bool_)
    mask[np.argsort(-deviations, kind="stable")[:count]] = True
    return mask


def budget(ratio: float, candidates: int) -> int:
    """Returns how many of ``candidates`` to compute again: the nearest whole number, halves up."""
    return min(candidates, int(ratio * candidates + 0.5))


def _apart(new: Tensor, old: Tensor) -> Tensor:
    new, old = new.float(), old.float()
    return (new - old).square().sum((0, 2)) / new.square().mean().clamp_min(1e-30)
