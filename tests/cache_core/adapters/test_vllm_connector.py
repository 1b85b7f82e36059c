"""The connector in real vLLM: what it must never change, and what it must survive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm

SMALL_TIERS = {"chunk_tokens": 48, "cpu_size": "3MiB", "disk_size": "60MiB"}
# Blocks for two or three requests of eight: vLLM has to wait, evict and preempt.
CRAMPED = {
    "enable_prefix_caching": True,
    "block_size": 64,
    "num_gpu_blocks_override": 26,
    "max_model_len": 1100,
    "max_num_batched_tokens": 256,
}
CASES: dict[str, dict[str, Any]] = {
    "between steps": {"settings": CRAMPED, "options": SMALL_TIERS | {"load": "async"}},
    "layer by layer": {
        "settings": CRAMPED | {"enable_prefix_caching": False},
        "options": SMALL_TIERS
        | {"load": "sync", "layerwise": True, "chunk_tokens": 100}
        | {"placement": "write_on_eviction"},
    },
}


def served(scenario: Scenario, case: str, *trouble: str) -> dict[str, dict[str, Any]]:
    given = json.dumps({case: CASES[case]}), *trouble
    found: dict[str, dict[str, Any]] = scenario("traffic", *given, timeout_s=1200)
    return found


@pytest.fixture(scope="module")
def traffic(scenario: Scenario) -> dict[str, dict[str, Any]]:
    return served(scenario, "between steps")


@pytest.fixture(scope="module")
def troubled(scenario: Scenario) -> dict[str, dict[str, Any]]:
    return served(scenario, "layer by layer", "server", "disk")


@pytest.mark.parametrize(
    ("fixture", "case"), [("traffic", "between steps"), ("troubled", "layer by layer")]
)
def test_tokens_are_those_of_vllm_alone(
    fixture: str, case: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(fixture)[case]
    assert found["different"] == []
    assert found["failed"] == []
    assert found["compared"] > 45  # of 60; the others were aborted
    hits = {n: c for n, c in found["counts"].items() if n.startswith("hit_tokens:")}
    assert hits.get("hit_tokens:cpu", 0) + hits.get("hit_tokens:disk", 0) > 2000
    assert found["preempted"] > 0


def test_small_tiers_were_used_up(traffic: dict[str, dict[str, Any]]) -> None:
    counts = traffic["between steps"]["counts"]
    assert counts["write_bytes:cpu"] > 10 * (3 << 20)
    assert counts["hit_tokens:disk"] > 0
    assert counts["hit_tokens:device"] > 0


def test_seconds_of_prefill_saved_are_counted(troubled: dict[str, dict[str, Any]]) -> None:
    assert troubled["layer by layer"]["counts"]["prefill_seconds_saved"] > 0


@pytest.mark.parametrize("name", ["server", "full", "restart", "damage"])
def test_trouble_fails_and_changes_no_request(
    troubled: dict[str, dict[str, Any]], name: str
) -> None:
    assert troubled[name]["failed"] == []
    assert troubled[name]["same"] == 30


def test_the_trouble_was_there(troubled: dict[str, dict[str, Any]]) -> None:
    assert troubled["damage"]["counts"]["failed_loads"] > 0
    for name in ("server", "full"):
        assert troubled[name]["counts"]["failed_saves"] > 0, name
    assert troubled["server"]["remote"] > 0
    assert troubled["full"]["written"] > 0


def test_what_was_on_disk_is_hit_after_a_restart(troubled: dict[str, dict[str, Any]]) -> None:
    counts = troubled["restart"]["counts"]
    assert counts["hit_tokens:disk"] > 0.8 * counts["prompt_tokens"]
    assert "failed_loads" not in counts


@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
def test_every_rank_keeps_its_own_part(scenario: Scenario, parallel: str) -> None:
    found = scenario("ranks", parallel)
    assert found["tokens"]["ours"] == found["tokens"]["cold"]
    assert found["cached"] == {
        "cold": [0, 0, 0],
        "ours": [0, 576, 576],
    }  # whole chunks of 64, of 601 tokens
    assert found["folders"] == ["rank-0", "rank-1"]


@pytest.fixture(scope="module")
def worker(scenario: Scenario) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = scenario("worker")
    return found


def test_a_queued_save_on_top_of_a_failed_load_is_dropped_after_an_abort(
    worker: dict[str, dict[str, Any]],
) -> None:
    found = worker["aborted"]
    assert found["bad_blocks"] == [0]
    assert found["held"] == [True, False]
    assert found["left"] == [[], []]


def test_a_slow_tier_holds_up_neither_blocks_nor_loads_of_a_fast_one(
    worker: dict[str, dict[str, Any]],
) -> None:
    found = worker["lanes"]
    assert found["free"], "vLLM's blocks waited for the disk"
    assert sorted(found["early"]) == [[1, [], True], [1, [[0, True]], False]]
    assert found["loaded"] == ["near"], "a load from memory waited for the disk"
    assert found["late"] == [[1, [[1, True]], False]]
    assert found["held"] == [[True], [True]]


def test_a_tier_that_is_away_keeps_one_load_of_a_step_waiting_and_not_all(
    worker: dict[str, dict[str, Any]],
) -> None:
    found = worker["away"]
    assert found["first"] == [0] * 6 and found["reads"] == 1
    assert found["then"] == [1, 1], "well again, it is read again"


def test_a_load_and_a_save_beside_steps_do_not_wait_for_each_other(
    worker: dict[str, dict[str, Any]],
) -> None:
    assert worker["layerwise"] == {"ended": True, "held": [True, True, True]}


def test_what_is_encoded_behind_a_step_is_not_saved_beside_it(
    worker: dict[str, dict[str, Any]],
) -> None:
    assert worker["encoded"] == {"read": [True], "found": [7.0, 7.0]}


def test_every_chunk_that_is_read_is_counted_once(worker: dict[str, dict[str, Any]]) -> None:
    found = worker["blended"]
    assert (found["loaded"], found["counted"]) == ([4], 4)


def test_a_passage_that_is_lost_leaves_blocks_that_vllm_computes(
    worker: dict[str, dict[str, Any]],
) -> None:
    assert worker["blended"]["good"] == []
    assert worker["blended"]["lost"] == [3]
