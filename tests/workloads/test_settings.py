"""Knobs are checked where they are set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from workloads import Settings

OTHERS = ("seed", "zipf", "rate", "order")
COUNTS = [f.name for f in dataclasses.fields(Settings) if f.name not in OTHERS]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "4"])
def test_a_bad_count_is_named_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .*{value}") as caught:
        Settings(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("zipf", -0.1),
        ("zipf", math.nan),
        ("zipf", math.inf),
        ("rate", 0.0),
        ("rate", -1.0),
        ("rate", math.inf),
        ("rate", math.nan),
        ("seed", 1.5),
        ("seed", None),
        ("order", "'random'"),
    ],
)
def test_other_bad_values_are_named(field: str, value: Any) -> None:
    given: Any = {field: value.strip("'") if isinstance(value, str) else value}
    with pytest.raises(ValueError, match=f"^{field}: {value}"):
        Settings(**given)


def test_passages_must_be_there_to_be_drawn() -> None:
    assert Settings(passages=3, corpus_passages=3).passages == 3
    with pytest.raises(ValueError, match=r"^passages: 4 .*corpus_passages = 3"):
        Settings(passages=4, corpus_passages=3)


def test_the_least_values_are_allowed() -> None:
    least: Any = dict.fromkeys(COUNTS, 1) | {"context_tokens": 2}
    settings = Settings(**least, zipf=0.0, rate=1e-9, seed=-1)
    assert settings.requests == 1
    with pytest.raises(ValueError, match=r"^context_tokens: 1 is too small; .* at least 2"):
        Settings(context_tokens=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 2  # type: ignore[misc]
