"""The head of every value in a remote store: a torn, foreign or damaged one is recognised.

64 bytes, little-endian: magic ``LMKV``, u32 format version, u64 payload bytes, the chunk's 32-byte
key, xxh3-128 of the payload. The payload follows. A reader knows what every field must be, so the
head needs no checksum of its own. It protects against accidents and not against an adversary, who
could compute the hash too: give a store only to those who may read each other's KV.
"""

from __future__ import annotations

import struct

import numpy as np
import xxhash

from cache_core.tiers.store import Bytes

VERSION = 1
HEAD_BYTES = 64
_HEAD = struct.Struct("<4sIQ32s16s")
_MAGIC = b"LMKV"


def seal(key: bytes, value: Bytes) -> None:
    """Writes the head of ``value``, whose payload is in place."""
    payload = value[HEAD_BYTES:]
    head = _HEAD.pack(_MAGIC, VERSION, payload.nbytes, key, _digest(payload))
    value[:HEAD_BYTES] = np.frombuffer(head, dtype=np.uint8)


def intact(key: bytes, value: Bytes) -> bool:
    """Whether ``value`` is exactly what was sealed under ``key``."""
    payload = value[HEAD_BYTES:]
    head = value[:HEAD_BYTES].tobytes()
    if head[:48] != _HEAD.pack(_MAGIC, VERSION, payload.nbytes, key, b"")[:48]:
        return False
    return head[48:] == _digest(payload)


def _digest(payload: Bytes) -> bytes:
    return xxhash.xxh3_128_digest(payload.data)
