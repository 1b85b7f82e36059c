"""Selects the reused tokens to recompute, layer by layer. torch is imported with this file only.

A selection says at which positions layer 0 runs (:meth:`Selection.begin`) and, as it sees each
layer's new KV beside the reused one, which of them to keep (:meth:`Selection.narrow`). Positions
are sorted int64 tensors ``[rows]`` of reused tokens: what is exact is never recomputed, and what is
not cached always is, so neither is asked about. Those of ``begin`` are on the host, where a prompt
is known; those of ``narrow`` are where the KV is, and so is its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KV:
    """K after RoPE and V of n tokens: two tensors ``[n, kv_heads, head_dim]``, or of all layers
    ``[layers, n, kv_heads, head_dim]``."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True)
class Reused:
    """A prompt with its merged, re-rotated KV (all layers; rows that are not cached are garbage).

    ``starts`` are its segments' first positions, from 0 on; the last segment is the question.
    ``chunks`` are the reused chunks whose KV is not exact, as (start, stop). KV below ``exact`` is
    exact.
    """

    ids: Tensor
    starts: tuple[int, ...]
    exact: int
    chunks: tuple[tuple[int, int], ...]
    kv: KV

    @property
    def question(self) -> int:
        """Returns the first position of the question."""
        return self.starts[-1]

    @property
    def candidates(self) -> Tensor:
        """Returns all positions that could be recomputed."""
        spans = [torch.arange(start, stop) for start, stop in self.chunks]
        return torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64)


class Selection(Protocol):
    """Chooses rows for one prompt after another; :meth:`begin` starts a prompt."""

    def begin(self, prompt: Reused) -> Tensor:
        """Returns the positions at which layer 0 runs."""

    def narrow(self, layer: int, rows: Tensor, new: KV, old: KV) -> Tensor:
        """Returns which of ``rows`` to keep in ``layer`` and above: boolean ``[rows]``. ``new`` and
        ``old`` are that layer's computed and reused KV of the rows."""


class Looking(Selection, Protocol):
    """A selection that also looks at the queries and keys of a layer."""

    def narrows(self, layer: int) -> bool:
        """Returns whether it wants to see that layer; without this method it sees all."""

    def see(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        """Is called before ``narrow``: ``queries`` ``[heads, questions, head_dim]`` after RoPE,
        ``keys`` ``[kv_heads, tokens, head_dim]`` of the whole prompt, new where computed."""


def budget(ratio: float, candidates: int) -> int:
    """Returns how many of ``candidates`` to recompute: the nearest whole number, halves up."""
    return min(candidates, int(ratio * candidates + 0.5))


class Fixed:
    """A selection of rows that are known before anything is computed."""

    def __init__(self, choose: Callable[[Reused], Tensor]) -> None:
        self._choose = choose

    def begin(self, prompt: Reused) -> Tensor:
        return self._choose(prompt)

    def narrows(self, layer: int) -> bool:
        return False

    def narrow(self, layer: int, rows: Tensor, new: KV, old: KV) -> Tensor:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)


class Ranked:
    """Keeps the rows of the highest scores at a check layer; ``steps`` of more than 1 narrow
    gradually: over that many layers the share falls in equal parts, the last leaves the ratio."""

    def __init__(self, ratio: float, check_layer: int, steps: int = 1) -> None:
        self._ratio, self._check, self._steps = ratio, check_layer, max(1, steps)
        self._candidates = 0

    def begin(self, prompt: Reused) -> Tensor:
        candidates = prompt.candidates
        self._candidates = len(candidates)
        return candidates

    def narrows(self, layer: int) -> bool:
        return 0 <= layer - self._check < self._steps

    def narrow(self, layer: int, rows: Tensor, new: KV, old: KV) -> Tensor:
        keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        if not self.narrows(layer):
            return keep
        step = layer - self._check
        # From twice the ratio down, so that few rows live on that the next layer would drop.
        wide = 1 + (self._steps - 1 - step) / self._steps
        count = min(len(rows), budget(min(1.0, self._ratio * wide), self._candidates))
        if count < len(rows):
            best = torch.topk(self.scores(rows, new, old), count).indices
            keep = torch.zeros_like(keep).index_fill_(0, best, True)
        return keep

    def scores(self, rows: Tensor, new: KV, old: KV) -> Tensor:
        """Returns a number per row; the rows with the largest are kept."""
        raise NotImplementedError


