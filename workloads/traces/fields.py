"""Values of a trace's line, checked: what they raise says what is wrong with the line."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from workloads.traces.lines import Record
from workloads.traces.reader import ChunkIds

_TOP = 1 << 63
# Tuples: a union is made anew at each look.
_TIMES, _NAMES = (int, float, str), (str, int)
MILLENNIA_S = 1e11
"""More seconds than a trace's clock can show: as milliseconds they are years."""


def value(record: Record, name: str) -> Any:
    """Returns a field of the record. Raises ``ValueError`` if it is missing."""
    if name not in record:
        raise ValueError(f"{name} is missing")
    return record[name]


def whole(record: Record, name: str, least: int = 0) -> int:
    """Returns a field as a whole number of at least ``least``; digits in a string count. Raises
    ``ValueError``."""
    given = value(record, name)
    number = given
    if type(given) is int:  # the usual case
        pass
    elif isinstance(given, str):
        try:
            number = float(given) if "." in given else int(given)
        except ValueError:
            number = None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is not int:
        raise ValueError(f"{name}: {_short(given)} is not a whole number")
    if number < least:
        raise ValueError(f"{name}: {number} is less than {least}")
    return number


def seconds(record: Record, name: str, unit_s: float = 1.0) -> float:
    """Returns a field as a time: a number (or digits in a string) times ``unit_s``, or a date, as
    seconds since 1970 (UTC where it says nothing else). A number that would be millennia is of the
    smaller unit that makes it less. Raises ``ValueError``."""
    given = value(record, name)
    if isinstance(given, bool) or not isinstance(given, _TIMES):
        raise ValueError(f"{name}: {_short(given)} is no time")
    try:
        time = float(given) * unit_s
    except (ValueError, OverflowError):
        try:
            date = datetime.fromisoformat(str(given).strip())
        except ValueError:
            raise ValueError(
                f"{name}: {_short(given)} is no time; a number, or a date like 2026-05-01 10:00:00"
            ) from None
        time = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(time):
        raise ValueError(f"{name}: {_short(given)} is no time")
    while abs(time) >= MILLENNIA_S:
        time /= 1000
    return time


def text(record: Record, *names: str) -> str | None:
    """Returns the first of these fields that is there, as a string; None if none is."""
    for name in names:
        given = record.get(name)
        if given is None:
            continue
        if isinstance(given, _NAMES) and not isinstance(given, bool) and given != "":
            return str(given)
    return None


def as_id(name: object) -> int:
    """Returns an int64 that stands for a chunk's name: whole numbers below 2**64 and hexadecimal
    strings of up to 16 digits as they are, other strings by hash. Raises ``ValueError`` for
    anything else."""
    if type(name) is int:
        number = name
    elif isinstance(name, str) and name:
        digits = name.removeprefix("0x")
        try:
            number = int(digits, 16) if len(digits) <= 16 else -1
        except ValueError:
            number = -1
        if number < 0:
            number = xxh3_64_intdigest(name.encode())
    else:
        raise ValueError(f"{_short(name)} is no name of a chunk")
    if not -_TOP <= number < 2 * _TOP:
        raise ValueError(f"{_short(name)} is no 64-bit number")
    return number - 2 * _TOP if number >= _TOP else number


def ids(names: object, field: str) -> ChunkIds:
    """Returns chunk names as int64, shape [n]. Raises ``ValueError``."""
    if not isinstance(names, list):
        raise ValueError(f"{field}: {_short(names)} is no list")
    # The usual case, small numbers, without a call for each.
    if names and set(map(type, names)) == {int} and min(names) >= 0 and max(names) < _TOP:
        return np.array(names, np.int64)
    try:
        return np.array([as_id(name) for name in names], np.int64)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def full_chunks(named: ChunkIds, tokens: int, chunk_tokens: int) -> tuple[ChunkIds, int | None]:
    """Returns (names of full chunks, name of the partial one at the end or None). Raises
    ``ValueError`` if there are more names than ``tokens`` can have."""
    most = -(-tokens // chunk_tokens)
    if len(named) > most:
        raise ValueError(f"{len(named)} chunks of {chunk_tokens} tokens in a prompt of {tokens}")
    full = tokens // chunk_tokens
    return named[:full], int(named[full]) if len(named) > full else None


def chained(before: int, own: int) -> int:
    """Returns a chunk's name from its own name and that of the chunk before it (0 at the start)."""
    digest = xxh3_64_intdigest(own.to_bytes(8, "little", signed=True), before % (2 * _TOP))
    return digest - 2 * _TOP if digest >= _TOP else digest


def named(numbers: Iterable[int]) -> int:
    """Returns a name for these numbers (or tokens), in this order."""
    digest = xxh3_64_intdigest(array("q", numbers).tobytes())
    return digest - 2 * _TOP if digest >= _TOP else digest


def _short(given: object) -> str:
    shown = repr(given)
    return shown if len(shown) <= 40 else shown[:37] + "..."
