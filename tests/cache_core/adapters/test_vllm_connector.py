"""The connector in real vLLM: what it must never change, and what it must survive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

SMALL_TIERS = {"chunk_tokens": 48, "cpu_size": "3MiB", "disk_size": "60MiB"}
# Blocks for two or three requests of eight: vLLM has to wait, evict and preempt.
CRAMPED = {
    "enable_prefix_caching": True,
    "num_gpu_blocks_override": 80,
    "max_model_len": 2048,
    "max_num_batched_tokens": 256,
}
CASES: dict[str, dict[str, Any]] = {
    "prefix caching off": {"settings": {}, "options": SMALL_TIERS},
    "prefix caching on": {"settings": CRAMPED, "options": SMALL_TIERS},
    "between steps": {"settings": {}, "options": SMALL_TIERS | {"load": "async"}},
    "exclusive": {"settings": {}, "options": SMALL_TIERS | {"placement": "write_on_eviction"}},
    "layer by layer": {
        "settings": {},
        "options": SMALL_TIERS | {"load": "sync", "layerwise": True, "chunk_tokens": 100},
    },
    "big blocks": {
        "settings": {"block_size": 128},
        "options": {"chunk_tokens": 16, "cpu_size": "8MiB", "policy": "gdsf"},
    },
}


@pytest.fixture(scope="module")
def mixed(scenario: Scenario) -> dict[str, dict[str, Any]]:
    found = scenario("mixed", json.dumps(list(CASES.values())), timeout_s=600)
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_vllm_alone(mixed: dict[str, dict[str, Any]], case: str) -> None:
    found = mixed[case]
    assert found["different"] == []
    assert found["failed"] == []
    assert found["compared"] > 75  # of 100; the others were aborted
    hits = {n: c for n, c in found["counts"].items() if n.startswith("hit_tokens:")}
    assert hits.get("hit_tokens:cpu", 0) + hits.get("hit_tokens:disk", 0) > 2000


def test_small_tiers_were_used_up(mixed: dict[str, dict[str, Any]]) -> None:
    counts = mixed["prefix caching off"]["counts"]
    assert counts["write_bytes:cpu"] > 10 * (3 << 20)
    assert counts["hit_tokens:disk"] > 0
    assert mixed["prefix caching on"]["counts"]["hit_tokens:device"] > 0
    assert mixed["prefix caching on"]["preempted"] > 0


def test_seconds_of_prefill_saved_are_counted(mixed: dict[str, dict[str, Any]]) -> None:
    assert mixed["prefix caching off"]["counts"]["prefill_seconds_saved"] > 0


@pytest.fixture(scope="module")
def trouble(scenario: Scenario) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = scenario("trouble", timeout_s=600)
    return found


TROUBLES = ("lost, sync", "lost, async", "server", "full", "damage", "restart")


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_fails_and_changes_no_request(
    trouble: dict[str, dict[str, Any]], name: str
) -> None:
    assert trouble[name]["failed"] == []
    assert trouble[name]["same"] == 30


def test_the_trouble_was_there(trouble: dict[str, dict[str, Any]]) -> None:
    for name in ("lost, sync", "lost, async", "damage"):
        assert trouble[name]["counts"]["failed_loads"] > 0, name
    for name in ("server", "full"):
        assert trouble[name]["counts"]["failed_saves"] > 0, name
    assert trouble["server"]["remote"] > 0
    lost = trouble["lost, sync"]["counts"]
    assert lost["promised_chunks:remote"] > lost["delivered_chunks:remote"] > 0
    assert trouble["full"]["written"] > 0


def test_what_was_on_disk_is_hit_after_a_restart(trouble: dict[str, dict[str, Any]]) -> None:
    counts = trouble["restart"]["counts"]
    assert counts["hit_tokens:disk"] > 0.8 * counts["prompt_tokens"]


def test_tenants_share_nothing(trouble: dict[str, dict[str, Any]]) -> None:
    found = trouble["salt"]
    usable = (found["tokens"] - 1) // 32 * 32
    assert found["hits"] == [0, usable, 0, 0, usable]


def test_a_reset_empties_the_cache(trouble: dict[str, dict[str, Any]]) -> None:
    hits = trouble["reset"]["hits"]
    assert hits[0] == hits[2] == 0
    assert hits[1] == hits[3] > 0


def test_every_rank_keeps_its_own_part(scenario: Scenario) -> None:
    found = scenario("ranks")
    assert found["ours"] == found["alone"]
    assert found["cached"] == [0, 576, 576]  # whole chunks of 64, of 601 tokens
    assert found["folders"] == ["rank-0", "rank-1"]


def test_a_queued_save_on_top_of_a_failed_load_is_dropped_after_an_abort(
    scenario: Scenario,
) -> None:
    found = scenario("worker")["aborted"]
    assert found["bad_blocks"] == [0]
    assert found["held"] == [True, False]
    assert found["left"] == [[], []]


def test_a_slow_tier_holds_up_neither_blocks_nor_loads_of_a_fast_one(scenario: Scenario) -> None:
    found = scenario("worker")["lanes"]
    assert found["free"], "vLLM's blocks waited for the disk"
    assert sorted(found["early"]) == [[1, [], True], [1, [[0, True]], False]]
    assert found["loaded"] == ["near"], "a load from memory waited for the disk"
    assert found["late"] == [[1, [[1, True]], False]]
    assert found["held"] == [[True], [True]]


def test_a_tier_that_is_away_keeps_one_load_of_a_step_waiting_and_not_all(
    scenario: Scenario,
) -> None:
    found = scenario("worker")["away"]
    assert found["first"] == [0] * 6 and found["reads"] == 1
    assert found["then"] == [1, 1], "well again, it is read again"
