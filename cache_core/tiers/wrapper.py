"""A tier around another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_core.place import Place
from cache_core.tiers.tier import Read, Tier


class Wrapper:
    """``tier``, to be changed in some of what it does. All else is the tier's own: also what not
    every tier has, such as ``recovered``, ``shared``, ``counters`` or ``sync``."""

    def __init__(self, tier: Tier) -> None:
        self.name: str = tier.name
        self.capacity: int | None = tier.capacity
        self._tier = tier

    def __getattr__(self, name: str) -> Any:
        if name == "_tier":  # not made yet: a copy that is being unpickled, say
            raise AttributeError(name)
        return getattr(self._tier, name)

    def __len__(self) -> int:
        return len(self._tier)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return self._tier.contains(keys)

    def read(self, keys: Sequence[bytes], place: Place | None) -> list[Read]:
        return self._tier.read(keys, place)

    def write(self, keys: Sequence[bytes], place: Place | None) -> list[bool]:
        return self._tier.write(keys, place)

    def discard(self, keys: Sequence[bytes]) -> None:
        self._tier.discard(keys)

    def place(self, keys: Sequence[bytes]) -> Place | None:
        return self._tier.place(keys)

    def close(self) -> None:
        self._tier.close()
