"""``--reuse shared``: a base's KV under a fine-tune, on small models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcache_cli.engines.transformers.engine import TransformersEngine
from lmcache_cli.errors import UserError
from tests.lmcache_cli.cross_model_world import (
    CHUNK,
    LAYERS,
    base_model,
    fine_tune_of,
    prompt,
    serve,
    shared_session,
)

pytestmark = pytest.mark.engine

SHARED = 5 * CHUNK


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def engine(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(str(fine_tune_of(base, tmp_path_factory.mktemp("tuned"))))
    yield engine
    engine.close()


def cold(engine: TransformersEngine, ids: np.ndarray) -> torch.Tensor:
    engine.reserve(256)
    return engine.forward(engine.kv_buffer(), ids, 0).float().clone()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_all_layers_are_a_full_prefill_to_the_bit(family: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", family)
    engine = TransformersEngine(str(fine_tune_of(base, tmp_path / "tuned")))
    session, request = shared_session(engine, base, "all"), prompt()
    session.share([request])
    sample = serve(session, request)
    assert sample.blended_tokens == sample.selected_tokens == SHARED
    assert sample.token_layer_share == 1
    assert torch.equal(session.logits, cold(engine, request.token_ids))
    quality = session.judge(request)
    assert quality.kl == 0 and quality.agreement == 1 and quality.positions == 4


def test_more_layers_are_nearer_to_a_full_prefill(engine: TransformersEngine, base: Path) -> None:
    kl = {}
    for layers in ("none", "0-1", "0-2", "all"):
        session = shared_session(engine, base, layers)
        values = []
        for seed in range(4):
            session.share([prompt(seed)])
            serve(session, prompt(seed))
            values.append(session.judge(prompt(seed)).kl)
        kl[layers] = float(np.mean(values))
        session.close()
    assert kl["none"] > kl["0-2"] > kl["all"] == 0
    assert kl["none"] > kl["0-1"] > 0


def test_none_is_the_bases_kv_as_it_is(engine: TransformersEngine, base: Path) -> None:
    session, request = shared_session(engine, base, "none"), prompt()
    session.share([request])
    sample = serve(session, request)
    buffer = engine.kv_buffer()
    theirs = session.base.runner.behind(
        torch.from_numpy(request.token_ids[:SHARED].astype(np.int64)), buffer.tensor, 0
    )
    assert theirs.shape[0] == SHARED
    expected = engine.forward(buffer, request.token_ids[SHARED:], SHARED)
    # The base's forwards are of other lengths: sums in another order.
    torch.testing.assert_close(session.logits, expected.float(), rtol=1e-4, atol=1e-4)
    assert sample.hit_tokens == {"cpu": SHARED} and sample.selected_tokens == 0
    assert sample.token_layer_share == pytest.approx(10 / 90)


@pytest.mark.parametrize(
    ("layers", "run"),
    [
        # The last of a group is not run to its end for the prefix, but at the top.
        ("0", 0),
        ("0-1", 1),
        ("0-2", 2),
        ("1-2", 1),
        ("0+2-3", 2),
        ("50%", 1),
    ],
)
def test_work_and_bytes_are_counted(
    engine: TransformersEngine, base: Path, layers: str, run: int
) -> None:
    session, request = shared_session(engine, base, layers), prompt()
    session.share([request])
    sample = serve(session, request)
    assert sample.token_layer_share == pytest.approx((10 * LAYERS + SHARED * run) / (90 * LAYERS))
    kv = SHARED * engine.token_bytes()
    kept = len(session.hidden.layers) if session.hidden else 0
    assert kept == sum(group.start > 0 for group in session.groups)
    assert sample.bytes_loaded == kv + kept * SHARED * 64 * 4
    assert sample.bytes_stored == 0
    session.close()


def test_a_group_from_the_middle_starts_with_the_bases_hidden_states(
    engine: TransformersEngine, base: Path, tmp_path: Path
) -> None:
    """A model that differs in the upper layers only: their exact inputs are the base's."""
    loaded = TransformersEngine(str(base))
    with torch.no_grad():
        for layer in loaded.loaded.model.model.layers[2:]:
            for weights in layer.parameters():
                weights *= 1.2
    loaded.loaded.model.save_pretrained(tmp_path)
    loaded.loaded.tokenizer.save_pretrained(tmp_path)
    upper = TransformersEngine(str(tmp_path))
    kl = {}
    for layers in ("none", "2-3"):
        session = shared_session(upper, base, layers)
        session.share([prompt()])
        serve(session, prompt())
        kl[layers] = session.judge(prompt()).kl
        if layers == "2-3":
            whole = cold(upper, prompt().token_ids)
            torch.testing.assert_close(session.logits, whole, rtol=1e-4, atol=1e-4)
        session.close()
    assert kl["none"] > 1e-3 and kl["2-3"] < 1e-7


