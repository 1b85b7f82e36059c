"""KV events, as a router takes them, against what the Ledger holds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def found(scenario: Scenario) -> dict[str, Any]:
    outcome: dict[str, Any] = scenario("events")
    return outcome


def test_a_router_knows_what_tiers_hold_at_any_time(found: dict[str, Any]) -> None:
    for name, case in found["traffic"].items():
        assert case["checks"] > 5, name
        assert (name, case["differ"]) == (name, 0)
        # Tiers were full, and what left them was told.
        assert case["peak"]["CPU"] > 10 and case["peak"]["STORAGE"] > 20, name
        assert case["seen"]["BlockRemoved"] > 10, name


def test_blocks_are_told_once_with_tokens_that_hash_to_them(found: dict[str, Any]) -> None:
    for name, case in found["traffic"].items():
        assert (name, case["wrong"]) == (name, [])
        assert case["seen"]["BlockStored"] > 20, name


def test_nothing_is_remembered_of_what_is_gone(found: dict[str, Any]) -> None:
    for name, case in found["traffic"].items():
        assert (name, case["left"]) == (name, [0, 0])


def test_resets_are_among_the_traffic(found: dict[str, Any]) -> None:
    assert found["traffic"]["resets"]["seen"]["cleared"] > 0


def test_what_outlives_a_reset_of_vllms_own_cache_is_told_again(found: dict[str, Any]) -> None:
    case = found["fixed"]
    assert case["seen"]["cleared"] == 1
    assert case["before"] == 6 and case["same"] and case["gpu"] == [6, 0]
    assert (case["differ"], case["wrong"]) == (0, [])


def test_what_an_earlier_process_stored_is_told_when_it_is_loaded(found: dict[str, Any]) -> None:
    case = found["recovered"]
    assert case["unknown"] == []
    assert case["blocks"] == 6 and case["same"] == [True, True]
    assert (case["differ"], case["wrong"]) == (0, [])


def test_without_kv_events_nothing_is_kept(found: dict[str, Any]) -> None:
    assert found["off"] == {"events": None, "taken": [], "changed": 0}


def test_media_and_adapters_are_named_as_vllm_names_them(found: dict[str, Any]) -> None:
    rest = [7, "adapter", 64, [["adapter"], ["adapter"]]]
    assert found["alone"]["adapter"] == [
        ["CPU", None, *rest],
        ["STORAGE", "LOCAL", *rest],
        ["STORAGE", "REMOTE", *rest],
    ]


@pytest.mark.parametrize("what", ["blended", "unhashed"])
def test_what_no_router_could_match_is_not_told(found: dict[str, Any], what: str) -> None:
    assert found["alone"][what] == []
