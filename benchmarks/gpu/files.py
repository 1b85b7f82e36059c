"""Files that are whole at any time, and a digest of the sources that a result is of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_COMPILED = ("csrc",)
_FOLDERS = ("benchmarks", "cache_core", "csrc", "lmcache_cli", "reports", "tests", "workloads")
_FILES = ("CMakeLists.txt", "pyproject.toml")
_BUILT = (".so", ".pyc")


def replace_text(path: Path, text: str) -> None:
    """Writes the file so that whoever reads it finds the old text or the new one. Raises
    ``OSError``."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def sources_digest(root: Path = ROOT) -> str:
    """Of all that is compiled or run, committed or not: 16 hex digits."""
    return _digest(root, _FOLDERS)


def compiled_digest(root: Path = ROOT) -> str:
    """Of what the modules are made from."""
    return _digest(root, _COMPILED)


def _digest(root: Path, folders: Sequence[str]) -> str:
    inside = [path for folder in folders for path in (root / folder).rglob("*")]
    there = [path for path in (*inside, *(root / name for name in _FILES)) if path.is_file()]
    found = hashlib.sha256()
    for path in sorted(path for path in there if path.suffix not in _BUILT):
        found.update(f"{path.relative_to(root)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
