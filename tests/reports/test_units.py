from __future__ import annotations

import pytest

from reports.units import bytes_text, bytes_unit, number_text, places_for, seconds_text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (23040, "22.5 KiB"),
        (512 * 2**20, "512 MiB"),
        (1023.9 * 2**20, "1 GiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (1.02 * 2**30, "1.02 GiB"),
        (100 * 2**30, "100 GiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_bytes(nbytes: float, text: str) -> None:
    assert bytes_text(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.000042, "42 µs"),
        (0.0009996, "1 ms"),
        (0.0038, "3.8 ms"),
        (0.038, "38 ms"),
        (0.9996, "1 s"),
        (4.2, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (95, "1 min 35 s"),
        (3599.6, "1 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_a_column_has_one_number_of_decimals() -> None:
    assert [places_for([value, 5000]) for value in (0.5, 5, 50, 500)] == [2, 2, 1, 0]
    assert places_for([None, 0.0]) == 0
    assert number_text(5203.44, 1) == "5,203.4"
    assert number_text(None, 1) == "\N{EN DASH}"


def test_a_column_of_bytes_has_one_unit() -> None:
    assert bytes_unit([0, 5 * 2**20, 7 * 2**30]) == ("MiB", 2**20)
    assert bytes_unit([3 * 2**30]) == ("GiB", 2**30)
    assert bytes_unit([]) == ("B", 1)
