"""Attention of some rows of a prompt to all of its keys, with the exact mask.

``position(query) >= position(key)``, row by row. A causal kernel aligns its triangle with the last
key: given rows that are not the last ones, it attends to the future.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lmcache_cli.engines.attention import attend

# Rows per mask: larger blocks see more masked keys, smaller ones are less of a product.
_BLOCK = 64


def attend_rows(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, scale: float) -> Tensor:
    """``query`` ``[heads, rows, d]`` at the ascending positions ``rows`` against ``key`` and
    ``value`` ``[kv_heads, tokens, d]``, key j at position j. Returns ``[rows, heads * d]``.

    Needs memory for one mask of 64 rows at a time.
    """
    count, first = len(rows), int(rows[0])
    end = int(rows[-1]) + 1
    if end - first == count and query.device.type == "cpu":
        out, _ = attend(
            torch.nn.Identity(),
            query[None],
            key[None, :, :end],
            value[None, :, :end],
            None,
            scaling=scale,
        )
        return out[0].reshape(count, -1)
    result = query.new_empty(count, query.shape[0], query.shape[2])
    for begin in range(0, count, _BLOCK):
        at = rows[begin : begin + _BLOCK]
        end = int(at[-1]) + 1
        future = torch.arange(end, device=at.device)[None] > at[:, None]
        mask = torch.zeros(future.shape, dtype=query.dtype, device=query.device)
        mask.masked_fill_(future, float("-inf"))
        out = scaled_dot_product_attention(
            query[None, :, begin : begin + _BLOCK],
            key[None, :, :end],
            value[None, :, :end],
            attn_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        result[begin : begin + _BLOCK] = out[0].transpose(0, 1)
    return result.reshape(count, -1)


def attend_apart(query: Tensor, key: Tensor, value: Tensor, lead: int, scale: float) -> Tensor:
    """Chunks that don't see each other: ``query`` ``[chunks, heads, size, d]`` against ``lead``
    keys that all see, and their own chunk, causally. ``key`` and ``value`` are
    ``[kv_heads, lead + chunks * size, d]``. Returns ``[chunks * size, heads * d]``."""
    chunks, heads, size, dim = query.shape
    out = query.new_empty(chunks, size, heads * dim)
    for i in range(chunks):
        start = lead + i * size
        own = [torch.cat([x[:, :lead], x[:, start : start + size]], 1) for x in (key, value)]
        at = torch.arange(lead, lead + size, device=query.device)
        out[i] = attend_rows(query[i], own[0], own[1], at, scale)
    return out.reshape(chunks * size, -1)
