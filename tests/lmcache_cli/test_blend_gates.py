"""What must hold of blend on any model, to the bit where it can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.transformers.blend.forward import blend
from lmcache_cli.engines.transformers.blend.runner import attend_rows, spans_of
from lmcache_cli.engines.transformers.engine import TransformersEngine
from tests.lmcache_cli.blend_world import (
    CHUNK,
    ROPES,
    asking,
    blend_session,
    parts,
    serve,
    small_engine,
    warm,
)
from tests.lmcache_cli.gpu_kernels import gpu_kernels

pytestmark = pytest.mark.engine

MODELS = [(family, rope) for family in ("llama", "qwen2", "qwen3") for rope in ROPES]
MODELS.append(("mistral", "default"))


def cold(engine: TransformersEngine, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and KV ``[layers, 2, kv_heads, tokens, d]`` of a full prefill."""
    buffer = engine.kv_buffer()
    logits = engine.forward(buffer, ids, 0)
    return logits, buffer.tensor[..., : len(ids), :].clone()


@pytest.mark.parametrize(("family", "rope"), MODELS)
def test_the_gates(family: str, rope: str, tmp_path: Path) -> None:
    engine = small_engine(tmp_path, family, rope)
    texts = parts()
    sessions = {ratio: blend_session(engine, ratio=ratio) for ratio in (0.0, 0.3, 1.0)}
    request = asking(texts)
    full, kv = cold(engine, request.token_ids)
    kl = {}
    for ratio, session in sessions.items():
        warm(session, texts)
        sample = serve(session, request)
        kl[ratio] = session.judge(request).kl
        if ratio == 1:
            assert torch.equal(session.logits, full)
            assert kl[1] == 0
            assert sample.hits == 0 and sample.token_layer_share == 1
        else:
            # The system prompt and the passage behind it are exact, the other two are blended.
            assert sample.hits == 10 + 6 * CHUNK
            assert sample.blended_tokens == 4 * CHUNK
            assert sample.selected_tokens == round(ratio * 4 * CHUNK)
        if ratio == 0:
            assert torch.equal(session.logits, naive(engine, session, request.token_ids, kv))
        session.close()
    assert kl[0] > kl[0.3] > 0


def naive(
    engine: TransformersEngine, session: object, ids: np.ndarray, kv: torch.Tensor
) -> torch.Tensor:
    """Logits of the question over passages encoded one by one, each whole, and rotated: plain
    reuse."""
    buffer = engine.kv_buffer()
    shape = buffer.tensor.shape
    scratch = torch.zeros(shape)
    runner = engine.layers()
    tokens = torch.from_numpy(ids.astype(np.int64))
    with torch.inference_mode():
        for start in range(10, 10 + 6 * CHUNK, 2 * CHUNK):
            runner.behind(tokens[:10], scratch, 0)
            runner.apart([tokens[start : start + 2 * CHUNK]], scratch, 10)
            buffer.tensor[..., :10, :] = scratch[..., :10, :]
            alone = scratch[..., 10 : 10 + 2 * CHUNK, :].clone()
            alone[:, 0] = runner.rope.rotate(alone[:, 0], start - 10)
            buffer.tensor[..., start : start + 2 * CHUNK, :] = alone
    # Segments were stored from one forward of all of them, and products of other shapes round
    # otherwise: what is compared to the bit is the forward over equal KV.
    stored = session._last[0].tensor  # type: ignore[attr-defined]
    end = 10 + 6 * CHUNK
    torch.testing.assert_close(
        stored[..., :end, :], buffer.tensor[..., :end, :], rtol=1e-4, atol=1e-4
    )
    buffer.tensor[..., :end, :] = stored[..., :end, :]
    return engine.forward(buffer, ids[end:], end)


@pytest.mark.parametrize("flash", [True, False])
def test_the_gates_hold_on_a_gpus_kernels(
    flash: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu_kernels(monkeypatch, flash) as ran:
        test_the_gates("llama", "default", tmp_path)
    assert set(ran) == {"flash", "efficient"} if flash else {"efficient"}


@pytest.mark.parametrize(("family", "rope"), MODELS)
def test_all_rows_over_garbage_give_a_full_prefill(family: str, rope: str, tmp_path: Path) -> None:
    """The layer runner against the model's own forward, whichever rows are chosen."""
    engine = small_engine(tmp_path, family, rope)
    engine.open(CacheSpec(CHUNK), 256)
    request = asking(parts())
    full, kv = cold(engine, request.token_ids)
    n = len(request.token_ids)
    buffer = engine.kv_buffer().tensor
    buffer[..., : n - 9, :] = kv[..., : n - 9, :]
    buffer[..., n - 9 :, :] = 7.0
    torch.manual_seed(1)
    chosen = torch.randperm(n - 9)[:40].sort().values
    buffer[..., chosen, :] = 7.0
    done = run(engine, buffer, request.token_ids, chosen, n)
    torch.testing.assert_close(done, full, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(buffer[..., :n, :], kv, rtol=1e-3, atol=1e-3)


def run(
    engine: TransformersEngine, buffer: torch.Tensor, ids: np.ndarray, chosen: torch.Tensor, n: int
) -> torch.Tensor:
    tokens = torch.from_numpy(ids.astype(np.int64))
    at = np.union1d(chosen.numpy(), np.arange(n - 9, n))
    return blend(engine.layers(), tokens, buffer, at)


def test_a_row_does_not_see_the_future(tmp_path: Path) -> None:
    """Changed KV behind a position leaves every computed row up to it as it was, exactly."""
    engine = small_engine(tmp_path)
    engine.open(CacheSpec(CHUNK), 256)
    ids = asking(parts()).token_ids
    n = len(ids)
    start = torch.randn(engine.kv_buffer().tensor.shape)
    chosen = torch.tensor([12, 13, 20, 40, 41, 42, 70, 90])
    for probe in (12, 30, 42, 69, 95):
        one, other = start.clone(), start.clone()
        other[..., probe + 1 :, :] += 5.0
        run(engine, one, ids, chosen, n)
        run(engine, other, ids, chosen, n)
        assert torch.equal(one[..., : probe + 1, :], other[..., : probe + 1, :])
        assert not torch.equal(one[-1, 0, :, n - 1], other[-1, 0, :, n - 1])


@pytest.mark.parametrize("count", [1, 63, 64, 65, 150])
def test_sparse_attention_equals_a_dense_one(count: int) -> None:
    torch.manual_seed(count)
    q, k, v = torch.randn(6, count, 8), torch.randn(2, 200, 8), torch.randn(2, 200, 8)
    rows = torch.randperm(200)[:count].sort().values
    scores = q @ k.repeat_interleave(3, 0).transpose(1, 2) * 0.5
    scores.masked_fill_(torch.arange(200)[None] > rows[:, None], float("-inf"))
    expected = (scores.softmax(-1) @ v.repeat_interleave(3, 0)).transpose(0, 1).reshape(count, -1)
    found = attend_rows(q, k, v, spans_of(rows.numpy(), q), 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_plain_request_after_a_blended_one_is_untouched(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    texts = parts()
    session = blend_session(engine, ratio=0.3)
    request = warm(session, texts)
    off = engine.open(CacheSpec(CHUNK), 256)
    [alone] = off.serve([request], Load())
    serve(session, request)
    [after] = off.serve([request], Load())
    assert after.output_ids == alone.output_ids
    session.close()
