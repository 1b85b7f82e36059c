"""Blend inside unmodified vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm

SEGMENTS = 4 * 160


@pytest.fixture(scope="module")
def blend(scenario: Scenario) -> dict[str, Any]:
    found: dict[str, Any] = scenario("blend")
    return found


def test_computing_every_reused_token_is_full_prefill(blend: dict[str, Any]) -> None:
    plain = blend["plain"]["second"]
    for way in ("ratio 0.9999", "found"):
        assert blend[way]["tokens"] == plain["tokens"], way
        assert blend[way]["logprob"] == pytest.approx(plain["logprob"], abs=1e-3)
        assert blend[way]["cached"] >= SEGMENTS


def test_what_was_seen_is_computed_again(blend: dict[str, Any]) -> None:
    """Passages are reused once they were seen in contexts; then part of them is computed."""
    cached = [asked["cached"] for asked in blend["learning"]]
    assert cached[0] == 0 and cached[-1] >= SEGMENTS - 160
    assert blend["seen"] == SEGMENTS // 32
    plain = blend["plain"]["second"]["logprob"]
    part, none = (abs(blend[f"ratio {r}"]["logprob"] - plain) for r in ("0.3", "0.0"))
    assert blend["ratio 0.3"]["cached"] >= SEGMENTS
    assert part != none


def test_a_question_on_the_same_passages_costs_its_own_tokens(blend: dict[str, Any]) -> None:
    assert blend["followed"]["cached"] >= SEGMENTS


def test_naive_reuse_is_something_else(blend: dict[str, Any]) -> None:
    gap = abs(blend["ratio 0.0"]["logprob"] - blend["plain"]["second"]["logprob"])
    assert blend["ratio 0.0"]["cached"] >= SEGMENTS
    assert gap > 1e-2


def test_requests_without_segments_are_untouched(blend: dict[str, Any]) -> None:
    assert blend["untouched"]["tokens"] == blend["plain"]["second"]["tokens"]
    assert blend["wrong"]["tokens"] == blend["plain"]["other"]["tokens"]
    # Nothing blended was there to be found: neither in vLLM's prefix cache nor in ours.
    assert blend["untouched"]["cached"] < 160


def test_blended_and_plain_requests_in_one_batch(blend: dict[str, Any]) -> None:
    second, other = blend["plain"]["second"]["tokens"], blend["plain"]["other"]["tokens"]
    assert blend["batch"] == [second, other, second]


def test_borrowed_blocks_are_given_back(blend: dict[str, Any]) -> None:
    before, after = blend["blocks"]
    assert before == after


def test_a_lost_chunk_is_computed(blend: dict[str, Any]) -> None:
    assert blend["lost"]["tokens"] == blend["plain"]["second"]["tokens"]


def test_reused_and_computed_tokens_are_counted(blend: dict[str, Any]) -> None:
    assert blend["counts"]["blend_reused_tokens"] > SEGMENTS
    assert blend["counts"]["blend_computed_tokens"] > 0


def test_4000_known_tokens_and_plain_requests_beside_blended_ones(scenario: Scenario) -> None:
    found = scenario("blend_mixed")
    full, whole = found["tokens"]
    assert found["cached"] >= 3840
    assert whole == full
    naive_kl, whole_kl = found["kl"]
    assert abs(whole_kl) < 1e-6 < 1e-3 < naive_kl
    assert found["plain"] == 25
    assert found["differ"] == []


def test_two_ranks(scenario: Scenario) -> None:
    found = scenario("blend_ranks")
    plain, whole, naive = found["plain"], found["whole"], found["naive"]
    assert whole["cached"] >= SEGMENTS
    assert whole["tokens"] == plain["tokens"]
    assert whole["logprob"] == pytest.approx(plain["logprob"], abs=1e-3)
    assert abs(naive["logprob"] - plain["logprob"]) > 1e-2
    assert found["after"]["tokens"] == plain["tokens"]
