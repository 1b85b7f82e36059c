"""Knows which record has a key's chunk."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cache_core.tiers.disk.format import KEY_FIELD_BYTES, Sequences
from cache_core.tiers.disk.segment import SegmentFile, Spot


class KeyIndex:
    """A map from key to spot. Keeps each segment's count of live chunks; ``emptied`` are those that
    came to have none, in that order. Not thread-safe but for :meth:`get`, ``in`` and ``len``."""

    def __init__(self) -> None:
        self.emptied: dict[SegmentFile, None] = {}
        self._spots: dict[bytes, Spot] = {}

    def __len__(self) -> int:
        return len(self._spots)

    def __contains__(self, key: bytes) -> bool:
        return key in self._spots

    def get(self, key: bytes) -> Spot | None:
        """Returns where the key's record is; None if it is not held."""
        return self._spots.get(key)

    def put(self, key: bytes, spot: Spot) -> list[int]:
        """Sets where the key's chunk is. Returns the number of its older record, now dead."""
        dead = self.remove(key)
        if spot.segment is not None:
            spot.segment.live += 1
        self._spots[key] = spot
        return dead

    def remove(self, key: bytes) -> list[int]:
        """Forgets a key. Returns the number of its record, now dead, if it had one."""
        spot = self._spots.pop(key, None)
        if spot is None or spot.segment is None:
            return []
        spot.segment.live -= 1
        if spot.segment.live == 0:
            self.emptied[spot.segment] = None
        return [spot.sequence]

    def keys(self) -> list[bytes]:
        """Returns the keys that are held, least recently written first."""
        return sorted(self._spots, key=lambda key: self._spots[key].sequence)

    def live(self, segment: SegmentFile) -> list[tuple[bytes, Spot]]:
        """Returns a segment's live chunks, in the order of its slots."""
        raw = segment.keys[: segment.filled].tobytes()
        keys = {raw[at : at + KEY_FIELD_BYTES] for at in range(0, len(raw), KEY_FIELD_BYTES)}
        found = [(key, self._spots[key]) for key in keys if key in self._spots]
        live = [(key, spot) for key, spot in found if spot.segment is segment]
        return sorted(live, key=lambda record: record[1].slot)

    def sequences(self) -> Sequences:
        """Returns the sequence numbers of all records that are alive."""
        return np.array([spot.sequence for spot in self._spots.values()], dtype=np.uint64)

    def load(self, segments: Iterable[SegmentFile], dead: set[int]) -> None:
        """Takes in what segments hold, the oldest file first: the newest record of a key counts.
        The same one twice was being copied when its process ended: then the older file counts."""
        for segment in segments:
            raw = segment.keys.tobytes()
            for slot, sequence in enumerate(segment.sequences[: segment.filled].tolist()):
                if sequence == 0 or sequence in dead:
                    continue
                key = raw[slot * KEY_FIELD_BYTES : (slot + 1) * KEY_FIELD_BYTES]
                known = self._spots.get(key)
                if known is None or known.sequence < sequence:
                    self.put(key, Spot(segment, slot, sequence))

    def clear(self) -> None:
        self._spots.clear()
        self.emptied.clear()
