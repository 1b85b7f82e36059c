"""Keeps the segments of a directory as one log: where a chunk is, and where the next one goes.
Counts what a tier did beside serving; logs trouble that lasts only once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core.tiers.disk.allocator import Allocator, choose_segments, move_live
from cache_core.tiers.disk.catalog import KeyIndex, survey
from cache_core.tiers.disk.directory import Directory, Lost
from cache_core.tiers.disk.format import RecordAccess, Sequences, Sizes, spend
from cache_core.tiers.disk.segment import SegmentFile, Spot
from cache_core.tiers.disk.tombstones import Tombstones
from cache_core.tiers.tier import TierError

logger = logging.getLogger("lmcache")


class RateLimitedWarnings:
    """Writes one line in the log per kind of trouble, until it has gone well again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._open: set[str] = set()

    def about(self, kind: str, text: str) -> None:
        if kind not in self._open:
            self._open.add(kind)
            logger.warning("%s tier: %s; requests go on without it", self.name, text)

    def over(self, *kinds: str) -> None:
        self._open.difference_update(kinds)


@dataclass(slots=True)
class DiskCounters:
    """Counts of what went wrong and what it cost, since the tier was opened. All count chunks, but
    for ``syncs`` and ``failed_syncs``."""

    damaged: int = 0
    unreadable: int = 0
    unwritten: int = 0
    copied: int = 0
    syncs: int = 0
    failed_syncs: int = 0


