"""A remote tier: what one connection set of ours gets through it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache_core import _native
from cache_core.place import FlatPlace
from cache_core.tiers.remote_url import open_remote, redacted
from cache_core.tiers.tier import TierError
from lmcache_cli.errors import MissingError
from lmcache_cli.probe.figure import Figure, ProbeError, rates, seconds

CHUNK = 1 << 20
COUNT = 32


@dataclass(frozen=True, slots=True)
class RemoteProbe:
    """Batches of ``count`` chunks of ``chunk_bytes``, and one existence check of all of them."""

    url: str
    chunk_bytes: int
    count: int
    write: Figure
    read: Figure
    look_up: Figure


def probe_remote(url: str, repeats: int) -> RemoteProbe:
    """Writes chunks of its own to the server, reads them back, compares, and removes them.

    Raises ``MissingError`` if it does not answer and :class:`ProbeError` if a call fails.
    """
    try:
        tier = open_remote(url, CHUNK)
        tier.ping()
    except TierError as error:
        raise MissingError(f"--remote: {error}") from error
    slab, back = _native.Slab(COUNT * CHUNK), _native.Slab(COUNT * CHUNK)
    slab.view()[:] = np.frombuffer(os.urandom(CHUNK), dtype=np.uint8).repeat(COUNT)
    steps = np.arange(COUNT, dtype=np.uint64) * np.uint64(CHUNK)
    source = FlatPlace(np.uint64(slab.address) + steps, CHUNK)
    target = FlatPlace(np.uint64(back.address) + steps, CHUNK)
    run_id = os.urandom(16)
    keys = [hashlib.sha256(run_id + bytes([i])).digest() for i in range(COUNT)]

    def need(done: Sequence[int], what: str) -> int:
        if not all(done):
            raise ProbeError(f"remote probe failed: {redacted(url)}: {what} of a chunk failed")
        return COUNT * CHUNK

    try:
        write = rates(lambda: need(tier.write(keys, source), "a write"), repeats)
        read = rates(lambda: need(tier.read(keys, target), "a read"), repeats)

        def look() -> None:
            need(tier.contains(keys), "a look-up")

        look_up = seconds(look, repeats)
        if not np.array_equal(slab.view(), back.view()):
            raise ProbeError(f"remote probe failed: {redacted(url)} returned other bytes")
    finally:
        tier.discard(keys)
        tier.close()
    return RemoteProbe(redacted(url), CHUNK, COUNT, write, read, look_up)
