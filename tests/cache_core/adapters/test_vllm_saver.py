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


def test_a_chunk_counts_as_used_once_per_request(found: dict[str, Any]) -> None:
    """Each admission: its first chunk, how many, and how many leading ones have counted."""
    assert found["counted"]["said"] == [[0, 3, 0], [3, 2, 3], [0, 4, 5], [4, 4, 5]]
