"""Says which weights made KV: a digest of the files that a model or an adapter is read from.

Reading a model of 100 GB takes minutes, so a file's digest is remembered by the file's identity: by
this process, and in a folder that all processes of the user share.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

# Weights, what says how they are used, and code that a model may bring with it.
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".tensors")
_SUFFIXES = frozenset({*_WEIGHTS, ".json", ".yaml", ".yml", ".py"})
# Settings of sampling, which people edit and which no KV depends on.
_BESIDE = frozenset({"generation_config.json"})
_ADAPTER = ("adapter", "new_embeddings")
_FULL_BYTES = 4 << 30
_FULL_BYTES_BELOW = 64 << 20
_SAMPLES = 64
# As long as the clock that stamps files may not have moved on, a change may leave a stamp as it is.
_SETTLED_NS = 2_000_000_000
_MOST_KNOWN = 4096
# How long a process waits for one that reads a file. No process reads this slowly for ever, unless
# it is stopped or its disk hangs: then the next one reads too.
_PATIENCE_S = 5.0
_SLOWEST_BYTES_S = 50e6
_POLL_S = 0.02

Identity = tuple[int, int, int, int, int]


def file_identity(path: Path) -> Identity:
    """Returns what changes whenever a file's bytes do: device, inode, size, and the times of its
    last change (bytes, and anything), in nanoseconds. Raises ``OSError``."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def settled(identities: Iterable[Identity]) -> bool:
    """Returns whether these files last changed so long ago that another change would show."""
    now = time.time_ns()
    return all(now - max(found[3:]) > _SETTLED_NS for found in identities)


def model_files(path: Path) -> list[Path]:
    """Returns what a model is read from: the file itself, or weights, configuration and code in the
    folder and below it. Empty if there is neither. Raises ``OSError``."""
    if path.is_file():
        return [path]
    return sorted(_walk(path, set())) if path.is_dir() else []


def adapter_files(path: Path) -> list[Path]:
    """Returns what a LoRA adapter is read from; empty if that is no folder. Raises ``OSError``."""
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.name.startswith(_ADAPTER) and p.is_file())


class FileDigests:
    """Digests of files, each read once as long as its identity stays.

    ``shared`` is a folder for what other processes may use (None: none); what can't be read or
    written there costs time, never an error.
    """

    def __init__(self, shared: Path | None) -> None:
        self._shared = shared
        self._known: dict[str, str] = {}

    def of(self, files: Sequence[Path], root: Path) -> str:
        """Returns 64 hexadecimal digits for these files' names below ``root`` and bytes; empty text
        for no files. Of files over 4 GiB (64 MiB, below sub-folders) 64 samples of 1 MiB count: a
        fine-tune changes weights everywhere. Raises ``OSError``."""
        if not files:
            return ""
        digest = hashlib.sha256()
        for path in files:
            name = path.relative_to(root).as_posix() if path != root else path.name
            full = _FULL_BYTES_BELOW if "/" in name else _FULL_BYTES
            digest.update(f"{name}:{path.stat().st_size};".encode())
            digest.update(bytes.fromhex(self._one(path, full)))
        return digest.hexdigest()

    def _one(self, path: Path, full: int) -> str:
        identity = file_identity(path)
        name = hashlib.sha256(f"digest/1 {identity} {full}".encode()).hexdigest()
        found = self._known.get(name) or self._recall(name)
        if found:
            self._known[name] = found
            return found
        if not settled([identity]):
            return _digest(path, identity[2], full)
        with self._alone(name, min(identity[2], full)):
            value = self._recall(name) or _digest(path, identity[2], full)
            if file_identity(path) == identity:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[name] = value
                self._leave(name, value)
        return value

    @contextmanager
    def _alone(self, name: str, size: int) -> Iterator[None]:
        """Lets one of the processes that start together, as an engine's workers do, read ``size``
        bytes; the others wait for what it leaves, though not for ever."""
        with ExitStack() as stack:
            if self._shared is not None:
                path = self._shared / f"{name}.lock"
                with suppress(OSError):
                    self._shared.mkdir(parents=True, exist_ok=True)
                    lock = stack.enter_context(path.open("ab"))
                    if self._locked(lock, name, size):
                        stack.callback(_remove, path)
            yield

    def _locked(self, lock: IO[bytes], name: str, size: int) -> bool:
        """Returns whether nobody else reads now, or will before the lock is closed; False once
        there is a digest, or waiting for it has taken too long."""
        end = time.monotonic() + _PATIENCE_S + size / _SLOWEST_BYTES_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._recall(name) or time.monotonic() > end:
                    return False
                time.sleep(_POLL_S)
            else:
                return True

    def _recall(self, name: str) -> str:
        if self._shared is None:
            return ""
        try:
            text = (self._shared / name).read_text()
        except (OSError, ValueError):
            return ""
        return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else ""

    def _leave(self, name: str, value: str) -> None:
        """Writes a digest beside and renames it: another process sees all of it or nothing."""
        if self._shared is None:
            return
        with suppress(OSError):
            handle, beside = tempfile.mkstemp(dir=self._shared)
            with os.fdopen(handle, "w") as file:
                file.write(value)
            os.replace(beside, self._shared / name)
            notes = sorted(self._shared.iterdir(), key=_written)
            for old in notes[: max(0, len(notes) - _MOST_KNOWN)]:
                _remove(old)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _written(path: Path) -> int:
    """Returns when a file was written; 0 if another process has removed it."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _shared() -> Path | None:
    """Returns where a user's processes leave digests for each other; None without a home."""
    try:
        return Path.home() / ".cache" / "lmcache-bench" / "digests"
    except RuntimeError:
        return None


_DIGESTS = FileDigests(_shared())


def model_digest(path: Path) -> str:
    """Returns the digest of a model's folder or file, see :func:`model_files`; empty text if there
    is none. Raises ``OSError``."""
    return _DIGESTS.of(model_files(path), path)


def _digest(path: Path, size: int, full: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= full:
            return hashlib.file_digest(file, "sha256").hexdigest()
        for i in range(_SAMPLES):
            file.seek((size - (1 << 20)) * i // (_SAMPLES - 1))
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yields the files that decide, below a folder; links are followed, each folder once."""
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, seen)
        elif path.suffix in _SUFFIXES and path.name not in _BESIDE and path.is_file():
            yield path
