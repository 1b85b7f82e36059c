"""Attention of some rows of a prompt to all of its keys: ``position(query) >= position(key)``, row
by row.

A causal kernel aligns its triangle with the last key, so it takes rows that follow one another
only. Others go in blocks: to the keys before a block without a mask, to those that the block spans
with one, and the two are joined by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmcache_cli.engines import attention
from lmcache_cli.engines.attention import attend, attend_all, attend_own, empty_mask, merged

# Rows per masked block: more of them see more masked keys, fewer are less of a product.
_BLOCK = {"cpu": 128, "cuda": 512}
# As many rows that follow one another are worth a kernel of their own.
_RUN = 64


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``begin`` to ``end`` of those that are run, at positions from ``first`` to below
    ``stop``. ``mask`` ``[end - begin, stop - first]`` is None where they follow one another."""

    begin: int
    end: int
    first: int
    stop: int
    mask: Tensor | None = None


Spans = Sequence[Span]


def following(first: int, stop: int) -> Spans:
    """All rows at positions ``first`` to below ``stop``."""
    return (Span(0, stop - first, first, stop),)


def spans_of(positions: NDArray[np.int64], like: Tensor) -> Spans:
    """Rows at ascending ``positions``, cut into parts; masks are on the device and of the dtype of
    ``like``. Needs memory for the masks: a block's rows times what they span."""
    count = len(positions)
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    begins, ends = np.concatenate([[0], breaks]), np.concatenate([breaks, [count]])
    long = ends - begins >= _RUN if len(begins) > 1 else np.ones(1, dtype=bool)
    block = _BLOCK.get(like.device.type, _BLOCK["cuda"])
    spans: list[Span] = []
    begin = 0
    for run, end in zip(begins[long], ends[long], strict=True):
        spans += _blocks(positions, begin, int(run), block, like)
        spans.append(Span(int(run), int(end), int(positions[run]), int(positions[end - 1]) + 1))
        begin = int(end)
    return (*spans, *_blocks(positions, begin, count, block, like))


def _blocks(
    positions: NDArray[np.int64], begin: int, end: int, block: int, like: Tensor
) -> list[Span]:
    spans = []
    for start in range(begin, end, block):
        at = positions[start : min(end, start + block)]
        first, stop = int(at[0]), int(at[-1]) + 1
        mask = empty_mask(len(at), stop - first, like)
        rows = torch.from_numpy(at - first).to(like.device)
        keys = torch.arange(stop - first, device=like.device)
        mask.masked_fill_(keys[None] > rows[:, None], float("-inf"))
        spans.append(Span(start, start + len(at), first, stop, mask))
    return spans


def attend_rows(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """``query`` ``[heads, rows, d]``, which are the rows of ``spans``, against ``key`` and
    ``value`` ``[kv_heads, tokens, d]``, key j at position j. Returns ``[rows, heads * d]``."""
    parts = [_attend(query, key, value, span, scale) for span in spans]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.reshape(query.shape[1], -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, span: Span, scale: float) -> Tensor:
    """``[rows, heads, d]`` of one span."""
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


def attend_apart(query: Tensor, key: Tensor, value: Tensor, lead: int, scale: float) -> Tensor:
    """Chunks that don't see each other: ``query`` ``[chunks, heads, size, d]`` against ``lead``
    keys that all see, and their own chunk, causally. ``key`` and ``value`` are
    ``[kv_heads, lead + chunks * size, d]``. Returns ``[chunks * size, heads * d]``."""
    chunks, heads, size, dim = query.shape
    if attention.on_cpu(query):  # one by one: what a chunk sees then stays in a core's cache
        rows, out = following(lead, lead + size), query.new_empty(chunks, size, heads * dim)
        for i in range(chunks):
            start = lead + i * size
            own = [torch.cat([x[:, :lead], x[:, start : start + size]], 1) for x in (key, value)]
            out[i] = attend_rows(query[i], own[0], own[1], rows, scale)
        return out.reshape(chunks * size, -1)
    shape = (len(key), chunks, size, dim)
    k, v = (x[:, lead:].view(shape).transpose(0, 1) for x in (key, value))
    alone = attend_own(query, k, v, scale)
    mixed = alone[0]
    if lead:
        every = query.transpose(0, 1).reshape(1, heads, chunks * size, dim)
        seen, lse = attend_all(every, key[None, :, :lead], value[None, :, :lead], scale)
        seen, lse = seen.view(heads, chunks, size, dim), lse.view(heads, chunks, size)
        mixed = merged(alone, (seen.transpose(0, 1), lse.transpose(0, 1)))
    return mixed.transpose(1, 2).reshape(chunks * size, -1)
