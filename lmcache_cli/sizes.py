"""What people write on a command line: 512MiB, 64,128, words quoted as for a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import TypeVar

from cache_core.memory_limits import size_in_bytes
from lmcache_cli.errors import UserError

_T = TypeVar("_T")


def parse_size(text: str, flag: str) -> int:
    """Parses a size such as ``512MiB`` into bytes. KiB, MiB, GiB, TiB (or K, M, G, T) are powers of
    1024, KB .. TB of 1000. Raises ``UserError`` naming the flag."""
    try:
        return size_in_bytes(text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from None


def shell_words(text: str | None, flag: str) -> tuple[str, ...]:
    """Splits what is quoted as for a shell into words. Raises ``UserError`` naming the flag."""
    try:
        return tuple(shlex.split(text or ""))
    except ValueError as error:
        raise UserError(f"{flag}: {error}; quote it as for a shell") from error


def parse_count(text: str, flag: str) -> int:
    """Parses a whole number of at least 1. Raises ``UserError`` naming the flag."""
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a whole number") from None
    if value < 1:
        raise UserError(f"{flag}: {value} is too small; it must be at least 1")
    return value


def parse_duration(text: str, flag: str) -> float:
    """Parses ``90s``, ``10m``, ``1.5h`` or plain seconds into seconds, more than 0. Raises
    ``UserError`` naming the flag."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not seconds:
        raise UserError(f"{flag}: {text!r} is no duration; write it like 90s, 10m or 2h")
    return seconds


def parse_list(text: str, flag: str, parse: Callable[[str, str], _T]) -> list[_T]:
    """Parses each of the comma-separated values; duplicates are dropped, order is kept."""
    parts = text.split(",")
    if not all(part.strip() for part in parts):
        what = f"{text!r} has a comma too many" if text.strip(", ") else "no value given"
        raise UserError(f"{flag}: {what}; write one value, or several with commas to sweep")
    return list(dict.fromkeys(parse(part.strip(), flag) for part in parts))
