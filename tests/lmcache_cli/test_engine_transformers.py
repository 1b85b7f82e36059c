"""The transformers engine on small random-weight models of the supported families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.transformers.engine import TransformersEngine
from lmcache_cli.errors import CellError, UserError
from tests.lmcache_cli.small_model import FAMILIES, save_model
from workloads import Request

pytestmark = pytest.mark.engine


def request(ids: list[int], outputs: int = 6, name: str = "r") -> Request:
    tokens = np.array(ids, dtype=np.int32)
    tokens.setflags(write=False)
    return Request(name, "s", 0.0, tokens, (), outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hit_gives_the_tokens_of_a_cold_prefill(family: str, tmp_path: Path) -> None:
    engine = TransformersEngine(str(save_model(tmp_path, family)))
    rng = np.random.default_rng(1)
    document = rng.integers(0, 500, 100).tolist()
    prompts = [request(document + rng.integers(0, 500, 20).tolist()) for _ in range(3)]
    off = engine.open(CacheSpec(16), 200)
    cold = [s.output_ids for s in off.serve(prompts, Load())]
    sizes = {"device": 4 * 16 * engine.token_bytes(), "cpu": 100 * 16 * engine.token_bytes()}
    session = engine.open(CacheSpec(16, sizes, placement="write_on_eviction"), 200)
    warm = list(session.serve(prompts, Load()))
    assert [s.output_ids for s in warm] == cold
    assert warm[0].hit_tokens == {}
    assert warm[1].hit_tokens == {"device": 64, "cpu": 32}
    assert session.cache is not None
    session.cache.check()
    assert session.counters()["cpu"].read_chunks == 4
    session.close()


def test_forward_equals_the_models_own_attention_and_cache(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    engine = TransformersEngine(str(folder))
    ids = np.random.default_rng(0).integers(0, 500, 90).astype(np.int32)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = plain(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1]
    engine.open(CacheSpec(16), 128)
    buffer = engine.kv_buffer()
    torch.testing.assert_close(engine.forward(buffer, ids, 0), expected, rtol=1e-4, atol=1e-5)
    engine.forward(buffer, ids[:50], 0)
    torch.testing.assert_close(engine.forward(buffer, ids[50:], 50), expected, rtol=1e-4, atol=1e-5)


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token(tmp_path: Path) -> None:
    engine = TransformersEngine(str(save_model(tmp_path, "llama")))
    prompt = request(list(range(32)))
    session = engine.open(CacheSpec(16, {"cpu": 1 << 20}), 64)
    first, second = session.serve([prompt, prompt], Load())
    assert second.hit_tokens == {"cpu": 16}
    assert first.output_ids == second.output_ids
    session.close()


def test_times_are_in_order_and_a_closed_loop_queues(tmp_path: Path) -> None:
    engine = TransformersEngine(str(save_model(tmp_path, "llama")))
    session = engine.open(CacheSpec(16), 64)
    samples = list(session.serve([request(list(range(20)))] * 4, Load(concurrency=2)))
    for sample in samples:
        assert sample.scheduled_s <= sample.first_token_s < sample.finished_s
        assert len(sample.token_s) == 6 and list(sample.token_s) == sorted(sample.token_s)
    assert samples[1].scheduled_s == samples[0].scheduled_s
    assert samples[2].scheduled_s == samples[0].finished_s


def test_namespaces_of_two_salts_share_nothing(tmp_path: Path) -> None:
    engine = TransformersEngine(str(save_model(tmp_path, "llama")))
    one = engine.namespace(CacheSpec(16, salt="a")).digest()
    assert one == engine.namespace(CacheSpec(16, salt="a")).digest()
    assert one != engine.namespace(CacheSpec(16, salt="b")).digest()
    assert one != engine.namespace(CacheSpec(32, salt="a")).digest()


def test_other_weights_are_another_revision(tmp_path: Path) -> None:
    one = TransformersEngine(str(save_model(tmp_path / "a", "llama")))
    folder = save_model(tmp_path / "b", "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0, 0] += 1e-3
    model.save_pretrained(folder)
    assert one.loaded.revision != TransformersEngine(str(folder)).loaded.revision


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
    ],
)
def test_models_whose_kv_cannot_be_reused_are_refused(
    family: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        TransformersEngine(str(save_model(tmp_path, family, **changes)))


def test_blend_refuses_a_window(tmp_path: Path) -> None:
    engine = TransformersEngine(str(save_model(tmp_path, "mistral", sliding_window=32)))
    assert engine.layout(16).planes == 1 and engine.groups(16)[0].keeps == "window"
    with pytest.raises(CellError, match="blend can't move what layers with a sliding window keep"):
        engine.layers()


def test_context_longer_than_the_models_is_refused(tmp_path: Path) -> None:
    engine = TransformersEngine(str(save_model(tmp_path, "llama")))
    with pytest.raises(UserError, match="context of 256"):
        engine.open(CacheSpec(16), 257)


def test_tier_below_one_chunk_is_refused(tmp_path: Path) -> None:
    engine = TransformersEngine(str(save_model(tmp_path, "llama")))
    with pytest.raises(UserError, match="holds no chunk of 16 tokens"):
        engine.open(CacheSpec(16, {"cpu": 100}), 64)


@pytest.mark.parametrize("name", ["/no/such/folder", "nobody/no-such-model"])
def test_unknown_model_is_one_clear_line(name: str) -> None:
    with pytest.raises(UserError) as error:
        TransformersEngine(name)
    assert name in str(error.value) and "\n" not in str(error.value)
