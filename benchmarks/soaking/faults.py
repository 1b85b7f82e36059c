"""What fails in a soak. Each fault takes a function that waits, and is over when it returns."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

Wait = Callable[[float], None]


class Redis:
    """A server of our own that evicts."""

    def __init__(self, folder: Path, most_bytes: int, timeout_s: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._timeout_s = timeout_s
        words = f"--port {self.port} --bind 127.0.0.1 --appendonly no --dir {folder}"
        words += f" --maxmemory {most_bytes} --maxmemory-policy allkeys-lru"
        self._command = ["redis-server", *words.split(), "--save", ""]
        self._process = self._start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}?timeout={self._timeout_s:g}&pause=1"

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def stall(self, wait: Wait) -> None:
        self._process.send_signal(signal.SIGSTOP)
        try:
            wait(3)
        finally:
            self._process.send_signal(signal.SIGCONT)

    def restart(self, wait: Wait) -> None:
        self.kill()
        wait(1)
        self._process = self._start()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def move_away(folder: Path, wait: Wait) -> None:
    away = folder.with_name("away")
    folder.rename(away)
    try:
        wait(2)
    finally:
        away.rename(folder)


def fill(file_system: Path, wait: Wait) -> None:
    filler = file_system / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(fd, bytes(1 << 16)):
            pass
    except OSError:
        wait(3)
    finally:
        os.close(fd)
        filler.unlink()


def no_descriptors(wait: Wait) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        wait(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def mount(folder: Path, nbytes: int) -> bool:
    """A file system of so many bytes in memory, if this process may."""
    size = f"size={nbytes}"
    command = ["mount", "-t", "tmpfs", "-o", size, "lmcache-soak", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
