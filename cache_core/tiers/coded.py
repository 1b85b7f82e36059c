"""A tier that keeps chunks coded: half the bytes of KV in 16 bits, at some cost in quality."""

from __future__ import annotations

from collections.abc import Sequence

from cache_core.place import Place
from cache_core.tiers.tier import Read, Tier
from cache_core.tiers.wrapper import Wrapper
from cache_core.transfer.codec import Codec, CodedPlace, DecodedPlace


class CodedTier(Wrapper):
    """``tier``, whose chunks have ``codec.coded_bytes``, to callers whose chunks are raw.

    Its keys must be of a namespace that names the codec: raw and coded chunks, or two codecs', must
    never be taken for one another. Chunks that go from one tier of the same codec to another stay
    as they are.
    """

    def __init__(self, tier: Tier, codec: Codec) -> None:
        super().__init__(tier)
        self.codec = codec

    def read(self, keys: Sequence[bytes], place: Place | None) -> list[Read]:
        return self._tier.read(keys, self._coded(place))

    def write(self, keys: Sequence[bytes], place: Place | None) -> list[bool]:
        return self._tier.write(keys, self._coded(place))

    def place(self, keys: Sequence[bytes]) -> Place | None:
        place = self._tier.place(keys)
        return None if place is None else DecodedPlace(place, self.codec)

    def _coded(self, place: Place | None) -> Place | None:
        if place is None:
            return None
        if isinstance(place, DecodedPlace) and place.codec == self.codec:
            return place.coded
        return CodedPlace(place, self.codec)
