"""A tier that keeps chunks coded: half the bytes of KV in 16 bits, at some cost in quality."""

from __future__ import annotations

from collections.abc import Sequence

from cache_core.place import Place
from cache_core.tiers.tier import Read, Tier, recovered
from cache_core.transfer.codec import Codec, CodedPlace, DecodedPlace


class CodedTier:
    """``tier``, whose chunks have ``codec.coded_bytes``, to callers whose chunks are raw.

    Its keys must be of a namespace that names the codec: raw and coded chunks, or two codecs', must
    never be taken for one another. Chunks that go from one tier of the same codec to another stay
    as they are.
    """

    def __init__(self, tier: Tier, codec: Codec) -> None:
        self.name, self.capacity = tier.name, tier.capacity
        self.shared = bool(getattr(tier, "shared", False))
        self.in_memory = bool(getattr(tier, "in_memory", False))
        self.keeps_time = bool(getattr(tier, "keeps_time", False))
        self.counters = getattr(tier, "counters", None)
        self.codec = codec
        self._tier = tier

    def __len__(self) -> int:
        return len(self._tier)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return self._tier.contains(keys)

    def read(self, keys: Sequence[bytes], place: Place | None) -> list[Read]:
        return self._tier.read(keys, self._coded(place))

    def write(self, keys: Sequence[bytes], place: Place | None) -> list[bool]:
        return self._tier.write(keys, self._coded(place))

    def discard(self, keys: Sequence[bytes]) -> None:
        self._tier.discard(keys)

    def place(self, keys: Sequence[bytes]) -> Place | None:
        place = self._tier.place(keys)
        return None if place is None else DecodedPlace(place, self.codec)

    def recovered(self) -> list[bytes]:
        """Keys from an earlier process, least recently stored first."""
        return recovered(self._tier)

    def close(self) -> None:
        self._tier.close()

    def _coded(self, place: Place | None) -> Place | None:
        if place is None:
            return None
        if isinstance(place, DecodedPlace) and place.codec == self.codec:
            return place.coded
        return CodedPlace(place, self.codec)
