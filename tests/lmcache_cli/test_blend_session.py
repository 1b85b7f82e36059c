"""Blend in the transformers engine: what is stored, reused, counted and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity

from cache_core.blend.selection import chosen
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.transformers.blend import session as session_module
from lmcache_cli.engines.transformers.blend.session import BlendSession
from lmcache_cli.engines.transformers.engine import TransformersEngine
from lmcache_cli.errors import UserError
from lmcache_cli.modes.blend import ContentOracle
from tests.lmcache_cli.blend_world import (
    CHUNK,
    asking,
    blend_session,
    parts,
    serve,
    small_engine,
    warm,
)
from tests.lmcache_cli.small_model import save_model
from workloads import Request

pytestmark = pytest.mark.engine


def test_chunks_are_stored_behind_the_answer_and_kept_as_they_were(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    texts = parts()
    session = blend_session(engine, ratio=0.5)
    request = asking(texts)
    first = serve(session, request)
    assert first.hits == 0 and session.held_chunks() == 0, "encoding comes after the answer"
    session.settle()
    assert session.held_chunks() == 1 + 6, "the system prompt, two chunks of each passage"
    warm(session, texts)
    logits = []
    for order in ([1, 2, 3], [3, 1, 2], [1, 2, 3], [1, 2, 3]):
        again = asking([texts[0], *(texts[i] for i in order), texts[-1]])
        sample = serve(session, again)
        session.settle()
        assert sample.hits == 10 + 6 * CHUNK
        logits.append(session.logits)
    # Rotating and recomputing for one request must not reach what the next one loads.
    assert torch.equal(logits[0], logits[2]) and torch.equal(logits[0], logits[3])
    session.close()


def test_a_missing_passage_is_computed_and_the_rest_reused(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    texts, others = parts(), parts(seed=1)
    session = blend_session(engine, ratio=0)
    warm(session, texts)
    mixed = asking([texts[0], texts[2], others[1], texts[1], texts[-1]])
    sample = serve(session, mixed)
    assert sample.hits == 10 + 4 * CHUNK
    assert sample.selected_tokens == 0
    n = len(mixed.token_ids)
    assert sample.token_layer_share == pytest.approx((n - 10 - 4 * CHUNK) / n)
    session.close()


def test_without_segments_a_segment_is_found_by_its_first_chunk(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    session = blend_session(engine, ratio=0, encoding="none")
    texts = parts()
    serve(session, asking([texts[0][:1], *texts[1:]], "a"))
    session.settle()
    moved = np.concatenate([texts[0], texts[2], texts[-1][:3], texts[1], texts[-1]])
    sample = serve(session, Request("b", "s", 0.0, moved, (), 1))
    assert sample.hits == sample.blended_tokens == 4 * CHUNK
    session.close()


def test_a_segment_is_encoded_whole_whatever_the_chunk_length(tmp_path: Path) -> None:
    """Its KV is that of a chunk as long as the passage, tail and all."""
    engine = small_engine(tmp_path)
    found = []
    texts = parts(length=2 * CHUNK + 5)
    for size in (CHUNK, 64):
        tiers = {"cpu": 100 * size * engine.token_bytes()}
        spec = CacheSpec(size, tiers, mode="blend", blend=BlendSettings(0.0))
        session: Any = engine.open(spec, 256)
        session.keep_logits = True
        sample = serve(session, warm(session, texts))
        assert sample.hits == 10 + 3 * (2 * CHUNK + 5)
        found.append(session.logits)
        session.close()
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_a_passage_whose_end_was_evicted_is_learnt_in_the_memory_of_one_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt as long as the buffers: what is stored of a passage that is encoded again is
    not fetched beside it."""
    engine = small_engine(tmp_path)
    rng = np.random.default_rng(0)
    lengths = (10, CHUNK, 9 * CHUNK, 9)
    texts = [rng.integers(0, 256, length).astype(np.int32) for length in lengths]
    tiers = {"cpu": 10 * CHUNK * engine.token_bytes()}
    spec = CacheSpec(CHUNK, tiers, mode="blend", blend=BlendSettings(0.25))
    session: Any = engine.open(spec, sum(lengths) + 4)
    for turn in range(4):
        serve(session, asking(texts, f"r{turn}"))
        session.settle()
        assert session.held_chunks() == 10, "one less than the prompt has"
    assert not caplog.records, "chunks were read to where there is no room"
    session.close()


