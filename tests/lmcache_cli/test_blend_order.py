"""Blend in the transformers engine where room is short or a passage comes twice: what is reused,
learnt and foretold."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_core.blend.seen import SeenTable, sighting_worth
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.transformers.blend.session import BlendSession
from lmcache_cli.modes.blend import ContentOracle, lessons
from tests.lmcache_cli.blend_world import (
    CHUNK,
    asking,
    blend_session,
    parts,
    serve,
    small_engine,
)


def in_step(session: BlendSession) -> bool:
    """Whether the contexts that are summed up are those that were counted."""
    table = session.prompts.seen
    counted = {key: table._known[key][0] for key in table._new}
    return counted == {key: weight for key, (_, weight) in session._contexts._sums.items()}


@pytest.mark.engine
def test_a_passage_is_not_reused_elsewhere_as_it_is_in_its_own_place(tmp_path: Path) -> None:
    """It comes twice, and only the first is exact."""
    session = blend_session(small_engine(tmp_path), ratio=0.25)
    system, a, b, _, question = parts()
    serve(session, asking([system, a, question]))
    session.settle()
    again = serve(session, asking([system, a, b, a, question], "again"))
    assert again.hits == 10 + 2 * CHUNK and again.blended_tokens == 0
    session.close()


@pytest.mark.engine
def test_a_passage_that_is_seen_twice_in_a_prompt_is_learnt_by_both(tmp_path: Path) -> None:
    session = blend_session(small_engine(tmp_path), ratio=0.25)
    system, a, b, c, question = parts()
    serve(session, asking([system, b, c, a, a, question]))
    session.settle()
    assert in_step(session)
    prompt = session.prompts.of(asking([system, a, question]))
    averages = [prompt.average(piece) for piece in prompt.pieces if not prompt.is_lead(piece)]
    assert len(session._held(averages)) == 2
    session.close()


@pytest.mark.engine
def test_a_passage_whose_average_was_evicted_is_learnt_from_as_many_contexts(
    tmp_path: Path,
) -> None:
    """One made of a single context is not what a certificate was measured with."""
    session = blend_session(small_engine(tmp_path), ratio=0.25)
    system, a, b, c, question = parts()
    hits = []
    for turn in range(6):
        request = asking([system, b, c, a, question] if turn % 2 else [system, c, b, a, question])
        hits.append(serve(session, request).hits)
        session.settle()
        if turn == 2:
            prompt = session.prompts.of(request)
            last = [p for p in prompt.pieces if p.segment == 10 + 4 * CHUNK]
            session.tiers.discard([prompt.average(piece) for piece in last])
            assert len(last) == 2
    both, one = 10 + 4 * CHUNK, 10 + 2 * CHUNK
    assert hits[2:] == [both, one, one, both]
    session.close()


@pytest.mark.engine
def test_what_is_pushed_out_by_its_own_prompt_has_no_average(tmp_path: Path) -> None:
    session = blend_session(small_engine(tmp_path), ratio=0.25)
    system, *texts, question = parts(passages=5)
    session.prompts.seen.learning = 4 * CHUNK
    rng = np.random.default_rng(0)
    for turn in range(12):
        order = [texts[i] for i in rng.permutation(5)[:4]]
        serve(session, asking([system, *order, question], f"r{turn}"))
        session.settle()
        assert in_step(session)
    session.close()


@pytest.mark.engine
@pytest.mark.parametrize("policy", ["lru", "lfu-aging", "gdsf", "s3-fifo", "arc"])
@pytest.mark.parametrize("chunks", [5, 9, 14])
def test_the_oracle_knows_the_hits_of_a_full_tier(policy: str, chunks: int, tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    tiers = {"cpu": chunks * CHUNK * engine.token_bytes()}
    spec = CacheSpec(CHUNK, tiers, policy, mode="blend", blend=BlendSettings(0.25))
    session: Any = engine.open(spec, 256)
    oracle = ContentOracle(session.spec, session.capacities(), engine.bos)
    rng = np.random.default_rng(0)
    pool = [rng.integers(0, 256, int(length)).astype(np.int32) for length in (5, 16, 24, 32, 20)]
    system, *_, question = parts()
    for turn in range(30):
        some = [pool[i] for i in rng.permutation(5)[: rng.integers(1, 4)]]
        request = asking([system, *some, question], f"r{turn}", 1)
        expected = oracle.expect(request)
        assert serve(session, request).hits == expected
        session.settle()
    session.close()


@pytest.mark.engine
def test_of_a_beginning_without_room_the_head_stays(tmp_path: Path) -> None:
    session = blend_session(small_engine(tmp_path), beginnings=True, ratio=0.25)
    session.prompts.beginnings.most, session.prompts.seen.least = 3, 100.0
    texts = parts()
    found = []
    for turn in range(4):
        question = np.roll(texts[-1], turn)
        found.append(serve(session, asking([*texts[:-1], question], f"r{turn}")).hits)
        session.settle()
        kept = session.prompts.beginnings._kept
        assert len(kept) <= 3 and len(session._held(list(kept))) == len(kept)
    assert found == [0, *[10 + 5 * CHUNK] * 3]
    session.close()


@pytest.mark.parametrize(
    ("length", "count", "size", "together"), [(1565, 17, 5, 4096), (9, 14, 8, 40)]
)
def test_no_lesson_pushes_out_what_another_begins(
    length: int, count: int, size: int, together: int
) -> None:
    table = SeenTable(learning=together)
    for order in lessons([length] * count, size, None, together):
        for before, place in enumerate(order):
            worth = sighting_worth(length * before, length)
            table.add(bytes([place]), np.zeros(length, dtype=np.float32), worth)
    assert all(table.get(bytes([place])) is not None for place in range(count))


@pytest.mark.parametrize(
    ("lengths", "size", "room"), [([245, 100, 100], 2, 200), ([8000, 50], 2, 8050)]
)
def test_lessons_end(lengths: list[int], size: int, room: int) -> None:
    """Also with passages that have no room, or next to none before them."""
    assert len(list(islice(lessons(lengths, size, room), 100))) < 100