class Log:
    """The index of a disk tier's records, and the space for new ones. :meth:`room`,
    :meth:`publish`, :meth:`discard` and :meth:`tidy` are for one thread at a time, the writer;
    :meth:`find`, :meth:`drop` and :meth:`sync` for any. No lock is held while a disk works but by
    what waits for disks itself: :meth:`room`, :meth:`tidy`, :meth:`drop`, :meth:`sync` and
    :meth:`close`."""

    def __init__(
        self,
        directory: Directory,
        cap_bytes: int,
        segment_bytes: int | None,
        access: RecordAccess,
        counters: DiskCounters,
        warnings: RateLimitedWarnings,
    ) -> None:
        self.directory = directory
        self.access, self.counters, self.warnings = access, counters, warnings
        catalog = survey(directory, access)
        largest = max((segment.most_bytes for segment in catalog.segments), default=0)
        self.sizes: Sizes = spend(
            cap_bytes, access.payload_bytes, segment_bytes, catalog.untouched_bytes, largest
        )
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._space = Allocator(directory, self.sizes, access.namespace, catalog)
        self._deaths = Tombstones(directory, self.sizes.deaths_bytes)
        self._index = KeyIndex()
        self._head: SegmentFile | None = None
        self._names_changed = True
        # Dead because a newer record of the key was written: noted only once that one is durable.
        self._overwritten: list[int] = []
        # Numbers are unique over all namespaces, as the list of tombstones is one for all.
        ours = [segment.sequences for segment in catalog.segments]
        theirs = [segment.sequences for segment in catalog.foreign_segments]
        numbers = np.concatenate([self._deaths.found, *ours, *theirs])
        self._next_sequence = int(numbers.max(initial=0)) + 1
        # Not in our segments: of others, or of files that can't be read now.
        mine = np.concatenate([np.empty(0, dtype=np.uint64), *ours])
        strange = np.concatenate([np.empty(0, dtype=np.uint64), *theirs])
        self._strange_deaths = (
            np.setdiff1d(self._deaths.found, mine)
            if catalog.unknown
            else np.intersect1d(self._deaths.found, strange)
        )
        if catalog.unknown:
            # Records that nobody has counted have numbers too; they are far fewer than this.
            self._next_sequence += 1 << 40
        self._restore()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def keys(self) -> list[bytes]:
        """Returns the keys that are held, least recently written first."""
        with self._lock:
            return self._index.keys()

    def find(self, key: bytes) -> Spot | None:
        """Returns where the key's record is; None if it is not held."""
        return self._index.get(key)

    # -- the writer's --

    def room(self, wanted: int) -> tuple[SegmentFile, NDArray[np.int64], Sequences] | None:
        """Reserves up to ``wanted`` fresh slots of one segment, and sequence numbers for them; None
        if no space can be made. Raises ``OSError``, mostly for a file system that is full."""
        head = self._head
        if head is None or head.filled == head.header.slots:
            self._retire()
            while self._space.spare < self.sizes.segment_bytes:
                if not self._space.drop_foreign() and not self._compact():
                    break
            head = self._space.new_segment(self._compact)
            if head is None:
                return None
            with self._lock:
                self._space.segments[head.number] = head
                self._head = head
                self._names_changed = True
        count = min(wanted, head.header.slots - head.filled)
        with self._lock:
            slots = np.arange(head.filled, head.filled + count, dtype=np.int64)
            # Never given out again, whatever becomes of the write: a slot is written once.
            head.filled += count
            first = self._next_sequence
            self._next_sequence += count
        return head, slots, np.arange(first, first + count, dtype=np.uint64)

    def publish(
        self,
        segment: SegmentFile,
        slots: NDArray[np.int64],
        sequences: Sequences,
        keys: list[bytes],
    ) -> None:
        """Adds records that are whole to the index. It leaves the rest to :meth:`tidy`."""
        with self._lock:
            for slot, sequence, key in zip(slots.tolist(), sequences.tolist(), keys, strict=True):
                segment.keys[slot] = np.frombuffer(key, dtype=np.uint8)
                segment.sequences[slot] = sequence
                self._overwritten += self._index.put(key, Spot(segment, slot, sequence))
            segment.unsynced = True

    def discard(self, keys: Iterable[bytes]) -> None:
        """Frees chunks in the index. It leaves the rest to :meth:`tidy`."""
        with self._lock:
            self._deaths.queue([n for key in keys for n in self._index.remove(key)])

    @property
    def untidy(self) -> bool:
        """Returns whether :meth:`tidy` has something to do."""
        return bool(self._index.emptied) or self._deaths.waiting

    def tidy(self) -> None:
        """Writes tombstones, then gives back the segments that have nothing else. Raises
        :class:`Lost`."""
        self._deaths.flush()
        if self._deaths.long:
            self._try_to_shorten_deaths()
        self._give_back(self._index.emptied)

    # -- any thread's --

    def drop(self, key: bytes, spot: Spot) -> None:
        """Forgets a record that could not be served."""
        with self._lock:
            dead = self._index.remove(key) if self._index.get(key) is spot else []
        if self.directory.ours:
            self._deaths.add(dead)

    def sync(self) -> bool:
        """Makes everything published so far durable, and writes the tables of full segments."""
        with self._syncing:
            with self._lock:
                todo = [s for s in self._space.segments.values() if s.unsynced or not s.sealed]
                head = self._head
                names, self._names_changed = self._names_changed, False
                overwritten = len(self._overwritten)
                unsynced = [segment for segment in todo if segment.unsynced]
                for segment in unsynced:
                    segment.unsynced = False
            good = True
            for segment in todo:
                try:
                    if segment is not head:
                        segment.seal()
                    elif segment in unsynced:
                        segment.sync()
                except FileNotFoundError:
                    continue  # nothing in it was alive any more, or somebody has removed it
                except OSError as error:
                    self.warnings.about("sync", f"can't make durable: {error.strerror}")
                    segment.unsynced = True
                    good = False
            try:
                if names:
                    self.directory.sync()
            except OSError as error:
                self.warnings.about("sync", f"can't make durable: {error.strerror}")
                self._names_changed = True
                good = False
            if good:
                self.warnings.over("sync")
                with self._lock:
                    dead = self._overwritten[:overwritten]
                    del self._overwritten[:overwritten]
                self._deaths.add(dead)
            return self._deaths.sync() and good

    def close(self) -> bool:
        """Seals and syncs all segments. Returns whether all of it is durable."""
        self._retire()
        good = self.sync()
        self._deaths.close()
        with self._lock:
            self._index.clear()
            self._space.segments.clear()
        return good

    # -- within --

    def _restore(self) -> None:
        """Builds the index, then drops what a cap that has become smaller does not hold."""
        space, index = self._space, self._index
        segments = sorted(space.segments.values(), key=lambda segment: segment.number)
        index.load(segments, set(self._deaths.found.tolist()))
        self._give_back([segment for segment in segments if segment.live == 0])
        while space.free < 0 and space.drop_foreign():
            continue
        while space.free < 0 and space.segments:
            oldest = min(space.segments.values(), key=lambda segment: segment.last_sequence)
            for key, _ in index.live(oldest):
                index.remove(key)
            self._give_back([oldest])
            if oldest.number in space.segments:
                raise TierError(f"{oldest.path} can't be removed, and the cap is passed")
        for key in index.keys()[: max(0, len(index) - self.sizes.capacity)]:
            index.remove(key)
        self._try_to_shorten_deaths()
        self._give_back(index.emptied)

    def _retire(self) -> None:
        """Gives the head no more records; the next sync seals it."""
        with self._lock:
            head, self._head = self._head, None
        self._give_back([head] if head is not None else [])

    def _give_back(self, segments: Iterable[SegmentFile]) -> None:
        """Removes those of the segments that have no live chunk. Raises :class:`Lost`."""
        with self._lock:
            segments = list(segments)
        if not segments:
            return
        if self._overwritten:
            # They may hold newer records, dead by now, of keys whose older ones are elsewhere.
            self.sync()
        for segment in segments:
            with self._lock:
                self._index.emptied.pop(segment, None)
                if segment.live > 0 or segment is self._head:
                    continue
            if self._space.remove(segment):
                with self._lock:
                    self._space.segments.pop(segment.number, None)

    def _compact(self) -> bool:
        """Moves live chunks together. Returns whether that gave space back."""
        with self._lock:
            others = [s for s in self._space.segments.values() if s is not self._head]
            before = self._space.free
            wanted = self.sizes.segment_bytes - self._space.spare
            if wanted <= 0:  # within the budget: it is the file system that is full
                wanted = self.sizes.segment_bytes
            room = min(before, self.sizes.reserve)
            chosen = choose_segments(others, self.sizes, room, wanted)
            moving = [record for segment in chosen for record in self._index.live(segment)]
        try:
            if moving:
                self._move(moving)
        except Lost:
            raise
        except OSError as error:
            logger.info("no room can be got back in %s: %s", self.directory.path, error.strerror)
            return False
        self._give_back(chosen)
        return self._space.free > before

    def _move(self, moving: list[tuple[bytes, Spot]]) -> None:
        records = [(spot.segment, spot.slot) for _, spot in moving if spot.segment is not None]
        self._space.settle()
        target, readable = move_live(
            self.directory, self._space.next_number(), records, self.access
        )
        with self._lock:
            self._space.segments[target.number] = target
            self.counters.copied += sum(readable)
            for slot, (key, spot) in enumerate(moving):
                # A reader may have dropped it meanwhile.
                if self._index.get(key) is spot:
                    to = target if readable[slot] else None
                    self._index.put(key, Spot(to, slot, spot.sequence))

    def _try_to_shorten_deaths(self) -> None:
        """Shortens the list of the dead. Without space for it the list stays as long as it is: what
        is there can be served, and perhaps there is space again later. Raises :class:`Lost`."""
        try:
            self._shorten_deaths()
        except Lost:
            raise
        except OSError as error:
            logger.warning("%s can't be written anew: %s", self._deaths.path, error.strerror)

    def _shorten_deaths(self) -> None:
        """Leaves out of the list of the dead what is gone with its segment. Raises ``OSError``."""
        with self._lock:
            written = [segment.sequences for segment in self._space.segments.values()]
            there = np.concatenate([np.empty(0, dtype=np.uint64), *written])
            live = self._index.sequences()
            live = np.concatenate([live, np.array([0, *self._overwritten], dtype=np.uint64)])
        # Or a segment could be back after a power cut, and what was dead in it alive.
        self.directory.sync()
        self._deaths.rewrite(np.union1d(np.setdiff1d(there, live), self._strange_deaths).tolist())
        self._names_changed = True
