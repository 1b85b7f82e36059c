"""Selections on questions that need two documents: known results, and the offline profile's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.blend_rules.attention_guided import AttentionGuided
from benchmarks.blend_rules.calibrate import Calibrated, calibrate
from benchmarks.blend_rules.known import Deviation, Rows, every, first, nothing
from benchmarks.blend_rules.offline import Calibration, Offline, Profile
from benchmarks.blend_rules.reference import Reference, Reused, Selection
from tests.models.tinyqa_task import BOS, questions

pytestmark = pytest.mark.engine

FOLDER = Path(__file__).parents[2] / "models" / "tinyqa"
COUNT = 60

Scored = Callable[[Selection], tuple[float, float]]


@pytest.fixture(scope="module")
def reference() -> Reference:
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return Reference(model.eval())


@pytest.fixture(scope="module")
def calibrated(reference: Reference) -> Calibrated:
    asked = questions(900, 200, 6, ("named", "local", "cross"))
    prompts = [reference.reuse(q.ids, q.starts, BOS) for q in asked]
    return calibrate(reference, "tinyqa", prompts, range(5), ratio=0.2)


@pytest.fixture(scope="module", params=[6, 12])
def scored(request: pytest.FixtureRequest, reference: Reference) -> Scored:
    """Accuracy and work of a rule over prompts of 6 or 12 documents."""
    asked = questions(1, COUNT, request.param, ("cross",))
    prompts = [reference.reuse(q.ids, q.starts, BOS) for q in asked]

    def run(rule: Selection) -> tuple[float, float]:
        done = [reference.blend(prompt, rule) for prompt in prompts]
        pairs = zip(done, asked, strict=True)
        right = sum(int(one.logits[-1].argmax()) == q.answer for one, q in pairs)
        return right / COUNT, sum(one.work for one in done) / COUNT

    return run


def test_known_results(scored: Scored) -> None:
    """Wide bounds, for 60 prompts: naive .31 and .17, CacheBlend .43 and .25."""
    assert scored(Rows(every))[0] >= 0.95
    naive, _ = scored(Rows(nothing))
    assert 0.05 <= naive <= 0.50
    published, work = scored(Deviation(1, 0.15))
    assert 0.15 <= published <= 0.62 and 0.30 <= work <= 0.37
    assert scored(Deviation(2, 0.15))[0] >= 0.85
    assert abs(scored(Rows(first(0.15)))[0] - naive) <= 0.15


def test_the_profile_answers_at_a_fifth_of_the_work(
    scored: Scored, reference: Reference, calibrated: Calibrated
) -> None:
    accuracy, work = scored(Offline(calibrated.profile, 0.2, reference.rotate))
    assert accuracy >= 0.9 and work <= 0.22


def test_attention_answers_without_a_profile(scored: Scored) -> None:
    accuracy, work = scored(AttentionGuided(1, 0.2))
    assert accuracy >= 0.9 and work <= 0.4


def test_what_stood_in_one_document_stays_right(
    reference: Reference, calibrated: Calibrated
) -> None:
    asked = questions(2, 50, 6, ("named", "local"))
    rule = Offline(calibrated.profile, 0.2, reference.rotate)
    for question in asked:
        prompt = reference.reuse(question.ids, question.starts, BOS)
        assert int(reference.blend(prompt, rule).logits[-1].argmax()) == question.answer


def test_a_profile_comes_back_from_its_file(
    tmp_path: Path, reference: Reference, calibrated: Calibrated
) -> None:
    path = tmp_path / "profile.npz"
    calibrated.profile.save(path)
    again = Profile.load(path)
    assert (again.model, again.layers, again.target) == (
        "tinyqa",
        (0, 1, 2, 3, 4),
        calibrated.profile.target,
    )
    question = questions(5, 1, 6, ("cross",))[0]
    prompt = reference.reuse(question.ids, question.starts, BOS)
    chosen = [Offline(p, 0.2, reference.rotate).begin(prompt) for p in (calibrated.profile, again)]
    assert torch.equal(*chosen)


def test_scores_belong_to_the_chunk(reference: Reference, calibrated: Calibrated) -> None:
    """The same at any place: a store may keep them with the chunk."""
    question = questions(5, 1, 6, ("cross",))[0]
    prompt = reference.reuse(question.ids, question.starts, BOS)

    def last(prompt: Reused) -> torch.Tensor:
        at = torch.arange(len(prompt.ids))
        scores = calibrated.profile.scores(prompt.kv, at, reference.rotate)
        return scores[prompt.starts[-2] : prompt.starts[-1]]

    gone = prompt.starts[2] - prompt.starts[1]
    ids = prompt.ids[: prompt.starts[1]] + prompt.ids[prompt.starts[2] :]
    starts = (0, *(start - gone for start in prompt.starts[2:]))
    moved = reference.reuse(ids, starts, BOS)
    torch.testing.assert_close(last(prompt), last(moved), rtol=1e-3, atol=1e-3)


def test_a_profile_needs_prompts() -> None:
    with pytest.raises(ValueError, match="needs prompts"):
        Calibration("tinyqa", [0]).profiles()
