"""What docs/architecture.md and README.md say of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PATH = [(file, int(lines)) for file, lines in re.findall(r"^\| `(\S+)` \| (\d+) \|", TEXT, re.M)]
MOST_README_LINES = 90


def test_the_reading_path_is_as_long_as_it_says() -> None:
    for file, lines in PATH:
        assert len((ROOT / file).read_text("utf-8").splitlines()) == lines, file
    [total] = re.findall(r"Together ([\d,]+) lines", TEXT)
    assert int(total.replace(",", "")) == sum(lines for _, lines in PATH)


def test_the_readme_promises_no_more() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    [files, lines] = re.findall(r"reading path of (\d+) files and ([\d,]+) lines", readme)[0]
    assert int(files) == len(PATH)
    assert int(lines.replace(",", "")) == round(sum(lines for _, lines in PATH), -2)
    assert len(readme.splitlines()) <= MOST_README_LINES


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_what_is_named_is_there(page: str) -> None:
    """Files and folders in backticks, and links to others."""
    text = (ROOT / page).read_text("utf-8")
    folder = (ROOT / page).parent
    linked = [folder / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text)
    starts = (ROOT, ROOT / "cache_core", ROOT / "cache_core" / "adapters" / "vllm")
    for name in named:
        if not name.startswith("runs/"):
            assert any((start / name).exists() for start in starts), name
    assert all(link.exists() for link in linked), [str(k) for k in linked if not k.exists()]
