"""Causal attention for a model whose KV is partly cached, on a CPU and on a GPU: without a mask
over the context, and without a copy of K and V for every query head.

transformers' own path makes both as soon as there is a cached part, and either costs as much as
the attention itself when a short tail meets a long cache. The numbers are in docs/log.md.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "lmcache"
"""The name by which transformers knows :func:`attend`."""

HEAD_DIM_STEP = 8
"""The step of the head dimensions that a GPU's kernels take: they are multiples of it."""
_MASK_ALIGNMENT = 16  # items: the masked kernel reads rows of a mask in vectors


def attend(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Computes causal attention of ``query`` ``[1, heads, n, d]``, the last n positions of ``key``
    and ``value`` ``[1, kv_heads, m, d]``, on one device. Returns ``[1, n, heads, d]``.

    A whole prompt takes the kernel that torch prefers. What comes after a cached part takes
    FlashAttention on a GPU; where that can't run, two attentions without a mask, over the cache and
    over itself.
    """
    new, total = query.shape[2], key.shape[2]
    if dropout:
        raise ValueError("this attention is for inference: it has no dropout")
    if new == total or (new == 1 and tensor_on_cpu(query)):
        out = _whole(query, key, value, scaling)
    elif _flash_runs(query):
        # Asked for by name: torch would prefer cuDNN's, which is compiled for every new length of
        # the cache, and this operator's triangle ends at the last key, where torch's own flag
        # begins it at the first.
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out = flash(query, key, value, 0.0, True, scale=scaling)[0]
    elif new == 1:
        out = attend_all(query, key, value, scaling)[0]
    else:
        past = total - new
        own = attend_own(query, key[:, :, past:], value[:, :, past:], scaling)
        out = merged(own, attend_all(query, key[:, :, :past], value[:, :, :past], scaling))
    return out.transpose(1, 2).contiguous(), None


def attend_all(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Every row of ``query`` ``[1, heads, n, d]`` attends to all of ``key`` and ``value``
    ``[1, kv_heads, m, d]``, or to what ``mask`` ``[n, m]`` of :func:`empty_mask` leaves.

    Returns ``[1, heads, n, d]`` and the log-sum-exp of the scores ``[1, heads, n]``, float32, by
    which :func:`merged` joins attentions to other keys.
    """
    heads, new = query.shape[1:3]
    if tensor_on_cpu(query):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        if mask is not None:
            out, lse = flash(query, key, value, 0.0, False, attn_mask=mask[None, None], scale=scale)
            return out, lse
        # Rows see the same keys, so a group's heads can be rows of one: larger products.
        rows = query.reshape(1, key.shape[1], -1, query.shape[3])
        out, lse = flash(rows, key, value, 0.0, False, scale=scale)
        return out.reshape(query.shape), lse.reshape(1, heads, new)
    if mask is None and _flash_runs(query):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, False, scale=scale
        )[:2]
        return out, lse
    return _efficient(query, key, value, scale, mask)


def attend_own(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Computes causal attention of n rows to their own n keys: ``query`` ``[batch, heads, n, d]``,
    ``key`` and ``value`` ``[batch, kv_heads, n, d]``, each of the batch alone. Returns output and
    log-sum-exp of the scores, as :func:`attend_all` does."""
    if tensor_on_cpu(query):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = flash(query, key, value, 0.0, True, scale=scale)
        return out, lse
    if _flash_runs(query):
        fused = torch.ops.aten._scaled_dot_product_flash_attention
        out, lse = fused(query, key, value, 0.0, True, scale=scale)[:2]
        return out, lse
    return _efficient(query, key, value, scale, causal=True)


def empty_mask(rows: int, keys: int, like: Tensor) -> Tensor:
    """Returns zeros ``[rows, keys]`` to be filled with -inf where a row must not look, of the dtype
    and on the device of ``like``, in memory as :func:`attend_all` needs it."""
    width = -(-keys // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    return torch.zeros(rows, width, dtype=like.dtype, device=like.device)[:, :keys]


def tensor_on_cpu(tensor: Tensor) -> bool:
    """Returns whether the tensor is on a CPU, so that a CPU's kernels are taken."""
    return tensor.device.type == "cpu"


def merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Merges two attentions into the attention to the keys of both, each an output ``[..., d]``
    with its log-sum-exp, as FlashAttention merges blocks (Dao et al. 2022, section 3.1)."""
    share = torch.sigmoid(other[1] - one[1])[..., None].to(one[0].dtype)
    return one[0] + (other[0] - one[0]) * share


def _whole(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    causal = query.shape[2] > 1
    if tensor_on_cpu(query) or _flash_runs(query):
        return scaled_dot_product_attention(
            query, key, value, scale=scale, is_causal=causal, enable_gqa=True
        )
    # What else a GPU has for these takes no shared heads, and torch would make all scores.
    out = scaled_dot_product_attention(*_grouped(query, key, value), scale=scale, is_causal=causal)
    return out.reshape(query.shape)


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes attention by the GPU kernel that takes masks, and float32; returns output and
    log-sum-exp of the scores, as :func:`attend_all` does."""
    grouped = _grouped(query, key, value)
    bias = None if mask is None else mask.expand(*grouped[0].shape[:2], *mask.shape)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse = efficient(*grouped, bias, True, 0.0, causal, scale=scale)[:2]
    # Its log-sum-exps are padded to a multiple of 32 rows.
    lse = lse[..., : query.shape[2]].reshape(query.shape[:3])
    return out.reshape(query.shape), lse


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns query, key and value with the KV heads as a batch
    ``[batch * kv_heads, group, .., d]``; a group's K and V are the same memory."""
    batch, kv_heads = key.shape[:2]
    group = query.shape[1] // kv_heads
    rows = query.reshape(batch * kv_heads, group, *query.shape[2:])
    shape = (batch * kv_heads, group, *key.shape[2:])
    k, v = (x.reshape(batch * kv_heads, 1, *x.shape[2:]).expand(shape) for x in (key, value))
    return rows, k, v


def _flash_runs(query: Tensor) -> bool:
    return not tensor_on_cpu(query) and _has_flash(query.dtype, query.shape[-1], query.device)


@cache
def _has_flash(dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    """Returns whether FlashAttention, which knows shared KV heads, takes these on a GPU."""
    return (
        dtype in (torch.bfloat16, torch.float16)
        and head_dim % HEAD_DIM_STEP == 0
        and head_dim <= 256
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _no_mask(*_: Any, **__: Any) -> None:
    """Makes no mask: requests are not padded, and causality is in :func:`attend`."""


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)
