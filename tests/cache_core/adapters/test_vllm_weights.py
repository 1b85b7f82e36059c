"""Weights and adapters that change while an engine runs, in real vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm

USABLE = 192  # whole chunks of 32, of 200 tokens


@pytest.fixture(scope="module")
def found(scenario: Scenario) -> dict[str, Any]:
    outcome: dict[str, Any] = scenario("weights", timeout_s=600)
    return outcome


POINTS = (
    *("first", "again", "after a plain reset", "saved anew", "told to nobody"),
    *("new weights", "new weights again", "weights and a reset", "weights and both resets"),
    *("adapter", "adapter again", "adapter in place", "adapter in place again", "another alpha"),
    *("another alpha again", "files changed", "files changed again", "restart"),
)


@pytest.mark.parametrize("point", POINTS)
def test_tokens_are_those_of_a_cold_run(found: dict[str, Any], point: str) -> None:
    assert found[point]["same"]


@pytest.mark.parametrize(
    "point", ["again", "saved anew", "new weights again", "adapter again", "another alpha again"]
)
def test_what_is_right_is_hit(found: dict[str, Any], point: str) -> None:
    assert found[point]["hits"] == USABLE


@pytest.mark.parametrize(
    "point",
    [
        *("after a plain reset", "new weights", "weights and a reset", "weights and both resets"),
        *("adapter", "adapter in place", "another alpha", "files changed again"),
    ],
)
def test_what_is_outdated_is_not_hit(found: dict[str, Any], point: str) -> None:
    assert found[point]["hits"] == 0


@pytest.mark.parametrize("way", ["written to", "load_weights", "reload_weights"])
def test_ten_updates_in_a_row_are_each_served_by_themselves(
    found: dict[str, Any], way: str
) -> None:
    """Told to nobody, or by a reset of either kind."""
    play = found["ten times"][way]
    assert play["same"] == [True] * 20
    assert play["changed"] == [True] * 9
    assert play["hits"].count(USABLE) >= 6, "what is right is to be hit in between"


def test_a_change_that_nobody_told_fails_the_load_that_comes_next(found: dict[str, Any]) -> None:
    point = found["told to nobody"]
    assert (point["hits"], point["failed"]) == (USABLE, 1)  # promised, and taken back


def test_the_changes_were_real(found: dict[str, Any]) -> None:
    cold = [tuple(found[point]["cold"]) for point in ("first", "told to nobody", "adapter")]
    cold += [tuple(found[point]["cold"]) for point in ("adapter in place", "another alpha")]
    cold += [tuple(found["weights and a reset"]["cold"])]
    assert len(set(cold)) == 6
    assert found["vllm resets"] is True


def test_a_restart_from_the_same_folder_gives_the_first_tokens(found: dict[str, Any]) -> None:
    assert found["restart"]["cold"] == found["first"]["cold"]


def test_what_is_left_uncached_is_counted_by_reason(found: dict[str, Any]) -> None:
    assert found["counts"]["uncached_requests:adapter_changed"] == 4
