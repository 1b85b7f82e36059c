"""The circuit breaker, against a clock of the test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core.tiers.suspensions import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_up_to_the_longest_and_start_over() -> None:
    clock = Clock()
    breaker = CircuitBreaker(2, pause_s=1, longest_pause_s=3, clock=clock)
    assert not breaker.failed() and breaker.closed
    assert breaker.failed() and not breaker.closed
    for pause in (1, 2, 3, 3):
        clock.now += pause - 0.5
        assert not breaker.allow()
        clock.now += 0.5
        assert breaker.allow()  # the probe
        assert not breaker.allow()  # nobody else meanwhile
        assert not breaker.failed()
    clock.now += 3
    assert breaker.allow() and breaker.succeeded() and breaker.closed
    assert not breaker.succeeded()
    breaker.failed()
    assert breaker.failed()
    clock.now += 1
    assert breaker.allow()
    assert breaker.opened == 2


def test_a_probe_of_which_nobody_hears_is_followed_by_another() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, pause_s=1, clock=clock)
    breaker.failed()
    clock.now = 1
    assert breaker.allow()
    clock.now = 2.9
    assert not breaker.allow()
    clock.now = 3
    assert breaker.allow()


@given(st.integers(1, 5), st.lists(st.sampled_from("sf-"), max_size=60))
def test_open_means_that_the_last_so_many_failed(failures: int, events: list[str]) -> None:
    """Against a model that remembers everything."""
    clock = Clock()
    breaker = CircuitBreaker(failures, pause_s=10, clock=clock)
    outcomes = ""
    for event in events:
        if event == "-":
            clock.now += 1000
        elif breaker.allow():
            breaker.succeeded() if event == "s" else breaker.failed()
            outcomes += event
        assert breaker.closed is not outcomes.endswith("f" * failures)


@pytest.mark.parametrize(("failures", "pause"), [(0, 1.0), (1, -1.0)])
def test_a_breaker_that_makes_no_sense(failures: int, pause: float) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        CircuitBreaker(failures, pause)