def test_a_passage_is_reused_once_it_was_seen_often_enough(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    session = blend_session(engine, ratio=0.25)
    system, a, b, c, question = parts()

    def hits(*passages: np.ndarray) -> int:
        sample = serve(session, asking([system, *passages, question]))
        session.settle()
        return sample.hits

    length = 2 * CHUNK
    # What stands where it is encoded is exact, and says nothing of other places; behind one
    # passage there is half as much to see as behind two.
    assert hits(a, b, c) == 0
    assert hits(c, b, a) == 10 + length
    assert hits(b, c, a) == 10 + length
    assert hits(c, b, a) == 10 + 2 * length
    assert hits(c, b, a) == 10 + 2 * length
    assert hits(c, b, a) == 10 + 3 * length
    session.close()


def test_the_tokens_that_were_seen_to_lack_most_are_computed_again(tmp_path: Path) -> None:
    """As a slow look at both KVs, in both contexts, has them; what is reused is their average."""
    engine = small_engine(tmp_path)
    texts = parts()
    session = blend_session(engine, ratio=0.25)
    session.prompts.seen.least = 1.5
    for order in ([3, 2, 1], [1, 3, 2]):
        request = asking([texts[0], *(texts[i] for i in order), texts[-1]])
        serve(session, request)
        session.settle()
    runner, passage = engine.layers(), texts[2]
    alone = torch.zeros(4, 2, engine.loaded.kv_heads, 128, engine.loaded.head_dim)
    system, expected = texts[0], np.zeros(2 * CHUNK, dtype=np.float32)
    with torch.inference_mode():
        ids = torch.from_numpy(np.concatenate([system, passage]).astype(np.int64))
        runner.behind(ids, alone, 0)
        total = alone[..., 10 : 10 + 2 * CHUNK, :].clone()
        for before in (texts[3], np.concatenate([texts[1], texts[3]])):
            context = torch.zeros_like(alone)
            both = np.concatenate([system, before, passage]).astype(np.int64)
            runner.behind(torch.from_numpy(both), context, 0)
            n, moved = len(both), len(before)
            counts = moved / (4 * CHUNK)
            total[:, 0] += counts * runner.rope.rotate(context[:, 0, :, n - 2 * CHUNK : n], -moved)
            total[:, 1] += counts * context[:, 1, :, n - 2 * CHUNK : n]
            for layer in range(4):
                k, v = context[layer, :, :, n - 2 * CHUNK : n]
                k_alone = runner.rope.rotate(alone[layer, 0, :, 10 : 10 + 2 * CHUNK], moved)
                apart = np.zeros(2 * CHUNK, dtype=np.float32)
                for one, other in ((k, k_alone), (v, alone[layer, 1, :, 10 : 10 + 2 * CHUNK])):
                    square = (one - other).square().sum((0, 2)) / one.square().mean()
                    apart += square.numpy()
                expected = np.maximum(expected, apart)
    prompt = session.prompts.of(request)
    pieces = [p for p in prompt.pieces if p.segment == 10 + 4 * CHUNK]
    found = np.concatenate([session.prompts.seen.get(piece.key) for piece in pieces])
    np.testing.assert_allclose(found, expected, rtol=1e-2)
    last = asking([texts[0], texts[3], texts[2], texts[-1]])
    assert serve(session, last).blended_tokens == 2 * CHUNK
    reused = session._last[0].tensor[..., 10 + 2 * CHUNK : 10 + 4 * CHUNK, :]  # type: ignore[index]
    kept = ~chosen(expected, 0.25)
    average = total / 2.5
    average[:, 0] = runner.rope.rotate(average[:, 0], 2 * CHUNK)
    torch.testing.assert_close(reused[..., kept, :], average[..., kept, :], rtol=1e-3, atol=1e-3)
    session.close()


@pytest.mark.parametrize("lasting", [True, False])
def test_what_was_seen_is_kept_with_a_named_cache(
    lasting: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A later process reuses what an earlier one has left on disk, at once or not at all."""
    engine = small_engine(tmp_path)
    texts = parts()
    tiers = {"disk": 64 << 20}
    folder = tmp_path / "disk"
    spec = CacheSpec(CHUNK, tiers, "lru", "write_on_insertion", "s", folder, mode="blend")
    spec = replace(spec, lasting=lasting, blend=BlendSettings(0.25))
    for again in (False, True):
        session: Any = engine.open(spec, 256)
        if again:
            session.prompts.seen.least = 1.0
            assert serve(session, asking(texts)).hits == (10 + 6 * CHUNK if lasting else 10 + 32)
        else:
            warm(session, texts)
        session.close()
    assert not caplog.records, "the table is one of the tier's own files"


def test_chunks_behind_another_system_prompt_are_others(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    session = blend_session(engine)
    texts = parts()
    warm(session, texts)
    other = asking([texts[0][::-1].copy(), *texts[1:]])
    assert serve(session, other).hits == 0
    session.close()


@pytest.mark.parametrize(("ratio", "chunks"), [(0.0, 100), (0.25, 100), (0.25, 20), (1.0, 100)])
def test_the_oracle_knows_the_hits_of_every_ratio(
    ratio: float, chunks: int, tmp_path: Path
) -> None:
    engine = small_engine(tmp_path)
    tiers = {"cpu": chunks * CHUNK * engine.token_bytes()}
    spec = CacheSpec(CHUNK, tiers, mode="blend", blend=BlendSettings(ratio))
    session: Any = engine.open(spec, 256)
    oracle = ContentOracle(session.spec, session.capacities(), engine.bos)
    rng = np.random.default_rng(0)
    pool = [rng.integers(0, 256, 24).astype(np.int32) for _ in range(5)]
    hits = []
    for i in range(24):
        system, *_, question = parts(seed=0)
        chosen = [pool[j] for j in rng.permutation(5)[:3]]
        request = asking([system, *chosen, question], f"r{i}")
        expected = oracle.expect(request)
        sample = serve(session, request)
        assert 0 <= session.judge(request).agreement <= 1
        session.settle()
        assert sample.hits == expected
        hits.append(sample.hits)
    assert hits[-1] == (0 if ratio == 1 else 10 + 3 * 24) or chunks < 100
    session.close()


def peak_bytes(profile: Any) -> int:
    """Most bytes that torch's allocator had given out at one time, beyond those at the start."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(live.max(initial=0))


def test_memory_beside_the_arena_is_less_than_half_of_the_kv(tmp_path: Path) -> None:
    """A model of the usual proportions: many layers, each with KV as wide as the model."""
    sizes = dict(num_hidden_layers=24, hidden_size=64, intermediate_size=128, head_dim=16)
    folder = save_model(tmp_path, "llama", max_position_embeddings=2048, **sizes)
    engine = TransformersEngine(str(folder))
    tiers = {"cpu": 200 * CHUNK * engine.token_bytes()}
    spec = CacheSpec(CHUNK, tiers, mode="blend", blend=BlendSettings(ratio=0.3))
    session: Any = engine.open(spec, 1200)
    texts = parts(passages=4, length=16 * CHUNK)
    request = warm(session, texts)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        sample = serve(session, request)
    assert sample.blended_tokens == 3 * 16 * CHUNK
    assert 0 < peak_bytes(run) < 0.5 * len(request.token_ids) * engine.token_bytes()
    session.close()


def test_unknown_families_are_refused_by_name(tmp_path: Path) -> None:
    import transformers

    folder = save_model(tmp_path, "llama")
    config = transformers.GraniteConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    engine = TransformersEngine(str(folder))
    with pytest.raises(UserError, match="'granite'"):
        blend_session(engine)


def test_a_rehearsal_changes_nothing(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    found = []
    for rehearsed in (False, True):
        session = blend_session(engine, ratio=0.3)
        if rehearsed:
            session.rehearse()
            assert session.held_chunks() == 0
        request = warm(session, parts())
        sample = serve(session, request)
        found.append((sample.hit_tokens, sample.output_ids, session.logits.tolist()))
        session.close()
    assert found[0] == found[1]


def test_a_session_on_a_gpu_rehearses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine(tmp_path)
    rehearsed: list[str] = []
    monkeypatch.setattr(BlendSession, "rehearse", lambda self: rehearsed.append("once"))
    session = blend_session(engine)
    session.ready()
    assert not rehearsed
    session.close()
    monkeypatch.setattr(engine.layers(), "device", torch.device("cuda"))
    session = blend_session(engine)
    session.ready()
    session.ready()
    assert rehearsed == ["once"]
    session.close()


def test_the_clock_waits_for_what_was_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a call returns before its work is done."""
    engine = small_engine(tmp_path)
    session = blend_session(engine, ratio=0.3)
    request = warm(session, parts())
    done: list[str] = []
    rotate, now = session.runner.rope.rotate, engine.now

    def turn(k: torch.Tensor, delta: int, *, in_place: bool) -> torch.Tensor:
        done.append("turned")
        return rotate(k, delta, in_place=in_place)

    def clock() -> float:
        done.append("clock")
        return now()

    monkeypatch.setattr(session.runner.rope, "rotate", turn)
    monkeypatch.setattr(session_module, "wait_for", lambda device: done.append("waited"))
    monkeypatch.setattr(engine, "now", clock)
    serve(session, request)
    turned = len(done) - 1 - done[::-1].index("turned")
    assert done[turned + 1 : turned + 3] == ["waited", "clock"]
    session.close()


def test_any_device_memory_has_chunks_at_any_place(tmp_path: Path) -> None:
    """Where a GPU has no kernels of ours, torch moves the chunks: the same answer."""
    engine = small_engine(tmp_path)
    found = []
    for own in (True, False):
        session = blend_session(engine, ratio=0.3)
        for buffer in engine._arenas:
            buffer._paged = buffer._paged if own else None
        request = warm(session, parts())
        sample = serve(session, request)
        assert sample.hits == 10 + 6 * CHUNK
        found.append((sample.output_ids, session.logits.tolist()))
        session.close()
    assert found[0] == found[1]
