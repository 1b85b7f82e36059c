"""Reads sizes as people write them: 512MiB."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def size_in_bytes(text: str) -> int:
    """Returns the bytes of a size such as ``512MiB``. KiB, MiB, GiB, TiB (or K, M, G, T) are powers
    of 1024, KB .. TB of 1000. Raises ``ValueError`` for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write it like 512MiB, 2GiB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])
