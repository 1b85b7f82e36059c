"""Defines what a remote engine must do for :class:`.RemoteTier`, and the head of every value.

Every value has a head of 64 bytes, little-endian: magic ``LMKV``, u32 format version, u64 payload
bytes, the chunk's 32-byte key, xxh3-128 of the payload. A reader knows what each field must be, so
the head needs no checksum of its own. It protects against accidents, not against an adversary, who
could compute the hash too: give a store only to those who may read each other's KV.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import xxhash
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class StoreError(Exception):
    """The engine did not answer, or answered nonsense: nothing is known of the whole batch."""


class Store(Protocol):
    """One connection to a remote engine: named values of a few MiB. One thread uses it.

    Values and the buffers for them are contiguous ``uint8`` arrays inside the buffer given to
    :meth:`connect`. Answers are per name; whatever concerns more than a name is a
    :class:`StoreError`, after which :meth:`connect` is called again, or :meth:`close`.
    """

    def connect(self, buffer: Bytes, timeout_s: float) -> None:
        """Connects to the engine, or anew after an error. No call, this one too, should take longer
        than ``timeout_s``. The buffer stays the same. Raises :class:`StoreError`."""

    def exists(self, names: Sequence[str]) -> list[bool]:
        """Returns which values there are, in one round trip."""

    def put(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        """Stores or overwrites values. Returns False for each that the engine refused."""

    def get_into(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        """Receives values of exactly the buffers' sizes. False: absent, or of another size."""

    def remove(self, names: Sequence[str]) -> None:
        """Removes values. Unknown names are ignored."""

    def close(self) -> None:
        """Disconnects from the engine; the values stay. Never raises."""


@runtime_checkable
class Proving(Protocol):
    """A store that can tell whether it would be let do all that :class:`Store` does."""

    def prove(self) -> None:
        """Raises :class:`StoreError` naming what the engine refuses; leaves no value in it."""


ENVELOPE_VERSION = 1
HEAD_BYTES = 64
_HEAD = struct.Struct("<4sIQ32s16s")
_MAGIC = b"LMKV"


def seal(key: bytes, value: Bytes) -> None:
    """Writes the head of ``value``, whose payload is there already."""
    payload = value[HEAD_BYTES:]
    head = _HEAD.pack(_MAGIC, ENVELOPE_VERSION, payload.nbytes, key, _digest(payload))
    value[:HEAD_BYTES] = np.frombuffer(head, dtype=np.uint8)


def intact(key: bytes, value: Bytes) -> bool:
    """Returns whether ``value`` is exactly what was sealed under ``key``."""
    payload = value[HEAD_BYTES:]
    head = value[:HEAD_BYTES].tobytes()
    if head[:48] != _HEAD.pack(_MAGIC, ENVELOPE_VERSION, payload.nbytes, key, b"")[:48]:
        return False
    return head[48:] == _digest(payload)


def _digest(payload: Bytes) -> bytes:
    return xxhash.xxh3_128_digest(payload.data)
