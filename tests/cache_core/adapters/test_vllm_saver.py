"""What is saved of requests, and what has to wait for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def found(scenario: Scenario) -> dict[str, Any]:
    outcome: dict[str, Any] = scenario("saver")
    return outcome


def test_an_encode_waits_for_saves_that_read_the_blocks_it_was_lent(found: dict[str, Any]) -> None:
    lent = found["lent"]
    assert lent["blocks"] == [[2], [3]]
    assert lent["after"] == [lent["save"]]
    assert lent["freed"] == []


def test_a_requests_blocks_are_kept_until_its_segments_were_seen(found: dict[str, Any]) -> None:
    """What stands where it is encoded shows nothing; what stands behind it does."""
    assert found["lent"]["seen"] == [[[], []], [[0], [1, 2, 3, 4]]]
    assert found["lent"]["kept"] == [1, 2, 3, 4]


def test_a_chunk_counts_as_used_once_per_request(found: dict[str, Any]) -> None:
    """Each admission: its first chunk, how many, and how many leading ones have counted."""
    assert found["counted"]["said"] == [[0, 3, 0], [3, 2, 3], [0, 4, 5], [4, 4, 5]]


def test_what_may_stand_behind_blended_kv_is_not_saved(found: dict[str, Any]) -> None:
    assert found["blend"] == [True, False]
