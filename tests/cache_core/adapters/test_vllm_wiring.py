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


def test_what_vllm_asks_of_a_connector_is_what_it_asked_before(found: dict[str, Any]) -> None:
    """A version that asks for more is seen here: answer it, or put it with what is left."""
    asked = found["asked"]
    assert asked["missing"] == []
    assert asked["abstract"] == [
        "build_connector_meta",
        "get_num_new_matched_tokens",
        "save_kv_layer",
        "start_load_kv",
        "update_state_after_alloc",
        "wait_for_layer_load",
        "wait_for_save",
    ]
    assert asked["left"] == [
        "bind_connector_metadata",
        "clear_connector_metadata",
        "finish_forward",
        "get_finished_count",
        "get_kv_connector_kv_cache_events",
        "get_loaded_kv_cache_group_ids",
        "get_mem_pool_context",
        "get_required_kvcache_layout",
        "has_connector_metadata",
        "has_pending_block_frees",
        "register_finished_partial_tail",
        "reset_capture_state",
        "role",
        "set_host_xfer_buffer_ops",
        "set_xfer_handshake_metadata",
        "supports_divergent_local_hybrid_hits",
    ]


def test_a_version_that_was_not_tested_is_warned_of(found: dict[str, Any]) -> None:
    warned = {version: bool(words) for version, words in found["versions"].items()}
    assert warned == {"0.32.0": False, "0.32.1+cpu": False, "0.33.0": True, "0.320.0": True}
    assert "tested with 0.32; run its tests" in found["versions"]["0.33.0"][0]
