"""Which weights made KV: a digest of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

PATTERNS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
_FULL_BYTES = 4 << 30
_SAMPLES = 64


def folder_digest(folder: Path) -> str:
    """Of a model's or adapter's folder; empty text if it is none."""
    if not folder.is_dir():
        return ""
    return files_digest(sorted(path for pattern in PATTERNS for path in folder.glob(pattern)))


def files_digest(files: Iterable[Path]) -> str:
    """Of the weights' bytes; of 64 samples of 1 MiB where a file is over 4 GiB (a fine-tune
    changes weights everywhere). Raises ``OSError``."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            if size <= _FULL_BYTES:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                continue
            for i in range(_SAMPLES):
                file.seek(size * i // _SAMPLES)
                digest.update(file.read(1 << 20))
    return digest.hexdigest()
