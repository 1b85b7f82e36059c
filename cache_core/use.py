"""What is known of chunks from the requests that use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Use(NamedTuple):
    """One chunk's latest use.

    ``parent`` is the chunk before it in that request (None for the first, or if unknown),
    ``depth`` its place there from 0 on, ``times`` how many requests have used it since any tier
    took it, this one included, and ``turn`` that request's number, from 0 on.
    """

    parent: bytes | None = None
    depth: int = 0
    times: int = 1
    turn: int = 0


class Uses(dict[bytes, Use]):
    """The latest use of each chunk."""

    turn = 0
    """Requests recorded."""

    def record(self, places: Mapping[bytes, int], counted: int = 0) -> None:
        """A request uses these chunks: each one's place in the prompt, in that order. The first
        ``counted`` were recorded for the same request before: that was the same use."""
        parent = None
        for key, depth in places.items():
            last = self.get(key)
            times = 0 if last is None else last.times
            self[key] = Use(parent, depth, max(1, times + (depth >= counted)), self.turn)
            parent = key
        if not counted:
            self.turn += 1

    def introduce(self, keys: Sequence[bytes]) -> None:
        """A tier turns out to hold these chunks, in prompt order: unknown ones count as used."""
        for depth, key in enumerate(keys):
            if key not in self:
                self[key] = Use(keys[depth - 1] if depth else None, depth, 1, self.turn)
