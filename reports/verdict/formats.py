"""Verdicts for people and machines: a table, Markdown, JSON (docs/json.md) and JUnit XML."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reports.units import EN_DASH, NONE, bytes_text, seconds_text
from reports.verdict.judge import LEVEL, Outcome, Verdict
from reports.verdict.round import TIMES

STYLES = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}
_HEADERS = ("metric", "baseline", "candidate", "change", "interval", "limit", "verdict")


def shown(verdicts: Sequence[Verdict], outcome: Outcome) -> tuple[list[Verdict], list[str]]:
    """Returns the verdicts that a table has rows for, and lines on the counters that it only
    counts: those that are equal and, once something has failed, those that were not decided before
    it ended."""
    quiet = ("PASS", "INCONCLUSIVE") if outcome == "FAIL" else ("PASS",)
    hidden = [v for v in verdicts if v.rule in ("exact", "worse") and v.outcome in quiet]
    equal = sum(v.outcome == "PASS" for v in hidden)
    lines = []
    if equal:
        lines.append(f"{_counters(equal)} as they must be.")
    if undecided := len(hidden) - equal:
        lines.append(f"{_counters(undecided)} undecided.")
    return [v for v in verdicts if v not in hidden], lines


def _counters(count: int) -> str:
    return "1 counter is" if count == 1 else f"{count} counters are"


def verdict_table(verdicts: Sequence[Verdict], outcome: Outcome) -> RenderableType:
    """Returns a table with a row per metric, but for the counters that :func:`shown` leaves out."""
    rows, counted = shown(verdicts, outcome)
    parts: list[RenderableType] = []
    for cell in dict.fromkeys(v.cell for v in rows):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for name in _HEADERS:
            left = name in ("metric", "verdict")
            table.add_column(name, justify="left" if left else "right", no_wrap=name != "metric")
        for verdict in (v for v in rows if v.cell == cell):
            *cells, word = cells_of(verdict)
            table.add_row(*cells, Text(word, style=STYLES[verdict.outcome]))
        parts += [Text(cell, style="bold"), table]
    for verdict in rows:
        if verdict.outcome != "PASS":
            parts.append(
                Text(f"{verdict.cell}, {verdict.metric}: {explained(verdict)}", style="dim")
            )
    parts += [Text(line) for line in counted]
    parts.append(Text(outcome, style=STYLES[outcome]))
    return Group(*parts)


def verdict_markdown(
    verdicts: Sequence[Verdict], outcome: Outcome, title: str, notes: Sequence[str] = ()
) -> str:
    """Returns the verdicts as Markdown, for ``$GITHUB_STEP_SUMMARY`` and pull requests."""
    rows, counted = shown(verdicts, outcome)
    lines = [f"### {outcome}: {title}", ""]
    if rows:
        lines += ["| " + " | ".join(("cell", *_HEADERS)) + " |", "|---" * (len(_HEADERS) + 1) + "|"]
    for verdict in rows:
        *cells, word = (text.replace("|", "\\|") for text in cells_of(verdict))
        bold = f"**{word}**" if verdict.outcome == "FAIL" else word
        lines.append("| " + " | ".join((verdict.cell, f"`{cells[0]}`", *cells[1:], bold)) + " |")
    lines.append("")
    lines += [f"- {v.cell}, `{v.metric}`: {explained(v)}" for v in rows if v.outcome != "PASS"]
    lines += [f"- {line}" for line in counted]
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


def cells_of(verdict: Verdict) -> tuple[str, ...]:
    """Returns the texts of a verdict's row, the verdict's word last."""
    interval = NONE
    if verdict.low is not None and verdict.high is not None:
        low = change_text(verdict.low, verdict).rsplit(" ", 1)[0]
        interval = f"{low} to {change_text(verdict.high, verdict)}"
    change = change_text(verdict.change, verdict)
    return (
        verdict.metric,
        value_text(verdict.base, verdict.metric),
        value_text(verdict.new, verdict.metric),
        change,
        "exact" if verdict.exact else interval,
        verdict.rule.removeprefix(verdict.metric),
        verdict.outcome,
    )


def explained(verdict: Verdict) -> str:
    """Says why a verdict was given, after how many rounds, and what could have been seen."""
    text = f"{verdict.reason} ({verdict.rounds} round{'s' if verdict.rounds != 1 else ''})"
    if verdict.outcome == "INCONCLUSIVE" and verdict.smallest is not None:
        seen = change_text(verdict.smallest, verdict)
        text += f"; a change of {seen} would have been seen (80 % power)"
    return text


def with_causes(verdicts: Sequence[Verdict], different: Sequence[str]) -> list[Verdict]:
    """Returns the verdicts, each FAIL with a reason that begins with its change and the facts in
    which the sides are ``different``, if there are any."""
    if not different:
        return list(verdicts)
    cause = f"the sides differ in {'; '.join(different)}"
    return [
        replace(v, reason=f"{_moved(v)}{cause}; {v.reason}") if v.outcome == "FAIL" else v
        for v in verdicts
    ]


def _moved(verdict: Verdict) -> str:
    size = change_text(verdict.change, verdict)[1:]
    return f"{'fell' if (verdict.change or 0) < 0 else 'rose'} {size}; " if size else ""


def value_text(value: float | None, metric: str) -> str:
    """Formats a value with the unit of its metric."""
    if value is None:
        return NONE
    if metric.partition(".")[0] in TIMES:
        return seconds_text(value)
    if metric == "hit_rate":
        return f"{value * 100:.1f} %"
    if metric.startswith("bytes_"):
        return bytes_text(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def change_text(change: float | None, verdict: Verdict) -> str:
    """Formats a change like ``+3.1 %`` or ``-0.5 pp``."""
    if change is None or abs(change) == float("inf"):
        return NONE
    return f"{change * 100:+.1f} {'pp' if verdict.points else '%'}".replace("-", EN_DASH, 1)


def side_text(name: str, side: Mapping[str, Any]) -> str:
    """Returns one line on a side of a verdict: its files or flags, and what it ran on."""
    what = (
        side.get("stored") or ", ".join(side.get("runs") or ()) or " ".join(side.get("args") or ())
    )
    told = {key: side.get(key) for key in ("python", "version", "commit", "hardware")}
    return f"{name}: {what} " + ", ".join(f"{key} {value}" for key, value in told.items() if value)


VERDICT_SCHEMA = "lmcache.check/1"


def verdict_json(
    verdicts: Sequence[Verdict],
    outcome: Outcome,
    sides: Mapping[str, Any],
    settings: Mapping[str, Any],
    warnings: Sequence[str],
    complete: bool = True,
) -> dict[str, Any]:
    """Returns the document of ``lmcache check --json`` and ``lmcache compare --json``. Changes,
    limits and intervals are shares (0.05 is 5 %); times are seconds."""
    return {
        "schema": VERDICT_SCHEMA,
        "verdict": outcome,
        "complete": complete,
        "level": LEVEL,
        "sides": dict(sides),
        "settings": dict(settings),
        "warnings": list(warnings),
        "metrics": [_metric(verdict) for verdict in verdicts],
    }


def _metric(verdict: Verdict) -> dict[str, Any]:
    values = asdict(verdict)
    interval = {"low": values.pop("low"), "high": values.pop("high")}
    return {
        "cell": values["cell"],
        "metric": values["metric"],
        "rule": values["rule"],
        "verdict": values["outcome"],
        "reason": values["reason"],
        "baseline": values["base"],
        "candidate": values["new"],
        "change": _finite(values["change"]),
        "unit": "points" if verdict.points else "share",
        "interval": {name: _finite(value) for name, value in interval.items()},
        "smallest_visible": _finite(values["smallest"]),
        "rounds": values["rounds"],
        "exact": values["exact"],
        "signs": values["signs"],
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or abs(value) == float("inf") else value


def verdict_junit(
    verdicts: Sequence[Verdict],
    name: str,
    sides: Sequence[str] = (),
    lenient: bool = False,
    trouble: str = "",
) -> str:
    """Returns JUnit XML with a test case per metric, and a property per side that names it. FAIL is
    a failure; INCONCLUSIVE is an error, as it must not pass for a success, or with ``lenient`` a
    case that was skipped. ``trouble``, if there is any, is an error of a case of its own."""
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite(name)
    for side in sides:
        suite.add_property(*side.split(": ", 1))
    undecided = Skipped if lenient else Error
    for verdict in verdicts:
        case = TestCase(verdict.metric, classname=f"{name}.{verdict.cell}")
        text = ", ".join(cells_of(verdict))
        if verdict.outcome == "FAIL":
            case.result = [Failure(f"{verdict.cell}: {explained(verdict)}: {text}")]
        elif verdict.outcome == "INCONCLUSIVE":
            case.result = [undecided(f"{verdict.cell}: {explained(verdict)}")]
        suite.add_testcase(case)
    if trouble:
        case = TestCase("trouble", classname=name)
        case.result = [Error(trouble)]
        suite.add_testcase(case)
    document = JUnitXml()
    document.add_testsuite(suite)
    out = io.BytesIO()
    document.write(out)
    return out.getvalue().decode()
