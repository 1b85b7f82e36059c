"""A rehearsal's numbers are smaller ones of a module that has them."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from benchmarks.gpu.emulated import reduce


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("some_sizes")
    made.MOST, made.SOME, made.NAME = 100, (10, 20), "name"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_sizes", made)
    return made


def test_numbers(module: ModuleType) -> None:
    reduce("some_sizes.MOST=3")
    reduce("some_sizes.SOME=1")
    assert (module.MOST, module.SOME) == (3, (1,))
    reduce("some_sizes.SOME=1,2")
    assert module.SOME == (1, 2)


@pytest.mark.parametrize("name", ["NAME", "GONE"])
def test_what_is_no_number_any_more(module: ModuleType, name: str) -> None:
    with pytest.raises(SystemExit, match=f"some_sizes.{name} is no number"):
        reduce(f"some_sizes.{name}=3")
