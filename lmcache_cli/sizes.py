"""Numbers as people write them on a command line: 512MiB, 64,128."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from lmcache_cli.errors import UserError

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

T = TypeVar("T")


def parse_size(text: str, flag: str) -> int:
    """``512MiB`` -> bytes. KiB, MiB, GiB, TiB (or K, M, G, T) are powers of 1024, KB .. TB of
    1000. Raises ``UserError`` naming the flag."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise UserError(f"{flag}: {text!r} is not a size; write it like 512MiB, 2GiB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_count(text: str, flag: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a whole number") from None
    if value < 1:
        raise UserError(f"{flag}: {value} is too small; it must be at least 1")
    return value


def parse_list(text: str, flag: str, parse: Callable[[str, str], T]) -> list[T]:
    """Comma-separated values, each parsed; duplicates are dropped, order is kept."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{flag}: no value given; write one, or several with commas to sweep")
    return list(dict.fromkeys(parse(part.strip(), flag) for part in parts))
