"""The connector under vLLM's own scheduler: what once went wrong, and random histories."""

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
    said = run_with_vllm(HERE / "scenario_scheduling.py", timeout_s=900)
    outcome: dict[str, Any] = json.loads(said.splitlines()[-1])
    return outcome


@pytest.mark.parametrize("kind", ["", ", async"])
def test_loads_that_fail_change_no_token(found: dict[str, Any], kind: str) -> None:
    history = found[f"failed loads{kind}"]
    assert history["failed"] > 20, "nothing was tried"
    assert history["compared"] == 60
    assert history["wrong"] == []
    assert history["leaks"] == {}


@pytest.mark.parametrize("how", ["reset", "pause", "reset, async", "pause, async"])
def test_a_reset_right_behind_a_request_succeeds_and_nothing_old_is_found(
    found: dict[str, Any], how: str
) -> None:
    history = found[how]
    assert history["pending"] == 10, "the saves are to be under way"
    assert history["done"] == 1
    assert history["spared"] == 0
    assert history["wrong"] == []
    assert history["leaks"] == {}


def test_blocks_are_free_at_once_and_saved_before_they_are_overwritten(
    found: dict[str, Any],
) -> None:
    history = found["overwritten"]
    assert history["free"] == history["blocks"] - 1  # one is vLLM's own
    assert history["spared"] == 384, "all that was saved is right"
    assert history["wrong"] == []
    assert history["leaks"] == {}


def test_what_a_failed_load_spoilt_is_saved_for_nobody(found: dict[str, Any]) -> None:
    """Nor what requests computed on top of it that share its blocks."""
    assert found["neighbours"]["lost"] > 5, "nothing was tried"
    assert found["neighbours"]["wrong"] == []


@pytest.mark.parametrize("how", ["write", "reset"])
def test_what_tiers_lost_is_saved_again(found: dict[str, Any], how: str) -> None:
    assert found[f"holes, {how}"] == {"spared": 320, "wrong": []}


def test_vllm_goes_on_until_all_is_saved(found: dict[str, Any]) -> None:
    """Before sleep, too, which takes the memory away."""
    assert found["idle"] == {"saving": True, "saved": False}


def test_nobody_waits_for_a_tier_to_take_what_vllm_has(found: dict[str, Any]) -> None:
    assert found["own_prefix"] == {"steps": 1, "spared": 320}


def test_hits_in_an_idle_engine_are_not_loaded_one_after_the_other(found: dict[str, Any]) -> None:
    assert found["burst"] == {"in step": 1, "loads": 16, "wrong": []}


def test_decoding_costs_what_is_new(found: dict[str, Any]) -> None:
    history = found["decoding"]
    assert history["first"] == 32  # the prompt, in one
    assert history["then"] == [1]
    assert history["times"] == 1 + 9  # 320 tokens and no block for the last
    assert history["blocks of a save"] == [1]
    # Once, at the end: the order of one use.
    assert history["touched"] == [41]
    assert history["head outlives tail"] is True


def test_prompts_are_not_hashed_by_the_scheduler(found: dict[str, Any]) -> None:
    assert found["hashing"] == {"scheduled": 0, "wrong": [], "leaks": {}}


def test_what_can_not_be_hashed_is_computed_and_counted(found: dict[str, Any]) -> None:
    history = found["unhashable"]
    assert history["spared"] == 0
    assert history["reasons"] == {"uncached_requests:unhashable": 1}
    assert history["again"] == 319
    assert history["leaks"] == {}


@pytest.mark.parametrize("how", ["used", "exclusive"])
def test_chunks_of_a_request_that_waits_move_to_dram_within_the_budget(
    found: dict[str, Any], how: str
) -> None:
    history = found[f"prefetch, {how}"]
    assert history["most"] == 6
    assert history["loaded"] == [6, 2], "from DRAM and from disk"
    assert history["counts"] == {
        "prefetched_chunks:disk": 6,
        "prefetched_bytes:disk": 6 * 16384,
        "prefetch_used_chunks": 6,
    }
    assert history["wrong"] == [] and history["leaks"] == {}


def test_chunks_from_the_middle_of_a_prompt_move_too(found: dict[str, Any]) -> None:
    history = found["prefetch, middle"]
    assert history["counts"]["prefetch_used_chunks"] > 0
    assert history["wrong"] == [] and history["leaks"] == {}


def test_a_request_that_ends_while_it_waits_leaves_nothing_pinned(found: dict[str, Any]) -> None:
    """And vLLM goes on with steps until what was being read for it is done with."""
    history = found["prefetch, aborted"]
    assert history["pinned"] == 6 and history["going on"]
    assert history["counts"]["prefetch_unused_chunks"] == 6
    assert history["leaks"] == {}


def test_a_prefetch_that_fails_costs_nothing_but_itself(found: dict[str, Any]) -> None:
    history = found["prefetch, failing"]
    assert history["most"] > 0, "nothing was tried"
    assert "prefetched_chunks:disk" not in history["counts"]
    assert history["wrong"] == [] and history["leaks"] == {}


def test_a_hit_grows_while_its_request_waits(found: dict[str, Any]) -> None:
    assert found["grows"] == {"waited": True, "spared": 640, "wrong": []}


def test_random_histories() -> None:
    """A few of the many that ``python -m benchmarks.vllm_simulation`` looks at."""
    said = run_with_vllm("-m", "benchmarks.vllm_simulation", "--seeds", "0:12", timeout_s=900)
    last = said.splitlines()[-1]
    assert last.startswith("seeds 12, steps ") and last.endswith(", wrong 0, leaks 0")


def test_many_random_histories() -> None:
    said = run_with_vllm("-m", "benchmarks.vllm_simulation", "--seeds", "12:200", timeout_s=1800)
    last = said.splitlines()[-1]
    assert last.startswith("seeds 188, steps ") and last.endswith(", wrong 0, leaks 0")
