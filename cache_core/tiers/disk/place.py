"""Chunks on disk as the source of another tier's write: how they are demoted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cache_core.place import Addresses, FlatPlace, Place
from cache_core.tiers.tier import Read, TierError


class DiskPlace:
    """Held chunks; copying them out reads them. Nothing can be copied in."""

    def __init__(
        self,
        keys: Sequence[bytes],
        read: Callable[[Sequence[bytes], Place | None], list[Read]],
        chunk_bytes: int,
    ) -> None:
        self._keys = list(keys)
        self._read = read
        self._chunk_bytes = chunk_bytes

    def __len__(self) -> int:
        return len(self._keys)

    def pick(self, rows: Sequence[int]) -> DiskPlace:
        return DiskPlace([self._keys[row] for row in rows], self._read, self._chunk_bytes)

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        """Raises :class:`TierError` if one of them can't be read."""
        answers = self._read(self._keys, FlatPlace(addresses, self._chunk_bytes))
        failed = len(answers) - answers.count(Read.HERE)
        if failed:
            raise TierError(f"{failed} of {len(answers)} chunks can't be read from disk")

    def copy_from(self, addresses: Addresses) -> None:
        raise TierError("chunks on disk are written by DiskTier.write")
