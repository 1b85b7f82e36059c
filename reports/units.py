"""Formats numbers for people. Byte sizes are binary (MiB), rates are decimal (GB/s)."""

from __future__ import annotations

from collections.abc import Iterable

EN_DASH = "\N{EN DASH}"
NONE = EN_DASH
"""The text that stands for a value that does not exist."""


def bytes_text(nbytes: float) -> str:
    """Formats bytes with three digits at most: ``536870912`` -> ``512 MiB``, ``1610612736`` ->
    ``1.5 GiB``."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if round(value) < 1024:
            return f"{_three_digits(value)} {unit}"
        value /= 1024
    return f"{_three_digits(value)} TiB"


def seconds_text(seconds: float) -> str:
    """Formats seconds: ``4.2`` -> ``4.2 s``, ``0.038`` -> ``38 ms``, ``95`` -> ``1 min 35 s``."""
    if round(seconds) >= 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if round(seconds) >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    unit, value = "s", seconds
    for smaller in ("ms", "µs"):
        if value and round(value * 1e3) < 1000:
            unit, value = smaller, value * 1e3
    return f"{value:.{1 if value < 9.95 else 0}f}".removesuffix(".0") + f" {unit}"


def bytes_unit(values: Iterable[float]) -> tuple[str, int]:
    """Chooses a column's unit, the largest of which each value has at least 1: ``MiB, 2**20``."""
    smallest = min((value for value in values if value), default=0)
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if smallest >= scale:
            return unit, scale
    return "B", 1


def number_text(value: float | None, places: int) -> str:
    """Formats a number with thousands separated: ``5203.44, 1`` -> ``5,203.4``; None is a dash."""
    return NONE if value is None else f"{value:,.{places}f}"


def places_for(values: Iterable[float | None], most: int = 2) -> int:
    """Returns the decimals that give the smallest of the values three digits, at most ``most``.

    One choice for a whole column keeps its decimal points under each other.
    """
    positive = [value for value in values if value]
    smallest = min(positive, default=1000.0)
    return min(most, sum(smallest < bound for bound in (1, 10, 100)))


def _three_digits(value: float) -> str:
    text = f"{value:.{places_for([value])}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
