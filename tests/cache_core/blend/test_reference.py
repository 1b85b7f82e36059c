"""The gates of blend, for the reference, on tinyqa's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.blend_rules.known import Deviation, Rows, every, first, nothing, scattered
from benchmarks.blend_rules.reference import KV, Reference, Reused
from tests.models.tinyqa_task import BOS, questions

pytestmark = pytest.mark.engine

FOLDER = Path(__file__).parents[2] / "models" / "tinyqa"


@pytest.fixture(scope="module")
def reference() -> Reference:
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return Reference(model.eval())


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> list[Reused]:
    return [reference.reuse(q.ids, q.starts, BOS) for q in questions(3, 4, 6, ("cross",))]


def test_all_rows_are_a_full_prefill(reference: Reference, prompts: list[Reused]) -> None:
    for prompt in prompts:
        done = reference.blend(prompt, Rows(every), last=len(prompt.ids))
        with torch.no_grad():
            full = reference.model(torch.tensor([prompt.ids]))
        torch.testing.assert_close(done.logits, full.logits[0], rtol=0, atol=1e-4)
        assert (done.logits - full.logits[0]).abs().max() <= 1e-5 * full.logits.abs().max()
        assert done.work == 1


def test_no_rows_are_naive_reuse(reference: Reference, prompts: list[Reused]) -> None:
    """transformers continues a cache of the reused KV to the same logits."""
    for prompt in prompts:
        done = reference.blend(prompt, Rows(nothing), last=len(prompt.ids) - prompt.question)
        cache = transformers.DynamicCache()
        for layer in range(len(reference.layers)):
            k, v = (
                x[layer, : prompt.question].transpose(0, 1)[None]
                for x in (prompt.kv.k, prompt.kv.v)
            )
            cache.update(k, v, layer)
        with torch.no_grad():
            naive = reference.model(
                torch.tensor([prompt.ids[prompt.question :]]), past_key_values=cache
            )
        torch.testing.assert_close(done.logits, naive.logits[0], rtol=0, atol=1e-4)
        assert done.work == pytest.approx(1 - prompt.question / len(prompt.ids))


@pytest.mark.parametrize("place", [20, 45])
def test_nothing_sees_the_future(reference: Reference, prompts: list[Reused], place: int) -> None:
    """KV changed behind a position leaves the new KV of the rows up to it as it was, to the bit."""
    prompt = prompts[0]
    choose = scattered(0.5, 0)(prompt)
    noise = torch.zeros_like(prompt.kv.k)
    noise[:, place + 1 : prompt.question] = 3.0
    other = replace(prompt, kv=KV(prompt.kv.k + noise, prompt.kv.v - noise))
    before = reference.blend(prompt, Rows(lambda _: choose))
    after = reference.blend(other, Rows(lambda _: choose))
    assert torch.equal(before.kv.k[:, : place + 1], after.kv.k[:, : place + 1])
    assert torch.equal(before.kv.v[:, : place + 1], after.kv.v[:, : place + 1])
    assert not torch.equal(before.logits, after.logits)


def test_the_first_segment_and_layer_0_are_exact(
    reference: Reference, prompts: list[Reused]
) -> None:
    for prompt in prompts:
        full = reference.encode(prompt.ids)
        near: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
        part = slice(0, prompt.exact)
        torch.testing.assert_close(prompt.kv.k[:, part], full.k[:, part], **near)
        torch.testing.assert_close(prompt.kv.v[:, part], full.v[:, part], **near)
        whole = slice(0, prompt.question)
        torch.testing.assert_close(prompt.kv.k[0, whole], full.k[0, whole], **near)
        assert (prompt.kv.v[3, whole] - full.v[3, whole]).abs().max() > 1


def test_rotating_by_nothing_is_a_copy(reference: Reference) -> None:
    x = torch.randn(5, 2, reference.head_dim)
    assert torch.equal(reference.rotate(x, torch.zeros(5, dtype=torch.long)), x)


def test_rows_only_shrink_and_the_question_stays(
    reference: Reference, prompts: list[Reused]
) -> None:
    for prompt in prompts:
        done = reference.blend(prompt, Deviation(2, 0.2))
        sizes = [len(rows) for rows in done.rows]
        assert sizes[0] == sizes[1] == len(prompt.ids) and sizes[2] == sizes[4] < sizes[1]
        asked = set(range(prompt.question, len(prompt.ids)))
        for upper, lower in zip(done.rows[1:], done.rows, strict=False):
            assert asked <= set(upper.tolist()) <= set(lower.tolist())


def test_the_first_of_each_chunk(prompts: list[Reused]) -> None:
    rows = set(first(0.1)(prompts[0]).tolist())
    assert set(prompts[0].starts[:-1]) <= rows and len(rows) < 0.2 * prompts[0].question
