"""The table of what models keep is the one in the documentation."""

from __future__ import annotations

from pathlib import Path

from benchmarks.model_bytes import HEADER, row
from lmcache_cli.tune.catalogue import ARCHITECTURES

DOCUMENT = Path(__file__).parents[2] / "docs/models.md"


def test_the_documented_table_is_what_the_catalogue_gives() -> None:
    lines = DOCUMENT.read_text().splitlines()
    first = lines.index(HEADER) + 2
    assert lines[first : first + len(ARCHITECTURES)] == [row(m) for m in ARCHITECTURES.values()]
    # No tier wastes more than an eighth of its slots.
    shares = [cell for line in lines[first:] for cell in line.split("|")[-2:-1] if "%" in cell]
    assert len(shares) == len(ARCHITECTURES)
    assert all(float(part.split("%")[0]) <= 12.5 for cell in shares for part in cell.split("/"))
