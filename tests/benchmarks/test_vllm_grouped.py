"""Models whose layers keep different things, under vLLM's own scheduler: random histories, what of
them is kept, and what is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_process import run_with_vllm

pytestmark = pytest.mark.vllm

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    said = run_with_vllm(HERE / "scenario_grouped.py", timeout_s=900)
    outcome: dict[str, Any] = json.loads(said.splitlines()[-1])
    return outcome


def test_a_hit_reads_of_each_group_what_is_needed_and_no_more(found: dict[str, Any]) -> None:
    """Of 50 chunks of 32 tokens: of a window of 100 the last four, of a state the last."""
    chunks = {
        "full+window": [50, 4],
        "full+local": [50, 2],
        "full+state": [50, 1],
        "window": [4],
        # Chunks are as long as the longest blocks here.
        "lengths+state": [25, 1],
    }
    for kind, counts in chunks.items():
        history = found[f"loaded, {kind}"]
        assert (history["chunks"], history["loads"]) == (counts, 1), kind
        assert history["spared"] == [0, 1600] and history["wrong"] == [], kind


@pytest.mark.parametrize("kind", ["full+window", "full+state", "window", "lengths+state"])
def test_a_branch_point_that_was_seen_is_kept(found: dict[str, Any], kind: str) -> None:
    assert found[f"branch, {kind}"] == {"spared": [0, 0, 640], "wrong": []}


def test_where_a_span_begins_nothing_has_to_be_kept(found: dict[str, Any]) -> None:
    """640 tokens are five whole spans of local attention: what comes next reads none of them."""
    assert found["branch, full+local"] == {"spared": [0, 640, 640], "wrong": []}


@pytest.mark.parametrize("kind", ["full+window", "window"])
def test_blocks_that_a_window_left_are_saved_before_they_are_overwritten(
    found: dict[str, Any], kind: str
) -> None:
    assert found[f"overwritten, {kind}"] == {"spared": [384] * 4, "wrong": []}


def test_what_has_come_to_dram_by_itself_is_left_there(found: dict[str, Any]) -> None:
    assert found["nearer"] == {"moved": 0, "pinned": 0}


def test_what_is_read_ahead_under_former_keys_takes_no_room_in_dram(found: dict[str, Any]) -> None:
    assert found["renewed"] == {"as ever": [0, 1], "renewed": []}


def test_what_no_tier_can_be_read_for_is_not_promised(found: dict[str, Any]) -> None:
    """Two chunks, and a state of the second alone."""
    assert found["paused"] == [[64, 3], [0, 0]]


def test_a_shorter_hit_promises_no_more_than_a_longer_one(found: dict[str, Any]) -> None:
    """It needs the state at its own end, which is in another tier than the longer one's."""
    assert found["elsewhere"] == {"out": [0, 0], "unheard": [0, 0], "there": [32, 2]}


def test_a_request_whose_load_failed_lets_those_run_that_hold_blocks(found: dict[str, Any]) -> None:
    assert found["in the way"] == {"lost": True, "ended": ["r0", "r1"], "stuck": []}


def test_a_vllm_that_can_not_be_asked_has_no_prefetch_and_goes_on(found: dict[str, Any]) -> None:
    assert found["another vLLM"] == 70


@pytest.mark.parametrize("trace", ["chat", "agent"])
@pytest.mark.parametrize("kind", ["full+window", "full+state"])
def test_what_is_kept_is_what_is_hit(found: dict[str, Any], kind: str, trace: str) -> None:
    history = found[f"kept, {kind}, {trace}"]
    worth, everything = history["worth"], history["all"]
    assert worth["wrong"] == everything["wrong"] == []
    assert worth["spared"] > 0.9 * everything["spared"] > 0
    assert saved(worth, everything, "held") > 0.02
    assert saved(worth, everything, "parts") > 0.2


def saved(worth: dict[str, Any], everything: dict[str, Any], of: str) -> float:
    """The share of the bytes held for each token that a hit spared which is not needed."""
    return float(1 - worth[of] / worth["spared"] / (everything[of] / everything["spared"]))


@pytest.mark.parametrize(
    "kind", ["latent", "quantised", "window", "full+windows", "full+local", "lengths+state"]
)
def test_random_histories(histories: dict[str, str], kind: str) -> None:
    """A few of the many that ``python -m benchmarks.vllm_simulation`` looks at."""
    assert histories[kind].startswith("seeds 6, steps ")
    assert histories[kind].endswith(", wrong 0, leaks 0")


@pytest.fixture(scope="module")
def histories() -> dict[str, str]:
    kinds = ["latent", "quantised", "window", "full+windows", "full+local", "lengths+state"]
    arguments = ["--kinds", *kinds, "--seeds", "0:6"]
    said = run_with_vllm("-m", "benchmarks.vllm_simulation", *arguments, timeout_s=900)
    lines = [line for line in said.splitlines() if line.startswith("seeds ")]
    return dict(zip(kinds, lines, strict=True))
