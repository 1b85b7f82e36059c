"""Attention over a cached part against the plain one with a mask, on a CPU and as a GPU has it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from lmcache_cli.engines.transformers.attention import attend, attend_all, empty_mask, merged
from lmcache_cli.engines.transformers.blend.runner import attend_apart, attend_rows, spans_of
from tests.lmcache_cli.gpu_kernels import gpu_kernels

pytestmark = pytest.mark.engine

HEADS = ((6, 2), (4, 4), (8, 1))
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=["cpu", "flash", "efficient"])
def kernels(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str] | None]:
    """What ran; None on a CPU's own ways."""
    if request.param == "cpu":
        yield None
        return
    with gpu_kernels(monkeypatch, request.param == "flash") as ran:
        yield ran


def drawn(heads: int, kv_heads: int, rows: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(heads + rows)
    shapes = [(1, heads, rows, 16), (1, kv_heads, keys, 16), (1, kv_heads, keys, 16)]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def masked(q: Tensor, k: Tensor, v: Tensor, at: Tensor, scale: float) -> Tensor:
    """``[rows, heads, d]`` of rows at positions ``at``, in float32 with all scores."""
    group = q.shape[1] // k.shape[1]
    k, v = (x[0].float().repeat_interleave(group, 0) for x in (k, v))
    scores = q[0].float() @ k.transpose(1, 2) * scale
    scores.masked_fill_(torch.arange(k.shape[1])[None] > at[:, None], float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 90), (40, 40), (33, 90), (2, 3)])
def test_the_last_rows_see_what_is_before_them(
    rows: int, keys: int, heads: int, kv_heads: int, dtype: torch.dtype, kernels: list[str] | None
) -> None:
    q, k, v = drawn(heads, kv_heads, rows, keys, dtype)
    # As an buffer has them: views of longer memory.
    k, v = (torch.cat([x, x], 2)[:, :, :keys] for x in (k, v))
    found, _ = attend(torch.nn.Identity(), q, k, v, None, scaling=0.3)
    assert found.shape == (1, rows, heads, 16) and found.is_contiguous()
    expected = masked(q, k, v, torch.arange(keys - rows, keys), 0.3)
    close = TOLERANCE[dtype]
    torch.testing.assert_close(found[0].float(), expected, rtol=close, atol=close)
    if kernels is not None and rows < keys:
        assert set(kernels) <= {"flash"} or set(kernels) <= {"efficient"}
        assert kernels or rows == 1


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_parts_are_joined_to_the_whole(
    heads: int, kv_heads: int, dtype: torch.dtype, kernels: list[str] | None
) -> None:
    q, k, v = drawn(heads, kv_heads, 45, 77, dtype)
    mask = empty_mask(45, 27, q)
    mask.masked_fill_(torch.arange(27)[None] > torch.arange(45)[:, None] // 2, float("-inf"))
    before = attend_all(q, k[:, :, :50], v[:, :, :50], 0.3)
    own = attend_all(q, k[:, :, 50:], v[:, :, 50:], 0.3, mask)
    assert own[1].shape == before[1].shape == (1, heads, 45)
    expected = masked(q, k, v, 50 + torch.arange(45) // 2, 0.3)
    close = TOLERANCE[dtype]
    found = merged(own, before)[0].transpose(0, 1).float()
    torch.testing.assert_close(found, expected, rtol=close, atol=close)


def positions(count: int, total: int) -> np.ndarray:
    """Some scattered, and runs that follow one another: short and long, at the end and before."""
    rng = np.random.default_rng(count)
    some = rng.choice(total, count, replace=False)
    return np.unique(np.concatenate([some, np.arange(300, 420), np.arange(total - 70, total)]))


@pytest.mark.parametrize("at", [positions(150, 900), positions(900, 2000), np.arange(100, 900)])
def test_rows_anywhere_see_what_is_before_them(at: np.ndarray, kernels: list[str] | None) -> None:
    total = int(at[-1]) + 1
    q, k, v = drawn(6, 2, len(at), total, torch.float32)
    found = attend_rows(q[0], k[0], v[0], spans_of(at, q), 0.3)
    expected = masked(q, k, v, torch.from_numpy(at), 0.3).reshape(len(at), -1)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_rows_that_follow_one_another_need_no_mask() -> None:
    like = torch.empty(0)
    [span] = spans_of(np.arange(128, 8000), like)
    assert (span.begin, span.end, span.first, span.stop, span.mask) == (0, 7872, 128, 8000, None)
    scattered, question = spans_of(np.array([3, 5, 9, *range(500, 564)]), like)
    assert scattered.mask is not None and scattered.mask.shape == (3, 7)
    assert (question.begin, question.first, question.stop, question.mask) == (3, 500, 564, None)


@pytest.mark.parametrize("lead", [0, 5, 40])
def test_segments_apart_see_the_lead_and_themselves(lead: int, kernels: list[str] | None) -> None:
    sizes = [24, 3, 40]
    total = sum(sizes)
    q, k, v = drawn(6, 2, total, lead + total, torch.float32)
    kv = torch.cat([k, v])
    parts = torch.split(attend_apart(q[0], kv, sizes, 0.3), sizes)
    for found, end in zip(parts, np.cumsum(sizes).tolist(), strict=True):
        size = len(found)
        keep = [*range(lead), *range(lead + end - size, lead + end)]
        own = q[:, :, end - size : end]
        at = torch.arange(lead, lead + size)
        expected = masked(own, k[:, :, keep], v[:, :, keep], at, 0.3).reshape(size, -1)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
