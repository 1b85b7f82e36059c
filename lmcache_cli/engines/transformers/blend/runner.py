"""Runs a model of the Llama shape layer by layer, with attention of rows that stand apart.

A causal kernel aligns its triangle with the last key, so it takes rows that follow one another
only. Others go in blocks: to the keys before a block without a mask, to those that the block spans
with one, and the two are joined by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_core.blend.rope import Rope, RopeError, check_shiftable
from lmcache_cli.engines.transformers.attention import (
    HEAD_DIM_STEP,
    attend,
    attend_all,
    empty_mask,
    merged,
)
from lmcache_cli.engines.transformers.models import LoadedModel
from lmcache_cli.errors import CellError

BLEND_FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
"""The families that blend runs: SmolLM and SmolLM2 are Llamas. Others scale residuals, normalise
elsewhere or skip RoPE."""

# An MLP's inside is several times as wide as the KV of a layer: some rows at a time.
_MLP_ROWS = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class Projected:
    """One layer's q ``[heads, rows, d]`` and k, v ``[kv_heads, rows, d]``, q and k after RoPE."""

    q: Tensor
    k: Tensor
    v: Tensor


class LayerRunner:
    """A model that is run layer by layer. Raises ``CellError`` for a family or a RoPE that blend
    does not know."""

    def __init__(self, loaded: LoadedModel) -> None:
        refuse_unblendable(loaded)
        self.inner = loaded.model.model
        self.head = loaded.model.lm_head
        self.layers = list(self.inner.layers)
        self.head_dim = loaded.head_dim
        self.scale = float(self.layers[0].self_attn.scaling)
        self.device = loaded.device
        self.rope = _rope_of(self.inner)

    def embed(self, ids: Tensor) -> Tensor:
        """Returns the embeddings ``[rows, width]`` of ``ids`` ``[rows]``."""
        out: Tensor = self.inner.embed_tokens(ids)
        return out

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cos and sin ``[rows, d]`` of the model's own RoPE, its scaling of attention
        included."""
        like = self.inner.norm.weight[:1]
        cos, sin = self.inner.rotary_emb(like, position_ids=positions[None])
        return cos[0], sin[0]

    def project(self, layer: int, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Projected:
        """Returns a layer's q, k and v of ``hidden`` ``[rows, width]``, q and k after RoPE."""
        attention = self.layers[layer].self_attn
        x = self.layers[layer].input_layernorm(hidden)
        shape = (len(x), -1, self.head_dim)
        q, k = attention.q_proj(x).view(shape), attention.k_proj(x).view(shape)
        v = attention.v_proj(x).view(shape)
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        cos, sin = angles
        q, k = _turned(q.transpose(0, 1), cos, sin), _turned(k.transpose(0, 1), cos, sin)
        return Projected(q, k, v.transpose(0, 1))

    def finish(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Returns the output ``[rows, width]`` of a layer from its input and what attention
        gave."""
        block = self.layers[layer]
        out = torch.empty_like(hidden)
        count = _MLP_ROWS.get(hidden.device.type, _MLP_ROWS["cuda"])
        for begin in range(0, len(hidden), count):
            part = slice(begin, begin + count)
            x = hidden[part] + block.self_attn.o_proj(mixed[part])
            out[part] = x + block.mlp(block.post_attention_layernorm(x))
        return out

    def attend(self, layer: int, q: Tensor, kv: Tensor, spans: Spans, hidden: Tensor) -> Tensor:
        """Runs the rest of a layer after :meth:`project`. ``kv`` is that layer's
        ``[2, kv_heads, tokens, d]``; ``spans`` say where the rows stand."""
        return self.finish(layer, hidden, attend_rows(q, kv[0], kv[1], spans, self.scale))

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits ``[rows, vocabulary]`` of the last layer's output."""
        out: Tensor = self.head(self.inner.norm(hidden))
        return out

    def behind(self, ids: Tensor, kv: Tensor, past: int) -> Tensor:
        """Runs ``ids`` after ``past`` rows of ``kv`` ``[layers, 2, kv_heads, capacity, d]``, writes
        their KV there, and returns the last layer's output, ``[rows, width]``."""
        spans = following(past, past + len(ids))
        rows = torch.arange(past, past + len(ids), device=self.device)
        hidden, angles = self.embed(ids), self.angles(rows)
        for layer in range(len(self.layers)):
            new = self.project(layer, hidden, angles)
            kv[layer, 0, :, past : past + len(ids)] = new.k
            kv[layer, 1, :, past : past + len(ids)] = new.v
            hidden = self.attend(layer, new.q, kv[layer], spans, hidden)
        return hidden

    def apart(self, segments: Sequence[Tensor], kv: Tensor, lead: int) -> None:
        """Encodes ``segments`` of tokens each alone after the first ``lead`` rows of ``kv``, all in
        one forward, and writes their KV after those, one after the other. Each one's K is at
        positions from ``lead`` on."""
        sizes = [len(segment) for segment in segments]
        at = [torch.arange(lead, lead + size, device=self.device) for size in sizes]
        hidden, angles = self.embed(torch.cat(list(segments))), self.angles(torch.cat(at))
        end = lead + sum(sizes)
        for layer in range(len(self.layers)):
            new = self.project(layer, hidden, angles)
            kv[layer, 0, :, lead:end], kv[layer, 1, :, lead:end] = new.k, new.v
            mixed = attend_apart(new.q, kv[layer, :, :, :end], sizes, self.scale)
            hidden = self.finish(layer, hidden, mixed)


def refuse_unblendable(loaded: LoadedModel) -> None:
    """Raises ``CellError`` for a model whose K can't be moved, or that we can't run by layer."""
    family = str(loaded.config.model_type)
    if loaded.grouped and family in BLEND_FAMILIES:
        raise CellError(
            f"model {loaded.id}: blend can't move what layers with a sliding window keep. Use"
            " --reuse prefix"
        )
    if family not in BLEND_FAMILIES:
        raise CellError(
            f"model {loaded.id}: blend does not know family {family!r}; it runs"
            f" {', '.join(BLEND_FAMILIES)}. Use --reuse prefix"
        )
    if not loaded.own_attention:
        raise CellError(
            f"model {loaded.id}: blend does not run on device {loaded.device} with heads of"
            f" {loaded.head_dim} items; it runs on a CPU, and on CUDA with a multiple of"
            f" {HEAD_DIM_STEP}. Use --reuse prefix"
        )
    try:
        check_shiftable(dict(getattr(loaded.config, "rope_parameters", None) or {}))
    except RopeError as error:
        raise CellError(f"model {loaded.id}: {error}; use --reuse prefix") from error


def _rope_of(inner: Any) -> Rope:
    return Rope(inner.rotary_emb.inv_freq.double().cpu().numpy())


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies RoPE as the supported families compute it, to the bit:
    ``x * cos + rotate_half(x) * sin``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


# Rows per masked block: more of them see more masked keys, fewer are less of a product.
_BLOCK = {"cpu": 128, "cuda": 512}
# As many rows that follow one another are worth a kernel of their own.
_RUN = 64


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Rows ``begin`` to ``end`` of those that are run, at positions from ``first`` to below
    ``stop``. ``mask`` ``[end - begin, stop - first]`` is None where they follow one another."""

    begin: int
    end: int
    first: int
    stop: int
    mask: Tensor | None = None


Spans = Sequence[RowSpan]


def following(first: int, stop: int) -> Spans:
    """Returns one span of all rows at positions ``first`` to below ``stop``."""
    return (RowSpan(0, stop - first, first, stop),)


def spans_of(positions: NDArray[np.int64], like: Tensor) -> Spans:
    """Cuts rows at ascending ``positions`` into spans; masks are on the device and of the dtype of
    ``like``. Needs memory for the masks: a block's rows times what they span."""
    count = len(positions)
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    begins, ends = np.concatenate([[0], breaks]), np.concatenate([breaks, [count]])
    long = ends - begins >= _RUN if len(begins) > 1 else np.ones(1, dtype=bool)
    block = _BLOCK.get(like.device.type, _BLOCK["cuda"])
    spans: list[RowSpan] = []
    begin = 0
    for run, end in zip(begins[long], ends[long], strict=True):
        spans += _blocks(positions, begin, int(run), block, like)
        spans.append(RowSpan(int(run), int(end), int(positions[run]), int(positions[end - 1]) + 1))
        begin = int(end)
    return (*spans, *_blocks(positions, begin, count, block, like))


def _blocks(
    positions: NDArray[np.int64], begin: int, end: int, block: int, like: Tensor
) -> list[RowSpan]:
    spans = []
    for start in range(begin, end, block):
        at = positions[start : min(end, start + block)]
        first, stop = int(at[0]), int(at[-1]) + 1
        mask = empty_mask(len(at), stop - first, like)
        rows = torch.from_numpy(at - first).to(like.device)
        keys = torch.arange(stop - first, device=like.device)
        mask.masked_fill_(keys[None] > rows[:, None], float("-inf"))
        spans.append(RowSpan(start, start + len(at), first, stop, mask))
    return spans


def attend_rows(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Computes attention of ``query`` ``[heads, rows, d]``, which are the rows of ``spans``, to
    ``key`` and ``value`` ``[kv_heads, tokens, d]``, key j at position j. Returns
    ``[rows, heads * d]``."""
    parts = [_attend(query, key, value, span, scale) for span in spans]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.reshape(query.shape[1], -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, span: RowSpan, scale: float) -> Tensor:
    """Returns the attention ``[rows, heads, d]`` of one span."""
    rows = query[None, :, span.begin : span.end]
    k, v = key[None, :, : span.stop], value[None, :, : span.stop]
    if span.mask is None:
        out, _ = attend(torch.nn.Identity(), rows, k, v, None, scaling=scale)
        return out[0]
    first = span.first
    own = attend_all(rows, k[:, :, first:], v[:, :, first:], scale, span.mask)
    before = attend_all(rows, k[:, :, :first], v[:, :, :first], scale) if first else None
    joined = own[0] if before is None else merged(own, before)
    return joined[0].transpose(0, 1)


def attend_apart(query: Tensor, kv: Tensor, sizes: Sequence[int], scale: float) -> Tensor:
    """Computes attention of segments that don't see each other: ``query`` ``[heads, rows, d]`` of
    the segments of ``sizes`` rows, one after the other, against the first keys of ``kv``
    ``[2, kv_heads, lead + rows, d]``, which all see, and their own segment, causally. Returns
    ``[rows, heads * d]``."""
    lead, begin = kv.shape[2] - query.shape[1], 0
    out = []
    for size in sizes:
        start = lead + begin
        # One by one: on a CPU what a segment sees then stays in a core's cache.
        own = torch.cat([kv[:, :, :lead], kv[:, :, start : start + size]], 2)
        rows = query[:, begin : begin + size]
        out.append(attend_rows(rows, own[0], own[1], following(lead, lead + size), scale))
        begin += size
    return torch.cat(out)
