"""What torch's attention kernels for GPUs compute, written out for a CPU: as strict as they are
about what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lmcache_cli.engines.transformers import attention

_LSE_ROWS = 32
_VECTOR = 8


@contextmanager
def gpu_kernels(monkeypatch: pytest.MonkeyPatch, flash: bool) -> Iterator[list[str]]:
    """Tensors on the CPU take the ways of a GPU inside, with FlashAttention or without. Gives the
    names of the kernels that ran."""
    ran: list[str] = []

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout: float = 0.0,
        causal: bool = False,
        debug: bool = False,
        *,
        scale: float | None = None,
    ) -> tuple[Any, ...]:
        ran.append("flash")
        assert dropout == 0 and query.shape[1] % key.shape[1] == 0
        # The triangle ends at the last key.
        out, lse = _attention(query, key, value, scale, causal, None)
        nothing = torch.empty(0)
        return out, lse, nothing, nothing, query.shape[2], key.shape[2], nothing, nothing, nothing

    def efficient(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        with_lse: bool,
        dropout: float = 0.0,
        causal: bool = False,
        *,
        scale: float | None = None,
    ) -> tuple[Tensor, ...]:
        ran.append("efficient")
        assert dropout == 0 and with_lse
        assert query.shape[:2] == key.shape[:2] == value.shape[:2], "it knows no shared heads"
        # The triangle begins at the first key.
        assert not causal or query.shape[2] == key.shape[2]
        if bias is not None:
            assert bias.shape == (*query.shape[:3], key.shape[2]) and bias.dtype == query.dtype
            assert bias.stride(3) == 1
            assert not any(bias.stride(i) % _VECTOR for i in range(3))
            assert bias.storage_offset() % _VECTOR == 0
        out, lse = _attention(query, key, value, scale, causal, bias)
        rows = -(-lse.shape[2] // _LSE_ROWS) * _LSE_ROWS
        padded = lse.new_full((*lse.shape[:2], rows), float("nan"))
        padded[..., : lse.shape[2]] = lse
        nothing = torch.empty(0)
        return out.transpose(1, 2).contiguous().transpose(1, 2), padded, nothing, nothing

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("_scaled_dot_product_flash_attention", fused, "CPU")
    library.impl("_scaled_dot_product_efficient_attention", efficient, "CPU")
    with monkeypatch.context() as patched:
        patched.setattr(attention, "tensor_on_cpu", lambda _: False)
        patched.setattr(attention, "_has_flash", lambda *_: flash)
        try:
            yield ran
        finally:
            library._destroy()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    causal: bool,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    group, past = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    k, v = (x.float().repeat_interleave(group, 1) for x in (key, value))
    scores = query.float() @ k.transpose(2, 3) * (scale or query.shape[3] ** -0.5)
    if bias is not None:
        scores = scores + bias.float()
    if causal:
        rows, keys = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None]
        scores = scores.masked_fill(keys > rows + past, float("-inf"))
    return (scores.softmax(-1) @ v).to(query.dtype), scores.logsumexp(-1)
