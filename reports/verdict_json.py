"""Verdicts for machines: JSON, described in docs/json.md, and JUnit XML."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reports.verdict import LEVEL, Outcome, Verdict
from reports.verdict_text import cells_of, explained

SCHEMA = "lmcache.check/1"


def verdict_json(
    verdicts: Sequence[Verdict],
    outcome: Outcome,
    sides: Mapping[str, Any],
    settings: Mapping[str, Any],
    warnings: Sequence[str],
    complete: bool = True,
) -> dict[str, Any]:
    """The document of ``lmcache check --json`` and ``lmcache compare --json``. Changes, limits and
    intervals are shares (0.05 is 5 %); times are seconds."""
    return {
        "schema": SCHEMA,
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
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or abs(value) == float("inf") else value


def verdict_junit(verdicts: Sequence[Verdict], name: str) -> str:
    """A test case per metric: FAIL is a failure; INCONCLUSIVE is an error, as it must not pass for
    a success."""
    from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

    suite = TestSuite(name)
    for verdict in verdicts:
        case = TestCase(verdict.metric, classname=f"{name}.{verdict.cell}")
        text = ", ".join(cells_of(verdict))
        if verdict.outcome == "FAIL":
            case.result = [Failure(f"{explained(verdict)}: {text}")]
        elif verdict.outcome == "INCONCLUSIVE":
            case.result = [Error(explained(verdict))]
        suite.add_testcase(case)
    document = JUnitXml()
    document.add_testsuite(suite)
    out = io.BytesIO()
    document.write(out)
    return out.getvalue().decode()
