"""Both halves of the connector when weights or adapters change, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def found(scenario: Scenario) -> dict[str, Any]:
    outcome: dict[str, Any] = scenario("generations")
    return outcome


@pytest.mark.parametrize("act", ["reset", "plain reset"])
def test_any_reset_frees_everything_and_begins_anew(found: dict[str, Any], act: str) -> None:
    assert found[act] == {"before": [0, 12], "held": 0, "after": [0, 12]}


def test_with_fixed_weights_vllms_own_reset_leaves_tiers_alone(found: dict[str, Any]) -> None:
    assert found["fixed"] == {"plain": 12, "held": 0, "after": 0, "again": 12}


def test_a_save_under_way_settles_and_is_freed(found: dict[str, Any]) -> None:
    assert found["pending save"] == {"stored": 3, "freed": 0, "after": [0, 12]}


def test_what_is_being_read_is_freed_when_it_was_read(found: dict[str, Any]) -> None:
    assert found["pinned load"] == {"kept": 3, "freed": 0}


def test_a_running_request_is_not_saved_until_it_starts_over(found: dict[str, Any]) -> None:
    assert found["running"] == {"saves": 0, "found": 0, "again": 1, "then": 12}


def test_a_worker_that_sees_other_weights_refuses_the_step(found: dict[str, Any]) -> None:
    assert found["seen by worker"] == {
        "found": 12,
        "loads": [0],
        "bad": [0, 1, 2],
        "outdated": 0,
        # One generation, though two steps were refused: the second was scheduled before.
        "generation": 1,
        "held": 0,
        "after": [0, 12],
    }


def test_nothing_that_a_refused_step_computed_is_stored(found: dict[str, Any]) -> None:
    expected = {"good": [False] * 3, "stored": 0, "after": [0, 12]}
    assert found["refused save"] == expected


def test_what_vllms_own_cache_gives_is_saved_unless_it_may_be_of_other_weights(
    found: dict[str, Any],
) -> None:
    # After a change that nobody told, after a reset, and of an adapter that has another's name.
    assert found["own cache"] == {"saves": [0, 1, 0]}


def test_one_rank_that_sees_it_is_enough(found: dict[str, Any]) -> None:
    assert found["ranks"] == [1]


def test_weights_that_can_not_be_watched_leave_nothing_for_a_restart(found: dict[str, Any]) -> None:
    # Only a cpu tier; one that lasts; one that lasts, watched; one that lasts, promised fixed.
    assert found["unwatched"]["generations"] == [0, 1, 0, 0]


def test_adapters_that_are_not_known_or_replaced_are_not_saved(found: dict[str, Any]) -> None:
    assert found["adapters"] == {"external": 0, "saves": [0, 0], "left": [], "counted": 1}


def test_images_and_embeddings_are_part_of_keys_from_where_they_stand(
    found: dict[str, Any],
) -> None:
    keys = found["beside"]
    assert keys["a"] == keys["a in parts"]
    assert keys["ones"] == keys["ones again"]
    # Chunks of four tokens: the first one ends before the image.
    assert keys["text"][0] == keys["a"][0] == keys["b"][0]
    names = ("text", "a", "b", "a further on", "a then b", "a first", "ones", "ones, mixed")
    seconds = [keys[name][1] for name in names]
    assert len(set(seconds)) == len(names)
    assert keys["a"][1] == keys["a long"][1]
    assert keys["a"][2] != keys["a long"][2]
    assert keys["ones"][:2] == keys["twos"][:2]
    assert keys["ones"][2] != keys["twos"][2]
    # What follows goes on from there.
    assert len({keys[name][3] for name in names}) == len(names)


def test_images_do_not_open_the_keys_of_another_model(found: dict[str, Any]) -> None:
    keys = found["beside"]
    assert not set(keys["a first"]) & set(keys["a first, other model"])
