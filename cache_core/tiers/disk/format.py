"""Defines a disk tier's directory, byte by byte; docs/disk-format.md describes it in words.

The header of a record is csrc/disk/record.h's; this file has the rest: the segment's header, its
table and the sizes that follow from a cap.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.tiers.tier import TierError

BLOCK = 4096
VERSION = 1
KEY_FIELD_BYTES = 32
FORMAT_NAME = "FORMAT"
FORMAT_TEXT = "lmcache disk tier, format {}\n"
SEGMENT_NAME = re.compile(r"[0-9a-f]{16}\.seg")
UNFINISHED_NAME = re.compile(r"[0-9a-f]{16}\.new")

SEGMENT_BYTES = 256 << 20
# A cap has this many segments at least, unless a segment then held less than one chunk.
FEWEST_SEGMENTS = 32
_FEW_SLOTS = 16
# One part in so many is kept free of live chunks: the less there is, the more is copied for each
# byte that comes back.
SLACK = 16

Keys = NDArray[np.uint8]
Sequences = NDArray[np.uint64]

_HEADER = struct.Struct("<8sIIQQQQ32s")
_HEADER_MAGIC = b"LMCSEGMT"
_TABLE = struct.Struct("<8sIIQQ")
_TABLE_MAGIC = b"LMCTABLE"
_TABLE_HEAD = 64
_ENTRY = np.dtype([("key", np.uint8, (KEY_FIELD_BYTES,)), ("sequence", "<u8")])


class Damaged(Exception):
    """Bytes that were ours once: their magic is right, or they were never written."""


class Foreign(Exception):
    """Bytes that are not ours: another program's, or a later version's. The text says which."""


def rounded(nbytes: int) -> int:
    """Returns a number of bytes rounded up to whole blocks."""
    return -(-nbytes // BLOCK) * BLOCK


def slot_bytes(payload_bytes: int) -> int:
    """Returns the bytes of a record: header and padded payload."""
    return BLOCK + rounded(payload_bytes)


def key_array(keys: Sequence[bytes]) -> Keys:
    """Returns keys as csrc takes them, ``[n, 32]``."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY_FIELD_BYTES)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first block of a segment. All its records have one length and one namespace."""

    number: int
    slots: int
    payload_bytes: int
    namespace: bytes

    @property
    def slot_bytes(self) -> int:
        return slot_bytes(self.payload_bytes)

    @property
    def table_bytes(self) -> int:
        return rounded(_TABLE_HEAD + self.slots * _ENTRY.itemsize)

    @property
    def data_offset(self) -> int:
        """Returns where slot 0 starts in the file, in bytes."""
        return BLOCK + self.table_bytes

    @property
    def file_bytes(self) -> int:
        return self.data_offset + self.slots * self.slot_bytes

    def offset(self, slot: int) -> int:
        return self.data_offset + slot * self.slot_bytes

    def pack(self) -> bytes:
        """Returns the header as one block."""
        body = _HEADER.pack(
            _HEADER_MAGIC,
            VERSION,
            BLOCK,
            self.number,
            self.slots,
            self.slot_bytes,
            self.payload_bytes,
            self.namespace,
        ).ljust(BLOCK - 4, b"\0")
        return body + _native.crc32c(body).to_bytes(4, "little")

    @classmethod
    def unpack(cls, block: bytes) -> SegmentHeader:
        """Reads a header from its block. Raises :class:`Damaged` or :class:`Foreign`."""
        if not block.strip(b"\0"):
            raise Damaged("its header was never written")
        if block[:8] != _HEADER_MAGIC:
            raise Foreign("is no segment of a disk tier")
        if len(block) < BLOCK:
            raise Damaged("its header is cut off")
        _, version, _, number, slots, slot, payload, namespace = _HEADER.unpack_from(block)
        # Before the checksum, which a later version may keep elsewhere.
        if version > VERSION:
            raise Foreign(f"has format {version}, this program knows {VERSION}")
        if _native.crc32c(block[:-4]) != int.from_bytes(block[-4:], "little"):
            raise Damaged("its header does not match its checksum")
        header = cls(number, slots, payload, namespace)
        if version < 1 or slots < 1 or payload < 1 or header.slot_bytes != slot:
            raise Damaged("its header makes no sense")
        return header


@dataclass(frozen=True, slots=True)
class RecordAccess:
    """How a disk tier reads and writes its records: of ``payload_bytes`` in ``namespace``, by
    O_DIRECT or not, ``depth`` at once."""

    namespace: bytes
    payload_bytes: int
    direct: bool
    depth: int


