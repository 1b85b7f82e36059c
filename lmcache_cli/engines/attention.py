"""Causal attention on a CPU for a model whose KV is partly cached.

transformers' own path repeats K and V per head and builds a mask as soon as there is a cached
part; both cost as much as the attention itself when a short tail meets a long cache. The numbers
are in docs/log.md.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

CPU_ATTENTION = "lmcache_cpu"


def attend(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``query`` ``[1, heads, n, d]`` are the last n positions of ``key`` and ``value``
    ``[1, kv_heads, m, d]``. Returns ``[1, n, heads, d]``.

    A tail (1 < n < m) is two attentions without a mask, over the cached part and over itself,
    merged by their log-sum-exp as FlashAttention merges blocks (Dao et al. 2022, section 3.1).
    """
    new, total = query.shape[2], key.shape[2]
    if dropout:
        raise ValueError("this attention is for inference: it has no dropout")
    if new in (1, total):
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, scale=scaling, is_causal=new > 1, enable_gqa=True
        )
    else:
        out = _tail(query, key, value, total - new, scaling)
    return out.transpose(1, 2).contiguous(), None


def _tail(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, past: int, scale: float | None
) -> torch.Tensor:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    batch, heads, new, dim = query.shape
    # Every row sees the whole past, so a group's heads can be rows of one: larger products.
    rows = query.reshape(batch, key.shape[1], -1, dim)
    old, old_lse = flash(rows, key[:, :, :past], value[:, :, :past], 0.0, False, scale=scale)
    own, own_lse = flash(query, key[:, :, past:], value[:, :, past:], 0.0, True, scale=scale)
    old, old_lse = old.reshape(batch, heads, new, dim), old_lse.reshape(batch, heads, new)
    share = torch.sigmoid(old_lse - own_lse)[..., None].to(query.dtype)
    merged: torch.Tensor = own + (old - own) * share
    return merged


def _no_mask(*_: Any, **__: Any) -> None:
    """Requests are not padded, and causality is in :func:`attend`."""


AttentionInterface.register(CPU_ATTENTION, attend)
AttentionMaskInterface.register(CPU_ATTENTION, _no_mask)
