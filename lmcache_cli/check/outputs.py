"""Where verdicts go, for check and compare alike."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from lmcache_cli.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, MissingError, UserError
from lmcache_cli.output import check_output, write_output
from reports.bench_json import json_text
from reports.verdict import Outcome
from reports.verdict_json import verdict_json, verdict_junit
from reports.verdict_rule import DEFAULT_RULE, Rule, RuleError, parse_rule
from reports.verdict_text import verdict_markdown, verdict_table
from reports.verdict_trial import Trial

EXIT_CODES: dict[Outcome, int] = {"PASS": 0, "FAIL": EXIT_FAILED, "INCONCLUSIVE": EXIT_INCONCLUSIVE}
STRICTNESS = ("exact", "worse", "ignore")
_SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files by flag; ``-`` is stdout. ``github`` appends the Markdown to the step's summary."""

    json: str | None = None
    markdown: str | None = None
    junit: str | None = None
    github: bool = False

    def check(self) -> None:
        """Before anything is measured: raises ``UserError`` for what could not be written."""
        if [self.json, self.markdown, self.junit].count("-") > 1:
            raise UserError("--json, --markdown, --junit: only one of them can go to stdout")
        for flag, name in (("json", self.json), ("markdown", self.markdown), ("junit", self.junit)):
            check_output(name, f"--{flag}")
        if self.github and not os.environ.get(_SUMMARY):
            raise UserError(f"--github: {_SUMMARY} is not set; this works in GitHub Actions only")
        if self.junit:
            try:
                import junitparser  # noqa: F401
            except ImportError as error:
                raise _missing(error) from error

    def write(
        self,
        command: str,
        trial: Trial,
        sides: Mapping[str, Any],
        settings: Mapping[str, Any],
        warnings: Sequence[str],
        complete: bool,
        quiet: bool,
    ) -> int:
        """Writes all, prints the table unless stdout is taken. Returns the exit code."""
        verdicts, outcome = trial.verdicts(), trial.outcome()
        title = f"lmcache {command}"
        if self.json:
            document = verdict_json(verdicts, outcome, sides, settings, warnings, complete)
            write_output(self.json, json_text(document))
        markdown = verdict_markdown(verdicts, outcome, title, warnings)
        if self.markdown:
            write_output(self.markdown, markdown, "--markdown")
        if self.github:
            with Path(os.environ[_SUMMARY]).open("a", encoding="utf-8") as summary:
                summary.write(markdown)
        if self.junit:
            write_output(self.junit, verdict_junit(verdicts, title), "--junit")
        if "-" not in (self.json, self.markdown, self.junit):
            Console().print(verdict_table(verdicts, outcome))
        talk = Console(stderr=True, quiet=quiet)
        for warning in warnings:
            talk.print(
                f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True
            )
        return EXIT_CODES[outcome]


@dataclass(slots=True)
class Judgement:
    """What fails: ``rules`` and the strictness of counters."""

    rules: list[Rule] = field(default_factory=list)
    counters: str = "exact"

    @classmethod
    def of(cls, fail_on: Sequence[str], counters: str) -> Judgement:
        """Raises ``UserError`` for a rule that can't be read, ``MissingError`` without scipy."""
        if counters not in STRICTNESS:
            known = ", ".join(STRICTNESS)
            raise UserError(f"--counters: {counters!r} is not known; use one of {known}")
        try:
            rules = [parse_rule(text) for text in (fail_on or [DEFAULT_RULE])]
        except RuleError as error:
            raise UserError(f"--fail-on: {error}") from error
        names = [str(rule) for rule in rules]
        for rule in rules:
            if [r.metric for r in rules].count(rule.metric) > 1:
                raise UserError(f"--fail-on: {rule.metric} has several rules: {', '.join(names)}")
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise _missing(error) from error
        return cls(rules, counters)


def _missing(error: ImportError) -> MissingError:
    return MissingError(
        f"verdicts need the package {error.name}; run: pip install 'lmcache-bench[check]'"
    )
