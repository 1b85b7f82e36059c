"""Group sync: what was written becomes durable in the background, many chunks at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Syncer:
    """Calls ``sync`` on a thread of its own once ``limit_bytes`` were written since the last time,
    and at the latest ``limit_s`` seconds after the first of them. The thread starts with the first
    write: a tier that is only read has none."""

    def __init__(self, sync: Callable[[], bool], limit_bytes: int, limit_s: float) -> None:
        self._sync = sync
        self._limit_bytes = limit_bytes
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._bytes = 0
        self._ended = False
        self._thread: threading.Thread | None = None

    def wrote(self, nbytes: int) -> None:
        """Returns at once. One thread at a time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lmcache-disk-sync", daemon=True)
            self._thread.start()
        with self._changed:
            first = self._bytes == 0
            self._bytes += nbytes
            if first or self._bytes >= self._limit_bytes:
                self._changed.notify()

    def close(self) -> None:
        """The thread ends once what it does now is done; what is not durable yet is the caller's
        to sync."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def join(self) -> None:
        """Waits for the thread to end, after :meth:`close`."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._bytes > 0 or self._ended)
                self._changed.wait_for(
                    lambda: self._bytes >= self._limit_bytes or self._ended, self._limit_s
                )
                if self._ended:
                    return
                self._bytes = 0
            self._sync()