def pack_table(header: SegmentHeader, keys: Keys, sequences: Sequences) -> bytes:
    """Returns the table of a full segment: each slot's key and sequence number, 0 for none."""
    entries = np.zeros(len(sequences), dtype=_ENTRY)
    entries["key"] = keys
    entries["sequence"] = sequences

    def head(crc: int) -> bytes:
        packed = _TABLE.pack(_TABLE_MAGIC, VERSION, crc, header.number, len(sequences))
        return packed.ljust(_TABLE_HEAD, b"\0")

    body = entries.tobytes()
    return (head(_native.crc32c(head(0) + body)) + body).ljust(header.table_bytes, b"\0")


def unpack_table(header: SegmentHeader, table: bytes) -> tuple[Keys, Sequences] | None:
    """Returns the keys and sequence numbers of a table, or None if the segment has none yet: it was
    never full. Raises :class:`Damaged`."""
    if not table[:_TABLE_HEAD].strip(b"\0"):
        return None
    if len(table) < header.table_bytes:
        raise Damaged("its table is cut off")
    magic, version, crc, number, filled = _TABLE.unpack_from(table)
    if magic != _TABLE_MAGIC or version != VERSION or number != header.number:
        raise Damaged("its table is not one")
    if filled > header.slots:
        raise Damaged("its table has more entries than the segment")
    end = _TABLE_HEAD + filled * _ENTRY.itemsize
    head = bytearray(table[:_TABLE_HEAD])
    head[12:16] = bytes(4)
    if _native.crc32c(bytes(head) + table[_TABLE_HEAD:end]) != crc:
        raise Damaged("its table does not match its checksum")
    entries = np.frombuffer(table, dtype=_ENTRY, count=filled, offset=_TABLE_HEAD)
    return np.ascontiguousarray(entries["key"]), entries["sequence"].astype(np.uint64)


def chunks_under(cap_bytes: int, payload_bytes: int) -> int:
    """Returns how many chunks a fresh disk tier of so many bytes holds; 0 if not one."""
    try:
        return spend(cap_bytes, payload_bytes, None, 0, 0).capacity
    except TierError:
        return 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes by which a cap in bytes is spent. ``budget`` is for segments; ``reserve`` of it is
    empty between two calls, as space to copy live chunks to."""

    payload_bytes: int
    slots: int
    segment_bytes: int
    budget: int
    reserve: int
    deaths_bytes: int
    capacity: int

    def fit(self, nbytes: int) -> int:
        """Returns the slots of a segment that takes up to ``nbytes`` on disk; at most ``slots``."""
        count = min(self.slots, max(0, nbytes // slot_bytes(self.payload_bytes)))
        while count > 0 and self.on_disk(count) > nbytes:
            count -= 1
        return count

    def on_disk(self, slots: int) -> int:
        """Returns the bytes that ``slots`` slots take, the file system's own blocks included."""
        return SegmentHeader(0, slots, self.payload_bytes, b"").file_bytes + ALLOWANCE


# What a file system may add to a file for its map of blocks.
ALLOWANCE = 2 * BLOCK
# The directory itself, the lock, the format.
_FIXED = 6 * BLOCK


def spend(
    cap_bytes: int, payload_bytes: int, segment_bytes: int | None, taken: int, largest: int
) -> Sizes:
    """Returns the sizes for a cap, of which ``taken`` bytes are in files that are not ours.
    ``largest`` is the size of the largest segment that is there, by an earlier setting.

    Raises :class:`TierError` if not one chunk fits.
    """
    slot = slot_bytes(payload_bytes)
    # Sequence numbers of dead records, 8 bytes each, in frames of up to 20 with one of them; the
    # list is written anew when half of the space is used.
    tombstones = rounded(max(4 * BLOCK, 32 * (cap_bytes // slot)))
    budget = cap_bytes - taken - _FIXED - 2 * tombstones

    def sizes(slots: int, largest: int = 0) -> Sizes:
        whole = SegmentHeader(0, slots, payload_bytes, b"").file_bytes + ALLOWANCE
        reserve = max(whole, min(largest, budget // 4))
        # A segment that is being written may be as good as empty.
        capacity = (budget - budget // SLACK - reserve - whole) * slots // whole
        return Sizes(payload_bytes, slots, whole, budget, reserve, tombstones, capacity)

    aim = segment_bytes or min(SEGMENT_BYTES, cap_bytes // FEWEST_SEGMENTS)
    slots = max(1, (aim - 2 * BLOCK) // (slot + _ENTRY.itemsize))
    # With few slots a segment's header and table weigh: under a small cap more of them hold more.
    most = slots if segment_bytes else max(slots, _FEW_SLOTS)
    best = max(range(slots, most + 1), key=lambda slots: sizes(slots).capacity)
    spent = sizes(best, largest)
    if spent.capacity < 1:
        least = sizes(1)
        need = cap_bytes - budget + (least.reserve + 2 * least.segment_bytes + BLOCK) * 17 // 16
        raise TierError(
            f"a cap of {cap_bytes} bytes leaves no room for a chunk of {payload_bytes} bytes;"
            f" it must be at least {rounded(need)}"
        )
    return spent
