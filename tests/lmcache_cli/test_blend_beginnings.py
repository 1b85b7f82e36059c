"""What a prompt begins with as an earlier one did, in the transformers engine's blend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcache_cli.engines.cache_spec import BlendSettings
from tests.lmcache_cli.blend_world import (
    CHUNK,
    asking,
    blend_session,
    parts,
    serve,
    small_engine,
    warm,
)

pytestmark = pytest.mark.engine


def test_another_question_costs_its_own_tokens(tmp_path: Path) -> None:
    """What a prompt begins with as an earlier one did is as that was: exact behind one that was
    computed in full, else blended; no token of it is computed again."""
    engine = small_engine(tmp_path)
    texts, length = parts(), 2 * CHUNK
    session = blend_session(engine, beginnings=True, ratio=0.25)
    other = texts[-1][::-1].copy()
    assert serve(session, asking(texts)).hits == 0
    again = serve(session, asking([*texts[:-1], other], "other"))
    assert again.hits == 10 + 3 * length and again.blended_tokens == again.selected_tokens == 0
    assert again.token_layer_share == pytest.approx(9 / (19 + 3 * length))
    cold = engine.forward(engine.kv_buffer(), np.concatenate([*texts[:-1], other]), 0)
    torch.testing.assert_close(session.logits, cold, rtol=1e-3, atol=1e-3)
    # In another order nothing is known yet but what stands behind the system prompt.
    turned = asking([texts[0], texts[1], *texts[:1:-1], texts[-1]])
    assert serve(session, turned).hits == 10 + length
    session.settle()
    warm(session, texts)
    moved = [texts[0], texts[3], texts[1], texts[2]]
    first = serve(session, asking([*moved, texts[-1]], "moved"))
    kept = session._last[0].tensor[..., : 10 + 3 * length, :].clone()  # type: ignore[index]
    assert (first.hits, first.blended_tokens, first.selected_tokens) == (106, 64, 16)
    again = serve(session, asking([*moved, other], "again"))
    assert again.hits == again.prompt_tokens - 9 and again.selected_tokens == 0
    assert again.blended_tokens == first.blended_tokens
    assert again.token_layer_share == pytest.approx(9 / (19 + 3 * length))
    reused = session._last[0].tensor[..., : 10 + 3 * length, :]  # type: ignore[index]
    assert torch.equal(kept, reused), "as it stood, tokens that were computed again and all"
    # A blend of another ratio is another: of its prompt only what is exact is reused as it stands.
    session.choose(replace(session.spec, blend=BlendSettings(0.5)))
    assert serve(session, asking([*moved, other], "half")).selected_tokens == length
    session.close()


def test_a_passage_may_stand_in_a_prompt_twice(tmp_path: Path) -> None:
    """In its own place it is exact; behind others it is not, though it is held."""
    engine = small_engine(tmp_path)
    system, a, b, _, question = parts()
    session = blend_session(engine, beginnings=True, ratio=0.25)
    length = 2 * CHUNK
    serve(session, asking([system, a, question]))
    for order, hits in ([a, b, a], 10 + length), ([a, b, a], 10 + 3 * length):
        sample = serve(session, asking([system, *order, question], f"{hits}"))
        assert (sample.hits, sample.blended_tokens) == (hits, 0)
        cold = engine.forward(engine.kv_buffer(), asking([system, *order, question]).token_ids, 0)
        torch.testing.assert_close(session.logits, cold, rtol=1e-3, atol=1e-3)
        session.settle()
    session.close()


def test_a_prompt_goes_on_blended_where_its_beginning_ends(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    texts, length = parts(passages=4), 2 * CHUNK
    session = blend_session(engine, beginnings=True, ratio=0.25)
    warm(session, texts)
    system, a, b, c, d, question = texts
    exact = serve(session, asking([system, b, parts(seed=5)[1], a, c, question], "exact"))
    assert exact.hits > 0
    session.settle()
    serve(session, asking([system, d, c, question], "short"))
    session.settle()
    longer = serve(session, asking([system, d, c, b, a, question], "longer"))
    assert longer.hits == 10 + 4 * length
    assert longer.selected_tokens == 2 * length // 4, "of those that stand elsewhere than before"
    session.close()


def test_beginnings_take_a_quarter_of_the_room(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    session = blend_session(engine, beginnings=True, ratio=0.25)
    session.prompts.seen.least = 1.0
    rng = np.random.default_rng(0)
    texts = parts(passages=6)
    for turn in range(12):
        order = rng.permutation(np.arange(1, 7)).tolist()
        serve(session, asking([texts[0], *(texts[i] for i in order), texts[-1]], f"r{turn}"))
        session.settle()
        assert session.prompts.beginnings.most == 25
        # 1 of the system prompt, and of each passage 2 alone and 2 as an average.
        assert session.held_chunks() <= 1 + 4 * 6 + 25
    assert session.held_chunks() == 1 + 4 * 6 + 25
    session.tiers.check()
    session.clear()
    assert session.held_chunks() == 0
    session.close()
