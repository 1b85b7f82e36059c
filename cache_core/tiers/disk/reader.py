"""Reads chunks from disk to memory, each proven by its checksums, through memory of the tier's own:
no disk ever reads or writes a byte of an engine's."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.tiers.disk.format import key_array, rounded
from cache_core.tiers.disk.log import Log
from cache_core.tiers.disk.segment import SegmentFile, Spot
from cache_core.tiers.tier import Read, TierError
from cache_core.transfer.chunks import ChunkBuffers, FlatBuffers, addresses_from

_BYTES = 64 << 20
_KEPT = 2  # slabs: one for the writer, one for a reader


@dataclass(slots=True)
class Buffer:
    """Memory for chunks, for as long as somebody has this object. ``left`` says that a call that
    was abandoned may still use it: nobody else may then."""

    slab: _native.Slab
    addresses: Addresses
    left: bool = False


class Staging:
    """Slabs of aligned chunks, ``chunks`` at most, taken when needed. The largest two are kept for
    the next callers; beside them each caller has what it needs: many may read at once."""

    def __init__(self, chunk_bytes: int, depth: int) -> None:
        stride = rounded(chunk_bytes)
        self.chunks = max(2, depth, min(16 * depth, _BYTES // stride))
        self._stride = stride
        self._lock = threading.Lock()
        self._free: list[_native.Slab] = []

    @contextmanager
    def borrow(self, chunks: int) -> Iterator[Buffer]:
        """Lends memory for so many chunks, or for the most that one caller may have, for as long as
        the context is open. Raises ``MemoryError``."""
        chunks = min(chunks, self.chunks)
        nbytes = chunks * self._stride
        with self._lock:
            slab = next((kept for kept in self._free if kept.nbytes >= nbytes), None)
            if slab is not None:
                self._free.remove(slab)
        slab = slab or _native.Slab(nbytes)
        buffer = Buffer(slab, addresses_from(slab.address, chunks, self._stride))
        try:
            yield buffer
        finally:
            with self._lock:
                if not buffer.left:
                    self._free = sorted([*self._free, slab], key=lambda kept: kept.nbytes)[-_KEPT:]

    def release(self) -> None:
        """Gives the memory that is kept back."""
        with self._lock:
            self._free.clear()


logger = logging.getLogger("lmcache")

# What csrc/disk/record.h says about a record that is not served.
_DAMAGE = {
    -1: "its header is damaged",
    -2: "another record is in its place",
    -3: "its bytes do not match their checksum",
    -4: "its file ends before it does",
    errno.EIO: "it can't be read: input/output error",
}
_GONE = -4
# Files that one call has open at once, and chunks that it asks csrc for at once.
_BATCH = 128
_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)


class DiskReader:
    """Reads held chunks, for any number of threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._files = threading.Condition()
        self._holding = 0  # calls that have files open
        self._ended = 0

    def fetch(self, keys: Sequence[bytes], addresses: Addresses) -> list[Read]:
        """Reads chunks to memory; a damaged one is reported and dropped. Raises :class:`Lost`."""
        good: list[Read] = []
        while len(good) < len(keys):
            batch = slice(len(good), len(good) + _BATCH)
            good += self._fetch_batch(list(keys[batch]), addresses[batch])
        return good

    def _fetch_batch(self, keys: list[bytes], addresses: Addresses) -> list[Read]:
        """Reads leading chunks: as many as there are descriptors for, and one at least."""
        good: list[Read] = []
        access = self._log.access
        with ExitStack() as stack:
            opened: dict[SegmentFile, int] = {}
            rows: list[tuple[int, Spot, int]] = []
            for row, key in enumerate(keys):
                found = self._open(key, opened, stack)
                if found is None:
                    break
                if isinstance(found, Read):
                    good.append(found)
                else:
                    good.append(Read.GONE)
                    rows.append((row, *found))
            if not rows:
                return good
            picked = [row for row, _, _ in rows]
            spots = [spot for _, spot, _ in rows]
            statuses = _native.read_records(
                np.array([fd for _, _, fd in rows], dtype=np.int32),
                np.array([s.segment.header.offset(s.slot) for s in spots if s.segment], np.int64),
                np.ascontiguousarray(addresses[picked]),
                key_array([keys[row] for row in picked]),
                np.array([spot.sequence for spot in spots], dtype=np.uint64),
                access.namespace,
                access.payload_bytes,
                access.direct,
                access.depth,
            )
        for (row, spot, _), status in zip(rows, statuses.tolist(), strict=True):
            good[row] = Read.HERE if status == 0 else self._report(keys[row], spot, status)
        return good

    def _open(
        self, key: bytes, opened: dict[SegmentFile, int], stack: ExitStack
    ) -> tuple[Spot, int] | Read | None:
        """Returns where the key's record is, in a file that stays open: it may be given up
        meanwhile. Returns None if those that are open must be closed first."""
        spot = None
        for _ in range(3):
            spot = self._log.find(key)
            if spot is None:
                return Read.GONE
            if spot.segment is None:
                return self._report(key, spot, errno.EIO)
            if spot.segment in opened:
                return spot, opened[spot.segment]
            first = not opened
            with self._files:
                ended = self._ended
                self._holding += first
            try:
                fd = self._counted(spot.segment, first)
            except FileNotFoundError:
                # Its chunks have just moved, or somebody has removed the file.
                self._log.directory.check()
                continue
            except OSError as error:
                if error.errno in _NO_MORE_FILES:
                    if opened:
                        return None
                    if self._wait_for_another(ended):
                        return self._open(key, opened, stack)
                self._log.counters.unreadable += 1
                self._log.warnings.about("read", f"can't read: {error.strerror}")
                return Read.LATER
            if first:
                stack.callback(self._let_go)
            opened[spot.segment] = fd
            stack.callback(os.close, fd)
            return spot, fd
        return Read.GONE if spot is None else self._report(key, spot, _GONE)

    def _counted(self, segment: SegmentFile, first: bool) -> int:
        """Opens a segment's file that was counted before: none finds no descriptor and no
        holder."""
        try:
            return segment.open(self._log.access.direct)
        except BaseException:
            with self._files:
                self._holding -= first
                self._files.notify_all()
            raise

    def _let_go(self) -> None:
        with self._files:
            self._holding -= 1
            self._ended += 1
            self._files.notify_all()

    def _wait_for_another(self, ended: int) -> bool:
        """Waits until more calls than ``ended`` have closed their files; False if none has any."""
        with self._files:
            self._files.wait_for(lambda: self._ended != ended or self._holding == 0)
            return self._ended != ended

    def _report(self, key: bytes, spot: Spot, status: int) -> Read:
        """Reports a record that can't be served. A damaged one is dropped; other trouble may
        pass."""
        away = status == errno.EIO and spot.segment is not None
        if away and spot.segment is not None:
            away = not spot.segment.has_lost_a_block(self._log.access.direct)
        if away or status not in _DAMAGE:
            self._log.counters.unreadable += 1
            self._log.warnings.about("read", f"can't read: {os.strerror(status)}")
            return Read.LATER
        self._log.counters.damaged += 1
        where = spot.segment.path if spot.segment is not None else "a segment that is gone"
        logger.warning(
            "%s tier: chunk %s in %s is lost: %s",
            self._log.warnings.name,
            key.hex()[:12],
            where,
            _DAMAGE[status],
        )
        self._log.drop(key, spot)
        return Read.GONE


class DiskBuffers:
    """Buffers of held chunks; copying them out reads them. Nothing can be copied in."""

    def __init__(
        self,
        keys: Sequence[bytes],
        read: Callable[[Sequence[bytes], ChunkBuffers | None], list[Read]],
        chunk_bytes: int,
    ) -> None:
        self._keys = list(keys)
        self._read = read
        self._chunk_bytes = chunk_bytes

    def __len__(self) -> int:
        return len(self._keys)

    def pick(self, rows: Sequence[int]) -> DiskBuffers:
        return DiskBuffers([self._keys[row] for row in rows], self._read, self._chunk_bytes)

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        """Reads the chunks to ``addresses``. Raises :class:`TierError` if one can't be read."""
        answers = self._read(self._keys, FlatBuffers(addresses, self._chunk_bytes))
        failed = len(answers) - answers.count(Read.HERE)
        if failed:
            raise TierError(f"{failed} of {len(answers)} chunks can't be read from disk")

    def copy_from(self, addresses: Addresses) -> None:
        raise TierError("chunks on disk are written by DiskTier.write")
