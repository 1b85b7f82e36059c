"""Getting room back: live chunks of segments that are mostly dead move to a new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cache_core import _native
from cache_core.tiers.disk.format import Sizes
from cache_core.tiers.disk.lock import sync_directory
from cache_core.tiers.disk.segment import Segment

# A segment is copied only if that gives back so much of what is copied. Less than the part of the
# cap that is kept free of live chunks, so that there is always one that is worth it.
_LEAST_GAIN = 1 / 64


def choose(segments: Iterable[Segment], sizes: Sizes, room: int, wanted: int) -> list[Segment]:
    """Segments to empty so that about ``wanted`` bytes come back, the cheapest first. Their live
    chunks together take at most ``room`` bytes. None if nothing comes back."""

    def gain_per_byte(segment: Segment) -> float:
        return segment.reclaimable / (segment.live * segment.header.slot_bytes + 1)

    chosen: list[Segment] = []
    live = 0
    total = 0
    gain = 0
    for segment in sorted(segments, key=gain_per_byte, reverse=True):
        if gain >= wanted or gain_per_byte(segment) < _LEAST_GAIN:
            break
        needed = sizes.on_disk(live + segment.live) if live + segment.live else 0
        if needed > room:
            continue
        chosen.append(segment)
        live += segment.live
        total += segment.bytes
        gain = total - needed
    return chosen if gain > 0 else []


def move_live(
    directory: Path,
    number: int,
    records: Sequence[tuple[Segment, int]],
    direct: bool,
    depth: int,
) -> tuple[Segment, list[bool]]:
    """A new, sealed, durable segment with copies of the records as they are, in their order; and
    for each whether it could be read. Raises ``OSError`` if the copy can't be written; then
    nothing has changed."""
    first = records[0][0].header
    target = Segment.create(directory, number, len(records), first.payload_bytes, first.namespace)
    try:
        with contextlib.ExitStack() as stack:
            fds: dict[Segment, int] = {}
            for segment in [*dict.fromkeys(segment for segment, _ in records), target]:
                fds[segment] = segment.open(direct, write=segment is target)
                stack.callback(os.close, fds[segment])
            sources = [fds[segment] for segment, _ in records]
            offsets = [segment.header.offset(slot) for segment, slot in records]
            statuses = _native.copy_records(
                np.array(sources, dtype=np.int32),
                np.array(offsets, dtype=np.int64),
                np.full(len(records), fds[target], dtype=np.int32),
                target.offsets(np.arange(len(records))),
                first.payload_bytes,
                direct,
                depth,
            )
            readable = [status == 0 for status in statuses.tolist()]
            for row, good in enumerate(readable):
                if not good and _can_read(sources[row], offsets[row], target, direct):
                    raise OSError(max(0, int(statuses[row])), os.strerror(int(statuses[row])))
        for slot, (segment, source) in enumerate(records):
            if readable[slot]:
                target.keys[slot] = segment.keys[source]
                target.sequences[slot] = segment.sequences[source]
        target.filled = len(records)
        target.seal()
        sync_directory(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    return target, readable


def _can_read(fd: int, offset: int, like: Segment, direct: bool) -> bool:
    """Whether the file gives the record's bytes, right or wrong: a copy that failed does not say
    which side did."""
    statuses, _, _ = _native.scan_records(
        np.array([fd], dtype=np.int32),
        np.array([offset], dtype=np.int64),
        like.header.namespace,
        like.header.payload_bytes,
        direct,
        1,
    )
    return int(statuses[0]) in (0, -1, -2, -3, -5)