class Deviating(Ranked):
    """The selection ``hkvd``: rows of the largest KV deviation (CacheBlend, Yao et al. 2024,
    section 4.3); K and V count alike, each in units of its own mean square."""

    def scores(self, rows: Tensor, new: KV, old: KV) -> Tensor:
        return _deviation(new.k, old.k) + _deviation(new.v, old.v)


class QuestionGuided(Ranked):
    """The selection ``query``: rows that the question attends to most, at the check layer."""

    def __init__(self, ratio: float, check_layer: int, steps: int = 1) -> None:
        super().__init__(ratio, check_layer, steps)
        self._attention = torch.empty(0)

    def see(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        heads, asked, dim = queries.shape
        grouped = queries.reshape(keys.shape[0], -1, dim).float()
        scores = grouped @ keys.float().transpose(1, 2) / dim**0.5
        at = torch.arange(keys.shape[1] - asked, keys.shape[1], device=keys.device)
        future = torch.arange(keys.shape[1], device=keys.device)[None] > at[:, None]
        scores = scores.view(heads, asked, -1).masked_fill_(future, float("-inf"))
        self._attention = scores.softmax(-1).sum((0, 1))

    def scores(self, rows: Tensor, new: KV, old: KV) -> Tensor:
        return self._attention[rows]


def _deviation(new: Tensor, old: Tensor) -> Tensor:
    new, old = new.float(), old.float()
    return (new - old).square().sum((1, 2)) / new.square().mean().clamp_min(1e-30)


def _first(ratio: float) -> Callable[[Reused], Tensor]:
    """Returns what chooses the first share of each chunk (EPIC, Hu et al. 2024); rounding is spread
    over the chunks."""

    def choose(prompt: Reused) -> Tensor:
        spans, seen, given = [], 0, 0
        for start, stop in prompt.chunks:
            seen += stop - start
            count = min(stop - start, budget(ratio, seen) - given)
            given += count
            spans.append(torch.arange(start, start + count))
        return torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64)

    return choose


def _random(ratio: float, seed: int) -> Callable[[Reused], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def choose(prompt: Reused) -> Tensor:
        candidates = prompt.candidates
        order = torch.randperm(len(candidates), generator=generator)
        return candidates[order[: budget(ratio, len(candidates))]].sort().values

    return choose


class Choice(NamedTuple):
    """The settings that a selection is made from. ``steps`` is over how many layers it narrows."""

    ratio: float
    check_layer: int = 1
    steps: int = 1
    seed: int = 0


SELECTIONS: Mapping[str, Callable[[Choice], Selection]] = {
    "hkvd": lambda c: Deviating(c.ratio, c.check_layer, c.steps),
    "first": lambda c: Fixed(_first(c.ratio)),
    "query": lambda c: QuestionGuided(c.ratio, c.check_layer, c.steps),
    "random": lambda c: Fixed(_random(c.ratio, c.seed)),
    "none": lambda c: Fixed(lambda prompt: torch.empty(0, dtype=torch.int64)),
    "full": lambda c: Fixed(lambda prompt: prompt.candidates),
}
"""What makes each selection, by name; a new one is a line here."""


def make_selection(name: str, choice: Choice) -> Selection:
    """Makes a selection by name. Raises ``ValueError`` if it is unknown or the ratio not 0 to 1."""
    if name not in SELECTIONS:
        raise ValueError(f"selection {name!r} is not known; use one of {', '.join(SELECTIONS)}")
    if not 0 <= choice.ratio <= 1:
        raise ValueError(f"ratio {choice.ratio} is not from 0 to 1")
    return SELECTIONS[name](choice)
