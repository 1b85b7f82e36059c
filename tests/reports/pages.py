"""A browser for the tests of the page, and what they ask it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Boxes of visible text, each of one line, that lie upon one another by more than rounding.
_OVERLAPS = """() => {
  const boxes = [];
  for (const text of document.querySelectorAll(".plot svg text")) {
    if (!text.checkVisibility() || !text.textContent.trim()) continue;
    const box = text.getBoundingClientRect();
    if (box.width) boxes.push([box, text.textContent]);
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest("svg, script, .skip")) continue;
    if (!parent.checkVisibility() || parent.closest(".scroll")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) boxes.push([box, node.textContent.trim()]);
  }
  for (const scroll of document.querySelectorAll(".scroll")) {
    if (scroll.checkVisibility()) boxes.push([scroll.getBoundingClientRect(), "a table"]);
  }
  const found = [];
  boxes.sort((a, b) => a[0].top - b[0].top);
  for (let i = 0; i < boxes.length; i++) {
    const [a, one] = boxes[i];
    for (let j = i + 1; j < boxes.length && boxes[j][0].top < a.bottom; j++) {
      const [b, other] = boxes[j];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // line boxes of text are taller than the letters in them
      if (wide > 1 && high > 0.35 * Math.min(a.height, b.height)) found.push([one, other]);
    }
  }
  return found;
}"""
_OUTSIDE = """() => [...document.querySelectorAll(".plot svg text, h1, h2, h3, h4, p, figcaption")]
  .filter((e) => e.checkVisibility() && !e.closest(".skip"))
  .filter((e) => { const b = e.getBoundingClientRect();
                   return b.width && (b.left < 0 || b.right > innerWidth); })
  .map((e) => e.textContent)"""
_CHARTS = """() => [...document.querySelectorAll("figure.chart")].map((figure) => {
  const plot = [...figure.querySelectorAll(".plot")].find((p) => p.checkVisibility());
  const titles = [...plot.querySelectorAll(".role-axis-title text")].map((t) => t.textContent);
  const drawn = [...plot.querySelectorAll(".role-mark path, .role-mark line, .role-mark rect")]
    .filter((m) => { const b = m.getBoundingClientRect(); return b.width + b.height > 0; });
  return {
    name: figure.classList[1], titles, marks: drawn.length,
    named: plot.querySelectorAll('.role-mark [role="graphics-symbol"][aria-label]').length,
    caption: figure.querySelector("figcaption").textContent,
    label: plot.getAttribute("aria-label"),
    rows: figure.querySelectorAll("details tbody tr").length,
    colours: [...new Set(drawn.map((m) => getComputedStyle(m).fill))],
  };
})"""


@dataclass
class Seen:
    """A page that is open, and everything that it did."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overlaps(self) -> list[Sequence[str]]:
        """Pairs of texts of which one lies upon the other."""
        return list(self.page.evaluate(_OVERLAPS))

    def outside(self) -> list[str]:
        """Texts that reach out of the window."""
        return list(self.page.evaluate(_OUTSIDE))

    def charts(self) -> list[dict[str, Any]]:
        """What each visible chart has."""
        return list(self.page.evaluate(_CHARTS))


@contextmanager
def running_browser() -> Iterator[Any]:
    """Skips where there is no Chromium; fails there if ``LMCACHE_REQUIRE`` names chromium."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        missing = "no chromium here: apt-get install chromium"
        if "chromium" in os.environ.get("LMCACHE_REQUIRE", ""):
            pytest.fail(f"LMCACHE_REQUIRE names chromium, but there is {missing}")
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # as root, as in containers, Chromium has no sandbox
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, file: Path, width: int, colours: str = "light") -> Seen:
    """Opens a file in a window of that width, and listens from the start."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
    seen = Seen(page)
    page.on("console", lambda message: seen.messages.append(message.text))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    page.on("dialog", lambda dialog: seen.messages.append(dialog.message))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(file.as_uri())
    return seen
