"""Chance that repeats: the same seed gives the same draws on every platform and Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import TypeVar

_T = TypeVar("_T")


class Draw:
    """A stream of draws named by its parts: ``Draw(seed, "rag")`` and ``Draw(seed, "chat")`` are
    unrelated.

    Only ``Random.random()`` is promised to give the same numbers in every Python, so all else is
    made from it here.
    """

    def __init__(self, *name: str | int) -> None:
        # A str seed is hashed by SHA-512, never by the salted hash().
        self._random = Random("/".join(str(part) for part in name)).random

    def chance(self, probability: float) -> bool:
        """Returns True with this probability."""
        return self._random() < probability

    def below(self, bound: int) -> int:
        """Draws a whole number in [0, bound); ``bound`` is at least 1."""
        return int(self._random() * bound)

    def between(self, low: int, high: int) -> int:
        """Draws a whole number in [low, high], both included."""
        return low + self.below(high - low + 1)

    def pick(self, options: Sequence[_T]) -> _T:
        """Draws one of the options, all equally likely."""
        return options[int(self._random() * len(options))]

    def sample(self, options: Sequence[_T], count: int) -> list[_T]:
        """Draws ``count`` different ones of the options, in random order. Raises ``IndexError`` if
        there are fewer."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def exponential(self) -> float:
        """Draws an exponential variate of mean 1, above 0."""
        return -math.log(self._random() or 2.0**-54)
