"""What the connector takes from vLLM: replicas, resets, weights."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def found(scenario: Scenario) -> dict[str, Any]:
    outcome: dict[str, Any] = scenario("connector")
    return outcome


def test_replicas_have_folders_and_recordings_of_their_own(found: dict[str, Any]) -> None:
    assert found["replicas"] == ["dp-1-rank-0", "dp-1-trace.jsonl", "rank-0", "trace.jsonl"]


def test_keys_of_weights_that_nothing_names_are_found_by_nobody(found: dict[str, Any]) -> None:
    cases = found["generations"]
    again = {name: case["found again"] for name, case in cases.items()}
    # What is only in memory can't be found by others anyway.
    expected = {"proven": True, "dummy": False, "dummy, named": True, "dummy, cpu only": True}
    assert again == expected
    assert {name for name, case in cases.items() if case["warnings"]} == {"dummy"}
    assert 'give a folder, a revision, or "weights_id"' in cases["dummy"]["warnings"][0]


def test_every_reset_of_vllms_own_cache_is_heard(found: dict[str, Any]) -> None:
    # Its answer, whether vLLM's cache may be stale, and the generation: one that failed, one not.
    assert found["pool"]["seen"] == [[False, True, 1], [True, False, 2]]
    assert found["pool"]["after ours"] == [False, 3]


def test_steps_of_outdated_keys_are_refused(found: dict[str, Any]) -> None:
    assert found["watched"] == {"watched": True, "refused": [[], [], [0], [0], []]}


def test_fixed_weights_are_not_looked_at(found: dict[str, Any]) -> None:
    assert found["fixed"] == {"watched": False, "refused": [[], [], [], [], []]}


def test_no_load_is_inside_a_step_where_vllm_runs_ahead(found: dict[str, Any]) -> None:
    """What was computed on top of one that failed could not be taken back."""
    ahead = found["ahead"]
    assert {ahead[f"neither, {kind}"] for kind in ("auto", "sync", "True")} == {"in the step"}
    for name, how in (("async scheduling", "--no-async"), ("runner V2", "VLLM_USE_V2_MODEL")):
        assert ahead[f"{name}, auto"] == "between steps"
        assert re.search(f'load is "sync".*{how}.*use "auto"', ahead[f"{name}, sync"])
        assert re.search(f"blend loads inside a step.*{how}", ahead[f"{name}, True"])
