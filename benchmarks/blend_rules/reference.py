"""What blend means, slowly and exactly: plain torch, float32, the Llama family, one prompt.

A prompt is cut into segments; the last one is the question. The first segment (with BOS) is a
prefix, so its KV is exact. Every other one is encoded alone behind a BOS whose row is dropped, and
its K is re-rotated from where it was encoded to where it stands. Then, with n tokens and L layers:

- `rows[l]` are the positions at which layer l is run, `rows[l + 1]` a subset of `rows[l]`, because
  the input of a layer is the output of the layer below. All of the question is in each.
- Layer l computes q, k and v of its rows; k and v replace the reused ones, *before* attention. A
  row that was dropped above layer l keeps its new KV up to l and its reused KV above.
- A row attends to all keys of the whole prompt with `position(query) >= position(key)`.
- Work is the share of token-layers run, `sum(len(rows[l])) / (n L)`. A selection that looks at new
  KV (`narrow`) has k and v projected for rows that it then drops at that layer; this isn't counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class KV:
    """K after RoPE and V of n tokens: two tensors [layers, n, kv heads, head dim]."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True)
class Reused:
    """A prompt and its merged, re-rotated KV. `starts` holds each segment's first position, in
    order, from 0 on; the last segment is the question, whose KV rows are zero."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    kv: KV

    @property
    def question(self) -> int:
        """First position of the question."""
        return self.starts[-1]

    @property
    def exact(self) -> int:
        """Positions below it have exact KV: the first segment is a prefix."""
        return self.starts[1]


class Selection(Protocol):
    """Chooses rows. Positions are sorted int64 tensors [rows], below the question's start."""

    def begin(self, prompt: Reused) -> Tensor:
        """The rows that layer 0 is run for, besides the question's."""
        ...

    def narrow(self, layer: int, rows: Tensor, q: Tensor, new: KV, old: KV) -> Tensor:
        """Which of `rows` to keep in `layer`: a boolean tensor [rows]. `q` [rows, heads, head dim]
        and `new` are what that layer computed for those rows, `old` is the KV it would reuse,
        [rows, kv heads, head dim]."""
        ...


@dataclass(frozen=True, slots=True)
class Blended:
    """`logits` [last, vocabulary]; the share of token-layers run; the rows of every layer, the
    question's included; and the KV that came out."""

    logits: Tensor
    work: float
    rows: tuple[Tensor, ...]
    kv: KV


class Reference:
    """The computation for one model of transformers' `LlamaForCausalLM` (or of the same shape)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = list(model.model.layers)
        config = model.config
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        own = getattr(config, "head_dim", None)
        self.head_dim = int(own or config.hidden_size // self.heads)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """RoPE (NeoX pairing) of x [n, heads, head dim] by positions [n], which may be negative
        differences: rotations add up."""
        angles = positions.double()[:, None] * self.model.model.rotary_emb.inv_freq.double()
        cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def projected(self, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, KV]:
        """q [n, heads, head dim] and KV of hidden [n, width] in a layer, q and k rotated."""
        attention = self.layers[layer].self_attn
        x = self.layers[layer].input_layernorm(hidden)
        q = attention.q_proj(x).view(len(x), self.heads, self.head_dim)
        k = attention.k_proj(x).view(len(x), self.kv_heads, self.head_dim)
        v = attention.v_proj(x).view(len(x), self.kv_heads, self.head_dim)
        return self.rotate(q, positions), KV(self.rotate(k, positions), v)

    def weights(self, q: Tensor, positions: Tensor, k: Tensor) -> Tensor:
        """Attention weights [heads, queries, keys]; key j stands at position j."""
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / self.head_dim**0.5
        future = torch.arange(len(k))[None, :] > positions[:, None]
        return functional.softmax(scores.masked_fill(future, float("-inf")), dim=-1)

    def after(self, layer: int, hidden: Tensor, weights: Tensor, v: Tensor) -> Tensor:
        """Output of a layer [queries, width] from its input and its attention weights."""
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v).reshape(len(hidden), -1)
        hidden = hidden + self.layers[layer].self_attn.o_proj(mixed)
        inner = self.layers[layer].post_attention_layernorm(hidden)
        return hidden + self.layers[layer].mlp(inner)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, ids: Sequence[int]) -> KV:
        """KV of tokens from position 0 on: a full prefill."""
        hidden, at = self.model.model.embed_tokens(torch.tensor(ids)), torch.arange(len(ids))
        ks, vs = [], []
        for layer in range(len(self.layers)):
            q, kv = self.projected(layer, hidden, at)
            hidden = self.after(layer, hidden, self.weights(q, at, kv.k), kv.v)
            ks.append(kv.k)
            vs.append(kv.v)
        return KV(torch.stack(ks), torch.stack(vs))

    def reuse(self, ids: Sequence[int], starts: Sequence[int], bos: int) -> Reused:
        """The prompt's KV from segments encoded apart. `starts` as in `Reused`."""
        shape = (len(self.layers), len(ids), self.kv_heads, self.head_dim)
        k, v = torch.zeros(shape), torch.zeros(shape)
        for number, (start, stop) in enumerate(pairwise(starts)):
            lead = [bos] if number else []
            alone = self.encode([*lead, *ids[start:stop]])
            shift = torch.full((stop - start,), start - len(lead))
            for layer in range(len(self.layers)):
                k[layer, start:stop] = self.rotate(alone.k[layer, len(lead) :], shift)
            v[:, start:stop] = alone.v[:, len(lead) :]
        return Reused(tuple(ids), tuple(starts), KV(k, v))

    @torch.no_grad()
    def blend(self, prompt: Reused, selection: Selection, last: int = 1) -> Blended:
        """Runs the selected rows and the question; logits of the last `last` tokens."""
        n = len(prompt.ids)
        k, v = prompt.kv.k.clone(), prompt.kv.v.clone()
        asked = torch.arange(prompt.question, n)
        rows = torch.cat([selection.begin(prompt), asked])
        hidden = self.model.model.embed_tokens(torch.tensor(prompt.ids)[rows])
        kept: list[Tensor] = []
        for layer in range(len(self.layers)):
            q, new = self.projected(layer, hidden, rows)
            chosen = rows < prompt.question
            old = KV(k[layer, rows[chosen]], v[layer, rows[chosen]])
            keep = torch.ones(len(rows), dtype=torch.bool)
            fresh = KV(new.k[chosen], new.v[chosen])
            keep[chosen] = selection.narrow(layer, rows[chosen], q[chosen], fresh, old)
            rows, hidden = rows[keep], hidden[keep]
            k[layer, rows], v[layer, rows] = new.k[keep], new.v[keep]
            hidden = self.after(layer, hidden, self.weights(q[keep], rows, k[layer]), v[layer])
            kept.append(rows)
        logits = self.model.lm_head(self.model.model.norm(hidden[-last:]))
        work = sum(map(len, kept)) / (n * len(self.layers))
        return Blended(logits, work, tuple(kept), KV(k, v))
