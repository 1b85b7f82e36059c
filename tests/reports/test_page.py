"""The page in a real browser: silent, whole in itself, readable, and usable by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.page.page import html_page
from reports.stored import StoredTune
from tests.reports.pages import opened, running_browser
from tests.reports.worlds import HOSTILE, swept_run, tuned

pytestmark = pytest.mark.browser

CHARTS = ["ttft", "speedup", "hits", "filling", "sweep", "sweep", "misses", "front"]
UNITS = re.compile(r"\((s|ms|%|times|tokens|GiB|number|\$ per hour)\b")
WIDTHS = [1280, 400]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    file = folder / "page.html"
    file.write_text(html_page([swept_run(folder), tuned()]), encoding="utf-8")
    return file


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_silent_and_alone(browser: Any, page_file: Path, width: int, colours: str) -> None:
    seen = opened(browser, page_file, width, colours)
    assert seen.messages == []
    assert seen.requests == [page_file.as_uri()]
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?https?:""", page_file.read_text())


@pytest.mark.parametrize("width", WIDTHS)
def test_every_chart_says_what_it_shows(browser: Any, page_file: Path, width: int) -> None:
    charts = opened(browser, page_file, width).charts()
    assert [chart["name"] for chart in charts] == CHARTS
    for chart in charts:
        assert chart["marks"] >= 4, chart
        assert chart["named"] >= 4, chart
        assert len(chart["titles"]) == 2, chart
        assert any(UNITS.search(title) for title in chart["titles"]), chart
        assert re.search(r"n = [\d,]+", chart["caption"]), chart
        assert chart["label"] and chart["rows"] >= 3, chart
        assert len(chart["colours"]) >= 1 and "" not in chart["colours"], chart


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_lies_upon_another_or_leaves_the_window(
    browser: Any, page_file: Path, width: int
) -> None:
    seen = opened(browser, page_file, width)
    assert seen.overlaps() == []
    assert seen.outside() == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_overlap_is_seen(browser: Any, page_file: Path) -> None:
    """The measure itself: moved upon another, a label is found."""
    seen = opened(browser, page_file, 1280)
    seen.page.evaluate(
        "[...document.querySelectorAll('.ttft .wide .role-axis-label text')]"
        ".slice(0, 2).forEach((t) => t.setAttribute('transform', 'translate(9,9)'))"
    )
    assert seen.overlaps()


def test_light_and_dark_by_system_and_by_button(browser: Any, page_file: Path) -> None:
    def paper(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    seen = {name: opened(browser, page_file, 1280, name) for name in ("light", "dark")}
    light, dark = paper(seen["light"].page), paper(seen["dark"].page)
    assert light != dark
    page = seen["light"].page
    ink = "getComputedStyle(document.querySelector('.ttft .role-axis-label text')).fill"
    before = page.evaluate(ink)
    page.click("#theme")
    assert paper(page) == dark and page.evaluate(ink) != before
    page.reload()
    assert paper(page) == dark, "the choice is kept"
    page.emulate_media(media="print")
    assert paper(page) == light, "paper is white whatever the screen was"


def test_by_keyboard(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file, 1280).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.focus(".ttft .wide")
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#tip")
    page.keyboard.press("ArrowRight")
    assert "TTFT p50" in first and page.inner_text("#tip") != first
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def test_printed_tables_are_open(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file, 1280).page
    closed = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(closed)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert before > 0 == page.evaluate(closed)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(closed) == before
    assert len(page.pdf()) > 10_000


@pytest.mark.parametrize("width", WIDTHS)
def test_what_files_say_is_text(browser: Any, tmp_path: Path, width: int) -> None:
    run = swept_run(tmp_path, name="x" + HOSTILE.replace("/", "_"), evil=HOSTILE)
    file = tmp_path / "page.html"
    file.write_text(html_page([run, tuned(HOSTILE)]), encoding="utf-8")
    seen = opened(browser, file, width)
    assert seen.messages == []
    assert seen.requests == [file.as_uri()]
    assert seen.page.evaluate("document.querySelectorAll('img, script').length") == 1
    assert HOSTILE in seen.page.inner_text("main")


def test_what_is_to_be_pasted_keeps_its_lines_and_equal_names_get_their_files() -> None:
    snippets = {"vLLM": "--kv-transfer-config '{...}'", "YAML": "chunk_size: 64\nlocal_cpu: true"}
    document = dict(tuned().document)
    document["recommendation"] |= {"snippets": snippets, "verdicts": ["A.", "B."]}
    document["cost"] = {"device": {"cards": 2, "hardware": "h100"}}
    page = html_page([StoredTune("one", document), StoredTune("two", document)])
    assert len(re.findall("2 x h100, .* requests, (one|two)</h2>", page)) == 2
    assert ">chunk_size: 64\nlocal_cpu: true</pre>" in page
    assert '<p class="answer">A.</p>' in page and '<p class="answer">B.</p>' in page


def test_an_incomplete_run_says_so_first(browser: Any, tmp_path: Path) -> None:
    run = swept_run(tmp_path, complete=False, warnings=["interrupted: what was measured"])
    file = tmp_path / "page.html"
    file.write_text(html_page([run]), encoding="utf-8")
    text = opened(browser, file, 400).page.inner_text("main")
    assert text.index("incomplete") < text.index("interrupted") < text.index("Time to first token")
