"""What csrc/ledger.cpp does, as Python sees it: ``_native.Ledger`` makes these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from cache_core.admission import Admission
from cache_core.plan import Move


class Books(Protocol):
    """The books of :class:`cache_core.ledger.Ledger`, whose verbs these are.

    Raises ``ValueError`` for keys of other than 32 bytes, ``IndexError`` for a tier that does not
    exist.
    """

    def __len__(self) -> int: ...
    @property
    def evictions(self) -> list[int]: ...
    @property
    def refusals(self) -> list[int]: ...
    @property
    def records(self) -> int:
        """Chunks that anything is known of: held, pending, remembered, or before one of those."""

    @property
    def steps(self) -> int: ...
    def count(self, tier: int) -> int: ...
    def keys(self, tier: int) -> list[bytes]: ...
    def holds(self, key: bytes, tier: int) -> bool: ...
    def fastest(self, keys: Sequence[bytes], run: bool) -> list[int]:
        """The fastest tier that can serve each key, -1 for none; of a ``run`` only the leading ones
        that some tier can."""

    def pending(self, keys: Iterable[bytes]) -> bool: ...
    def pin(self, keys: Sequence[bytes]) -> int:
        """Chunks of the leading run that is held: those are pinned now."""

    def unpin(self, keys: Sequence[bytes]) -> None: ...
    def restore(self, tier: int, keys: Iterable[bytes]) -> list[bytes]: ...
    def admit(
        self,
        keys: Sequence[bytes],
        counted: int,
        parent: bytes | None,
        depth: int,
        admissions: list[Admission | None],
    ) -> list[Move]: ...
    def touch(self, keys: Sequence[bytes], counted: int) -> None: ...
    def adopt(self, keys: Sequence[bytes], tier: int) -> list[Move]: ...
    def settle(self, moves: Iterable[Move], stored: bool) -> None: ...
    def forget(self, key: bytes, tier: int) -> bool: ...
    def clear(self) -> list[Move]: ...
    def broken(self) -> str | None:
        """The first invariant that does not hold, in words."""

    def spoil(self, key: bytes, held: int, pending: int) -> None:
        """Overwrites the tiers, a bit each, that a chunk's record says can serve it and are being
        written to: a means of testing :meth:`broken`."""