def test_keys_of_two_models_never_meet(engine: TransformersEngine, base: Path) -> None:
    session, request = shared_session(engine, base, "0"), prompt()
    own = set(session._hasher.keys(request.token_ids).prefix)
    theirs = session._theirs.keys(request.token_ids).prefix
    assert len(own) == len(theirs) == 5 and not own & set(theirs)
    # The base's are those that an engine of the base makes: what it stored is what is looked up.
    alone = TransformersEngine(str(base))
    assert alone.namespace(session.spec) == session.base.namespace(session.spec)
    # And without the opt-in a fine-tune finds nothing of them.
    session.share([request])
    assert len(session.tiers.lookup(theirs)) == 5 and len(session.tiers.lookup(list(own))) == 0
    session.close()


def test_what_is_stored_is_the_models_own(engine: TransformersEngine, base: Path) -> None:
    """A prompt that the base never saw is stored under own keys, and then hit exactly; one that
    stands on the base's KV is not stored."""
    session = shared_session(engine, base, "0-1")
    request = prompt(7)
    first = serve(session, request)
    assert first.hits == 0 and first.bytes_stored == SHARED * engine.token_bytes()
    session.share([request])
    again = serve(session, request)
    assert again.hits == SHARED and again.blended_tokens == 0
    torch.testing.assert_close(
        session.logits, cold(engine, request.token_ids), rtol=1e-4, atol=1e-4
    )
    other = prompt(8)
    session.share([other])
    serve(session, other)
    assert len(session.tiers.lookup(session._hasher.keys(other.token_ids).prefix)) == 0
    session.close()


def test_own_chunks_come_before_the_bases(engine: TransformersEngine, base: Path) -> None:
    session, request = shared_session(engine, base, "all"), prompt(9)
    start = type(request)("start", "s", 0.0, request.token_ids[: 2 * CHUNK + 1], (), 1)
    serve(session, start)
    session.share([request])
    sample = serve(session, request)
    assert sample.hits == SHARED and sample.blended_tokens == 3 * CHUNK
    torch.testing.assert_close(
        session.logits, cold(engine, request.token_ids), rtol=1e-4, atol=1e-4
    )
    session.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, "the numbers of layers differ (3 and 4)"),
        ({"num_key_value_heads": 4}, "the KV heads differ (4 and 2)"),
        ({"num_attention_heads": 2}, "the attention heads differ (2 and 4)"),
        ({"head_dim": 32}, "the head dimensions differ (32 and 16)"),
        ({"vocab_size": 300}, "the sizes of the vocabulary differ (300 and 512)"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "the RoPE parameters differ",
        ),
        ({"family": "qwen3"}, "the families differ (qwen3 and llama)"),
    ],
)
def test_another_architecture_is_refused_by_name(
    engine: TransformersEngine, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    other = base_model(tmp_path / "other", **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="base") as caught:
        shared_session(engine, other, "none")
    assert words in str(caught.value)


def test_another_tokenizer_is_refused(
    engine: TransformersEngine, base: Path, tmp_path: Path
) -> None:
    other = fine_tune_of(base, tmp_path / "other")
    file = other / "tokenizer.json"
    text = file.read_text()
    changed = text.replace('"a":', '"\\u0001a":', 1)
    assert changed != text
    file.write_text(changed)
    with pytest.raises(UserError, match="the tokenizers differ"):
        shared_session(engine, other, "none")


@pytest.mark.parametrize(
    ("layers", "words"),
    [("4", "there is no layer 4"), ("2-1", "ends before"), ("a", "no set of layers")],
)
def test_bad_layers_are_refused(
    engine: TransformersEngine, base: Path, layers: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        shared_session(engine, base, layers)
