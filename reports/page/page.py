"""Makes the page: its sections, from stored runs to HTML."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reports.page.chart import Chart
from reports.page.requests import filling_chart
from reports.page.rows import RowChart, hits_chart, speedup_chart, ttft_chart
from reports.page.sweep import sweep_charts
from reports.page.tuned import front_chart, miss_ratio_chart
from reports.sample import Sample
from reports.stored import StoredResult, StoredRun, StoredTune
from reports.summary import CellSummary
from reports.tables.columns import Column, describe, measured
from reports.tables.findings import in_words, parted
from reports.tables.layout import legend
from reports.tables.tune import front_columns, recommended
from reports.units import bytes_text, number_text, places_for


@dataclass(frozen=True, slots=True)
class PagePart:
    """One workload of a run, or what tune found: a sentence, a table, charts; ``answer`` are the
    paragraphs that explain the sentence, ``pasted`` texts to be pasted, by what they are."""

    title: str
    facts: Sequence[str]
    lede: str
    columns: Sequence[Column]
    legend: Sequence[str]
    charts: Sequence[Chart]
    answer: Sequence[str] = ()
    pasted: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Section:
    """The section of one file: its parts, its warnings, and what it was measured on."""

    name: str
    kind: str
    notice: str
    warnings: Sequence[str]
    parts: Sequence[PagePart]
    facts: Mapping[str, Mapping[str, str]]


def html_page(stored: Sequence[StoredResult]) -> str:
    """Makes one page, whole in itself: it loads nothing, and runs no script but its own, by a
    policy that it carries. Everything that comes from files is escaped."""
    sections = [_run(one) if isinstance(one, StoredRun) else _tune(one) for one in stored]
    names = [section.name for section in sections]
    sections = [  # runs of one minute are told apart by their files
        each if names.count(each.name) == 1 else replace(each, name=f"{each.name}, {one.name}")
        for each, one in zip(sections, stored, strict=True)
    ]
    folder = resources.files("reports.page")
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES}
    script = texts["page.js"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    numbers = iter(range(1_000_000))
    return environment.from_string(texts["page.html"]).render(
        sections=sections,
        title=_title(sections),
        style=Markup(texts["page.css"]),  # our own file
        script=Markup(script),
        script_digest=digest,
        svg=_svg,
        number=lambda: next(numbers),
        rows=lambda columns: list(zip(*(c.values for c in columns), strict=True)),
    )


def _title(sections: Sequence[Section]) -> str:
    kinds = {section.kind for section in sections}
    return (
        "How large each cache tier should be" if kinds == {"tune"} else "What KV-cache reuse gave"
    )


_FILES = ("page.html", "page.css", "page.js")


def _svg(chart: Chart, narrow: bool, number: int) -> Markup:
    return Markup(chart.svg(narrow, number))  # Vega escapes what it draws


def _run(run: StoredRun) -> Section:
    meta = run.meta
    notice = ""
    if not run.complete:
        notice = "This run is incomplete: it shows what was measured until it was stopped."
    started = str(meta.get("started", ""))[:16].replace("T", " ")
    about = {"started": f"{started} UTC"} if started else {}
    about["command"] = " ".join(["lmcache", *map(str, meta.get("command", []))])
    about["complete"] = "yes" if run.complete else "no"
    about["file"] = f"{run.name}.parquet"
    workloads = dict.fromkeys(cell.meta["workload"] for cell in run.cells)
    return Section(
        ", ".join([" and ".join(workloads) or "nothing", *([started] if started else [])]),
        "bench",
        notice,
        run.warnings,
        [_workload(cells, samples) for cells, samples in _scenarios(run)],
        {
            "run": about,
            "machine": _plain(meta.get("machine", {})),
            "engine": _plain(meta.get("engine", {})),
            "versions": _plain(meta.get("versions", {})),
            "settings": _plain(meta.get("config", {})),
        },
    )


def _scenarios(
    run: StoredRun,
) -> Iterator[tuple[Sequence[CellSummary], Sequence[Sequence[Sample]]]]:
    groups: dict[tuple[str, Any], list[int]] = {}
    for index, cell in enumerate(run.cells):
        key = cell.meta["workload"], cell.meta.get("context_tokens")
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        yield [run.cells[i] for i in indices], [run.samples_of[i] for i in indices]


def _workload(cells: Sequence[CellSummary], samples_of: Sequence[Sequence[Sample]]) -> PagePart:
    facts, keys = describe(cells)
    rows = RowChart.of(cells, samples_of)
    charts = [ttft_chart(rows), speedup_chart(rows), hits_chart(rows), filling_chart(rows)]
    context = cells[0].meta.get("context_tokens")
    title = cells[0].meta["workload"]
    words = [parted(line) for line in in_words(cells)]
    return PagePart(
        f"{title}, contexts of {context:,} tokens" if context else title,
        facts,
        _lede(rows),
        # What the page is read for stands where a narrow screen begins to scroll.
        [*keys, *(column for group in measured(cells, first="speed-up") for column in group)],
        [" ".join(legend(cells))],
        [*(chart for chart in charts if chart is not None), *sweep_charts(cells)],
        [said for said, _ in words],
        {"To try": words[0][1]} if words and words[0][1] else {},
    )


def _lede(rows: RowChart) -> str:
    """Describes the row with the largest speed-up in a sentence; the hit rate where nothing is
    compared."""
    compared = [(c.speedup.ratio, i) for i, c in enumerate(rows.cells) if c.speedup.ratio]
    if not compared:
        best = max(rows.cells, key=lambda cell: cell.hit_rate or 0)
        if not best.hit_rate:
            return "Nothing was served from a cache."
        return f"At best {100 * best.hit_rate:.1f} % of the prompt tokens came from the cache."
    _, index = max(compared)
    cell, label = rows.cells[index], rows.labels[index]
    ratio, low, high = cell.speedup.ratio, cell.speedup.low, cell.speedup.high
    places = places_for([ratio])
    hits = f"{100 * (cell.hit_rate or 0):.1f} % of the prompt tokens came from the cache"
    if low is None or high is None:
        return (
            f"The first token came {number_text(ratio, places)} times as fast with {label}, of too"
            f" few requests for an interval (n = {cell.n}); {hits}."
        )
    between = f"95 % interval {number_text(low, places)} to {number_text(high, places)}"
    if low <= 1:
        return (
            f"No row is surely faster than without reuse: at best {number_text(ratio, places)}"
            f" times, with {label} ({between}, n = {cell.n}); {hits}."
        )
    return (
        f"The first token came {number_text(ratio, places)} times as fast with {label}"
        f" ({between}, n = {cell.n}); {hits}."
    )


def _tune(tuned: StoredTune) -> Section:
    document = tuned.document
    best = document["recommendation"]
    verdicts = best.get("verdicts", [])
    lede, *lines = recommended({**document, "recommendation": {**best, "verdicts": []}})
    charts = [miss_ratio_chart(document), front_chart(document)]
    known = {name: value for name, value in document["source"].items() if value is not None}
    source = {"file": f"{tuned.name}.json"}
    for name, value in known.items():
        source[name] = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    cost = document.get("cost", {})
    notes = {str(i): str(note) for i, note in enumerate(cost.get("notes", []), 1)}
    device = cost.get("device") or {}
    cards = f"{device['cards']} x {device['hardware']}" if device.get("hardware") else tuned.name
    part = PagePart(
        "Sizes",
        lines,
        f"{lede}.",
        front_columns(document),
        [
            "→ marks what is recommended; every number of this table is predicted.",
            *(marginal["text"] for marginal in best.get("marginals", [])),
        ],
        [chart for chart in charts if chart is not None],
        verdicts,
        best.get("snippets", {}),
    )
    name = f"{cards}, {document['source']['requests']:,} requests"
    return Section(name, "tune", "", [], [part], {"trace": source, "assumed": notes})


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the values that are set, as text by name."""
    found = {}
    for name, value in values.items():
        if value is None or value in ([], {}, ""):
            continue
        if name.endswith("_bytes") and isinstance(value, int):
            found[name.removesuffix("_bytes")] = bytes_text(value)
        elif isinstance(value, list | tuple):
            found[name.replace("_", " ")] = ", ".join(map(str, value))
        else:
            found[name.replace("_", " ")] = str(value)
    return found
