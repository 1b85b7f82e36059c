"""The scheduler's gauges and histograms, against the Ledger counted anew."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def found(scenario: Scenario) -> dict[str, Any]:
    outcome: dict[str, Any] = scenario("observed")
    return outcome


def test_gauges_say_what_the_ledger_says_after_each_step(found: dict[str, Any]) -> None:
    case = found["traffic"]
    assert case["good"] and case["differ"] == []
    names = ("held_chunks:cpu", "held_bytes:disk", "pending_chunks:disk", "pinned_chunks")
    assert all(case["peak"][name] > 0 for name in names), case["peak"]


def test_evictions_are_counted_by_tier(found: dict[str, Any]) -> None:
    case = found["traffic"]
    assert case["evictions"]["cpu"] > 0
    for tier, count in case["evictions"].items():
        assert case["log"].get(f"lmcache_evictions_{tier}", 0) == count


def test_each_lookup_and_wait_is_observed(found: dict[str, Any]) -> None:
    case = found["traffic"]
    assert case["log"]["lmcache_lookup_seconds_count"] == case["looked"] > 60
    assert 0 < case["log"]["lmcache_wait_seconds_count"] <= case["deferred"]
    assert case["waiting"] == 0


@pytest.mark.parametrize("tier", ["cpu", "disk"])
def test_loads_are_timed_by_tier(found: dict[str, Any], tier: str) -> None:
    read = found["traffic"]["read"]
    assert read[f"lmcache_load_seconds_{tier}_count"] > 0
    summed = read[f"lmcache_load_seconds_{tier}_sum"]
    assert summed == pytest.approx(read[f"lmcache_read_seconds_{tier}"], abs=1e-3)


def test_a_step_in_which_nothing_changes_sends_nothing(found: dict[str, Any]) -> None:
    assert found["traffic"]["idle"] == [{}]


def test_gauges_are_there_from_the_start(found: dict[str, Any]) -> None:
    first = dict.fromkeys(("pinned_chunks", "capacity_chunks:cpu"), 0.0)
    for tier in ("cpu", "remote"):
        first |= {f"{name}:{tier}": 0.0 for name in ("held_chunks", "held_bytes", "pending_chunks")}
    assert found["waits"]["first"] == first | {"capacity_chunks:cpu": 4}


def test_a_wait_is_from_the_first_deferral_to_the_answer_or_the_end(found: dict[str, Any]) -> None:
    case = found["waits"]
    assert case["quiet"] == []
    assert case["came"]["wait_seconds/11"] == 1 and case["came"]["lookup_seconds/3"] == 2
    assert case["came"]["wait_seconds/11s"] == pytest.approx(2.0006)
    assert case["gone"]["wait_seconds/7"] == 1
    assert case["gone"]["wait_seconds/7s"] == pytest.approx(0.02)


def test_bytes_are_those_that_the_tier_keeps(found: dict[str, Any]) -> None:
    raw, shown, coded = found["coded"]
    assert shown == coded < raw
