"""Implements the disk tier: chunks that outlive the process, never served wrong."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from cache_core.layout import Addresses
from cache_core.tiers.disk.crew import DiskCall, Hung, IoThreads
from cache_core.tiers.disk.directory import Directory, Lost, does_direct
from cache_core.tiers.disk.format import KEY_FIELD_BYTES, RecordAccess, slot_bytes
from cache_core.tiers.disk.log import DiskCounters, Log, RateLimitedWarnings
from cache_core.tiers.disk.reader import Buffer, DiskBuffers, DiskReader, Staging
from cache_core.tiers.disk.writer import Syncer, Writer
from cache_core.tiers.tier import Read, Tier, TierError, fitting
from cache_core.transfer.chunks import ChunkBuffers

logger = logging.getLogger("lmcache")

_T = TypeVar("_T")
# How long a call of a disk may take: much longer than a slow one needs for 64 MiB.
DISK_TIMEOUT_S = 30.0


class DiskTier(Tier):
    """A tier of chunks of ``chunk_bytes`` in segment files in ``directory``, which takes at most
    ``cap_bytes`` on disk, all files and what file systems add counted.

    What was written is found again by the next process that opens the directory. A chunk counts as
    stored once its bytes are with the operating system, where they survive this process; they
    survive a power cut after :meth:`sync`, which happens by itself after ``sync_bytes`` or
    ``sync_s`` seconds. Every read proves header and payload by checksum: damage is a miss, one line
    in the log, and the chunk is forgotten.

    ``namespace``, 32 bytes, says what shape the chunks have; those of another one stay unserved
    until their space is needed. ``segment_bytes`` defaults to 256 MiB or a 32nd of the cap.
    ``depth`` reads or writes are under way at once. ``direct`` goes around the page cache; None
    asks the file system whether it can.

    A disk that does not answer for ``timeout_s`` seconds (None: for ever) is not waited for: what
    it was asked for is ``LATER`` or not stored, and until it has answered each call ends at once.
    Chunks go through memory of the tier's own, so that a disk that comes back late touches none of
    the caller's. Trouble that may pass (no more descriptors, no memory, a mount that is away)
    deletes nothing, here and when the directory is opened. The directory may be moved; once it is
    removed, or has another process's ``LOCK`` in it, the tier keeps nothing and changes nothing.

    Raises :class:`TierError`, and changes nothing, if another process has the directory, if it
    can't be read or written to (one that is full can), if its contents are not a disk tier's or a
    later version's, or if not one chunk fits into the cap.
    """

    def __init__(
        self,
        name: str,
        directory: str | Path,
        cap_bytes: int,
        chunk_bytes: int,
        *,
        namespace: bytes = bytes(32),
        segment_bytes: int | None = None,
        depth: int = 8,
        direct: bool | None = None,
        sync_bytes: int = 64 << 20,
        sync_s: float = 1.0,
        timeout_s: float | None = DISK_TIMEOUT_S,
    ) -> None:
        if len(namespace) != KEY_FIELD_BYTES:
            raise ValueError(
                f"namespace has {len(namespace)} bytes; it must have {KEY_FIELD_BYTES}"
            )
        self.name = name
        self._counters = DiskCounters()
        self._chunk_bytes = chunk_bytes
        self._warnings = RateLimitedWarnings(name)
        self._directory = Directory(Path(directory))
        try:
            self.direct = does_direct(self._directory.fd) if direct is None else direct
            access = RecordAccess(namespace, chunk_bytes, self.direct, depth)
            self._log = Log(
                self._directory, cap_bytes, segment_bytes, access, self._counters, self._warnings
            )
        except OSError as error:
            self._directory.close()
            raise TierError(
                f"{directory} can't be opened: {error.strerror or error}; nothing in it is lost"
            ) from error
        except BaseException:
            self._directory.close()
            raise
        self.capacity: int | None = self._log.sizes.capacity
        self._reader = DiskReader(self._log)
        self._writer = Writer(self._log)
        self._staging = Staging(chunk_bytes, depth)
        room = self._staging.chunks // 2  # one batch arrives while another is copied
        self._batch = min(room, max(depth, room // 4))
        self._crew = IoThreads(name, timeout_s)
        self._syncer = Syncer(self._sync, sync_bytes, sync_s)
        self._over = False  # closed, or the directory is lost

    @property
    def counters(self) -> DiskCounters:
        return self._counters

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        """Returns whether calls always come back, and late ones touch no memory of the caller's."""
        return self._crew.timeout_s is not None

    def __len__(self) -> int:
        return 0 if self._over else len(self._log)

    def recovered(self) -> list[bytes]:
        """Returns the keys that are held, least recently written first: at most ``capacity``."""
        return [] if self._over else self._log.keys()

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [not self._over and key in self._log for key in keys]

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        answers = Read.of(self.contains(keys))
        rows = [row for row, held in enumerate(answers) if held]
        if place is None or not rows:
            return answers
        left = list(rows)
        try:
            self._crew.check()
            with (
                self._staging.borrow(min(len(rows), 2 * self._batch)) as buffer,
                closing(self._fetched(keys, rows, buffer)) as arriving,
            ):
                for batch, found, memory in arriving:
                    whole = [i for i, ok in enumerate(found) if ok]
                    if whole:
                        place.pick([batch[i] for i in whole]).copy_from(memory[whole])
                    for row, answer in zip(batch, found, strict=True):
                        answers[row] = answer
                    del left[: len(batch)]
            if all(answers[row] for row in rows):
                self._warnings.over("read")
        except (Hung, MemoryError, OSError) as trouble:
            self._say("read", trouble)
            for row in left:
                answers[row] = Read.GONE if self._over else Read.LATER
            self._counters.unreadable += len(left)
        return answers

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        if place is None:
            raise ValueError(f"the {self.name} tier keeps bytes: write() needs a place")
        stored = [False] * len(keys)
        if self._over or not self._directory.ours:
            return stored
        rows = fitting(keys, self.contains(keys), (self.capacity or 0) - len(self._log))
        try:
            self._crew.check()
            if rows:
                with self._staging.borrow(len(rows)) as buffer:
                    for batch in _batches(rows, self._staging.chunks):
                        place.pick(batch).copy_to(buffer.addresses[: len(batch)])
                        self._put(keys, batch, buffer, stored)
            self._tidy()
        except (Hung, MemoryError, OSError) as trouble:
            self._say("write", trouble)
        except BaseException:
            # The buffers failed: who gave them counts none of this call's chunks as stored.
            self._log.discard([keys[row] for row in rows if stored[row]])
            raise
        self._counters.unwritten += len(rows) - sum(stored)
        return stored

    def discard(self, keys: Sequence[bytes]) -> None:
        if self._over or not self._directory.ours:
            return
        self._log.discard(keys)
        try:
            self._tidy()
        except (Hung, OSError) as trouble:
            self._say("discard", trouble)

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        return DiskBuffers(keys, self.read, self._chunk_bytes)

    def sync(self) -> bool:
        """Waits until everything written so far survives a power cut. Returns False if it may not;
        the log says why, and the next sync tries again."""
        if self._over:
            return False
        try:
            return self._crew.call(self._sync)
        except (Hung, OSError) as trouble:
            self._say("sync", trouble)
            return False

    def close(self) -> None:
        """Makes everything durable and lets the directory go; the chunks stay in it. A disk that
        hangs keeps it until it has answered, or the process ends."""
        if not self._directory.ours:
            return
        over, self._over = self._over, True
        if over and self._crew.hung:
            return  # the abandoned call closes it
        self._syncer.close()
        try:
            self._crew.close(self._shut)
        except (Hung, OSError) as trouble:
            self._say("close", trouble)
        self._staging.release()

    def _fetched(
        self, keys: Sequence[bytes], rows: list[int], buffer: Buffer
    ) -> Generator[tuple[list[int], list[Read], Addresses]]:
        """Yields rows, what became of them, and where they are until the next are asked for: those
        are being read meanwhile."""
        size = self._batch
        ahead: deque[tuple[list[int], Addresses, DiskCall[list[Read]]]] = deque()
        try:
            for number, batch in enumerate(_batches(rows, size)):
                memory = buffer.addresses[number % 2 * size :][: len(batch)]
                wanted = [keys[row] for row in batch]
                work = partial(_with, buffer, partial(self._reader.fetch, wanted, memory))
                ahead.append((batch, memory, self._crew.start(work)))
                if len(ahead) == 2:
                    yield self._arrived(*ahead[0])
                    ahead.popleft()
            while ahead:
                yield self._arrived(*ahead[0])
                ahead.popleft()
        finally:
            for _, _, task in ahead:
                # The buffers have failed, or the disk: only the latter has been waited for.
                if not self._crew.hung:
                    task.ended.wait(self._crew.timeout_s)
                buffer.left = self._crew.leave(task) or buffer.left

    def _arrived(
        self, batch: list[int], memory: Addresses, task: DiskCall[list[Read]]
    ) -> tuple[list[int], list[Read], Addresses]:
        return batch, self._answer(task), memory

    def _tidy(self) -> None:
        if self._log.untidy:
            self._ask(self._log.tidy)

    def _ask(self, work: Callable[[], _T]) -> _T:
        """Runs ``work`` on a thread and returns its result. Raises :class:`Hung` or ``OSError``."""
        return self._answer(self._crew.start(work))

    def _answer(self, task: DiskCall[_T]) -> _T:
        """Waits for a call and returns its result. Raises :class:`Hung` or ``OSError``."""
        try:
            answer = self._crew.wait(task)
        except Lost:
            self._over = True
            raise
        self._warnings.over("hung")
        return answer

    def _sync(self) -> bool:
        if self._over or not self._directory.ours:
            return False
        try:
            self._directory.check()
        except OSError as trouble:
            self._over = self._over or isinstance(trouble, Lost)
            self._say("sync", trouble)
            return False
        good = self._log.sync()
        self._counters.syncs += 1
        self._counters.failed_syncs += not good
        return good

    def _shut(self) -> None:
        self._syncer.join()
        try:
            self._directory.check()
            self._log.close()
        finally:
            self._directory.close()

    def _say(self, verb: str, trouble: Exception) -> None:
        """Logs one line for each kind of trouble."""
        if isinstance(trouble, Hung):
            self._warnings.about("hung", f"{self._directory.path} hangs: {trouble}")
        elif isinstance(trouble, Lost):
            self._warnings.about("lost", f"{trouble.strerror}; it keeps nothing any more")
        elif isinstance(trouble, MemoryError):
            self._warnings.about("memory", f"can't {verb}, it needs memory: {trouble}")
        elif isinstance(trouble, OSError):
            self._warnings.about(verb, f"can't {verb}: {trouble.strerror or trouble}")

    def _put(
        self, keys: Sequence[bytes], rows: list[int], buffer: Buffer, stored: list[bool]
    ) -> None:
        """Writes rows' chunks, segment by segment, and notes in ``stored`` which are whole."""
        done = 0
        while done < len(rows):
            rest = [keys[row] for row in rows[done:]]
            try:
                task = self._crew.start(partial(self._writer.append, rest, buffer, done))
                try:
                    written = self._answer(task)
                finally:
                    buffer.left = buffer.left or not task.ended.is_set()
            except Lost:
                raise
            except OSError as error:
                self._say("write", error)
                return
            if written is None:
                self._warnings.about("room", "has no room")
                return
            count = len(written.slots)
            good = np.flatnonzero(written.statuses == 0)
            self._log.publish(
                written.segment,
                written.slots[good],
                written.sequences[good],
                [rest[i] for i in good],
            )
            for i in good:
                stored[rows[done + int(i)]] = True
            if len(good) < count:
                worst = int(written.statuses[written.statuses != 0][0])
                self._warnings.about("write", f"can't write: {os.strerror(worst)}")
            else:
                self._warnings.over("write", "room")
            self._syncer.wrote(count * slot_bytes(self._chunk_bytes))
            done += count


def _with(_: object, work: Callable[[], _T]) -> _T:
    """Runs the work, and keeps an object alive meanwhile."""
    return work()


def _batches(rows: list[int], size: int) -> list[list[int]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]
