"""Chunks from memory to disk, into slots that nothing else is in."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.tiers.disk.format import Sequences, key_array
from cache_core.tiers.disk.log import Log
from cache_core.tiers.disk.segment import Segment
from cache_core.tiers.disk.staging import Buffer


@dataclass(frozen=True, slots=True)
class Written:
    """Records that were tried together, and csrc's answer for each: 0, or an errno."""

    segment: Segment
    slots: NDArray[np.int64]
    sequences: Sequences
    statuses: NDArray[np.int32]


class Writer:
    """Appends records to the log, which does not know of them before they are published."""

    def __init__(self, log: Log, namespace: bytes, direct: bool, depth: int) -> None:
        self._log, self._namespace, self._direct, self._depth = log, namespace, direct, depth

    def append(self, keys: list[bytes], buffer: Buffer, first: int) -> Written | None:
        """Writes leading ones of the keys, whose chunks are in the buffer from ``first`` on, to
        fresh slots of one segment; None if there is no room. Raises ``OSError``."""
        self._log.directory.check()
        given = self._log.room(len(keys))
        if given is None:
            return None
        segment, slots, sequences = given
        fd = segment.open(self._direct, write=True)
        try:
            statuses = _native.write_records(
                np.full(len(slots), fd, dtype=np.int32),
                segment.offsets(slots),
                buffer.addresses[first : first + len(slots)],
                key_array(keys[: len(slots)]),
                sequences,
                self._namespace,
                self._log.sizes.payload_bytes,
                self._direct,
                self._depth,
            )
        finally:
            os.close(fd)
        return Written(segment, slots, sequences, statuses)
