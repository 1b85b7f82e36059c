"""Runs ``lmcache check``: two sides in turns until every cell is decided, and writes the
verdicts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.check.in_process import InProcess, engine_differences
from lmcache_cli.check.side import Budget, Processes, Side
from lmcache_cli.check.stored_runs import ComparedRun, read_compared
from lmcache_cli.errors import (
    EXIT_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_INTERRUPTED,
    MissingError,
    UserError,
)
from lmcache_cli.machine import machine, versions
from lmcache_cli.modes.mode import one_of
from lmcache_cli.options.verdict import JudgementFlags, VerdictFiles
from lmcache_cli.output import check_output, write_output
from reports.bench_json import json_text
from reports.run_file import CHECK, CheckRecordError, write_run
from reports.verdict.counters import Strictness
from reports.verdict.formats import verdict_json, verdict_junit, verdict_markdown, verdict_table
from reports.verdict.judge import LEAST_ROUNDS, Outcome
from reports.verdict.round import measured_by_clock
from reports.verdict.rule import DEFAULT_RULE, Rule, RuleError, parse_rule
from reports.verdict.trial import Comparison, Trial

_DRIFT = (
    "a stored baseline was measured at another time: what the machine was doing then is in the"
    " change; give flags of bench as --baseline to have both measured in turns"
)


@dataclass(slots=True)
class CheckResult:
    """One check and what it has measured so far."""

    base: Side
    new: Side
    judgement: Judgement
    budget: Budget
    seed: int
    out: Path
    comparisons: list[Comparison]
    warnings: list[str]
    runner: InProcess | Processes | None = None
    stored: ComparedRun | None = None
    until_spent: bool = False

    def trial(self) -> Trial:
        """Returns the rounds so far under the rules."""
        return Trial(
            self.comparisons,
            self.judgement.rules,
            self.judgement.counters,
            paired=self.stored is None,
        )

    def measure(self, progress: BenchProgress, until_spent: bool = False) -> None:
        """Chooses how to run the sides, and runs them until it is decided, or with ``until_spent``
        until the budget is spent. Raises ``UserError``."""
        self.until_spent = until_spent
        if self.stored is not None:
            self._measure_new(self.stored, progress)
            return
        if self.base.python or self.new.python:
            self._in_processes(progress)
            return
        options = [self.base.options(), self.new.options()]
        if differences := engine_differences(*options):
            self.warnings.append(
                f"the sides differ in {', '.join(differences)}: one engine can't serve both, so"
                " each round runs in processes of its own"
            )
            self._in_processes(progress)
            return
        here = InProcess.of(options, self.seed, self.out)
        self.runner = here
        self.comparisons += here.comparisons()
        here.run(self.comparisons, self.budget, self._settled, progress)

    def _in_processes(self, progress: BenchProgress) -> None:
        runner = Processes((self.base, self.new), self.seed)
        self.runner = runner
        runner.run(self.comparisons, self.budget, self._settled, progress)

    def _measure_new(self, stored: ComparedRun, progress: BenchProgress) -> None:
        """Measures the candidate alone, as often as the stored baseline: rounds that are in no
        pairs can't be looked at one by one."""
        here = InProcess.of([self.new.options()], self.seed, self.out)
        self.runner = here
        found = here.comparisons()
        if len(found) != len(stored.cells):
            raise UserError(
                f"--baseline: {stored.path} has {len(stored.cells)} cells"
                f" ({', '.join(stored.cells)}), the candidate {len(found)}; give the candidate the"
                " flags of that run, --reuse among them"
            )
        for comparison, (label, rounds) in zip(found, stored.cells.items(), strict=True):
            comparison.cell = label
            comparison.base += rounds
        self.comparisons += found
        need = max([LEAST_ROUNDS, *(len(rounds) for rounds in stored.cells.values())])

        def enough(comparison: Comparison) -> bool:
            return len(comparison.new) >= need

        here.run(self.comparisons, self.budget, enough, progress)

    def _settled(self, comparison: Comparison) -> bool:
        return not self.until_spent and self.trial().settled(comparison)

    def sides(self) -> dict[str, Any]:
        """Returns what was compared, for JSON."""
        found: dict[str, Any] = {}
        for side in (self.base, self.new):
            found[side.name] = {
                "args": list(side.args),
                "python": str(side.python) if side.python else None,
                "stored": str(side.stored) if side.stored else None,
                "version": versions().get("lmcache-bench"),
            }
            if isinstance(self.runner, Processes):
                found[side.name]["version"] = self.runner.versions.get(side.name)
        return found


def run_check(
    base: Side,
    new: Side,
    judgement: Judgement,
    budget: Budget,
    seed: int,
    out: Path,
    outputs: CheckOutputs,
    quiet: bool,
) -> int:
    """Runs a check and returns the exit code. Ctrl-C keeps what was measured: the verdict so far is
    printed and all files are written."""
    outputs.check()
    try:
        stored = read_compared(base.stored) if base.stored else None
    except CheckRecordError as error:
        raise UserError(f"--baseline: {error}") from error
    check = CheckResult(base, new, judgement, budget, seed, out, [], [], stored=stored)
    if stored is not None:
        _refuse_elsewhere(stored, judgement)
        check.warnings += [_DRIFT, *stored.warnings]
    started = datetime.now(UTC)
    interrupted = False
    with BenchProgress(Console(stderr=True), quiet) as progress:
        try:
            check.measure(progress)
        except KeyboardInterrupt:
            interrupted = True
            check.warnings.append("interrupted: the verdict is of what was measured until then")
    if isinstance(check.runner, InProcess):
        check.warnings += check.runner.measured.warnings
        _keep_samples(check, check.runner, started, not interrupted, quiet)
    settings: Mapping[str, Any] = {
        "fail_on": [str(rule) for rule in judgement.rules],
        "counters": judgement.counters,
        "max_rounds": budget.rounds,
        "max_time_s": budget.seconds,
        "seed": seed,
        "machine": machine(),
    }
    code = outputs.write(
        "check", check.trial(), check.sides(), settings, check.warnings, not interrupted, quiet
    )
    return EXIT_INTERRUPTED if interrupted else code


def _refuse_elsewhere(stored: ComparedRun, judgement: Judgement) -> None:
    """Raises ``UserError`` for times of another machine, which are no baseline; its counters
    are."""
    hardware = stored.facts.get("hardware")
    timed = [str(rule) for rule in judgement.rules if measured_by_clock(rule.metric)]
    if timed and hardware and hardware != machine()["fingerprint"]:
        raise UserError(
            f"--baseline: {stored.path} was measured on other hardware, so {', '.join(timed)} can't"
            " be judged; measure it here, or judge counters only: --fail-on 'hit_rate<0pp'"
        )


def _keep_samples(
    check: CheckResult, runner: InProcess, started: datetime, complete: bool, quiet: bool
) -> None:
    samples = runner.measured.samples
    if not samples:
        return
    path = check.out / f"check-{started:%Y%m%dT%H%M%S%f}.parquet"
    meta = {
        "kind": CHECK,
        "started": started.isoformat(),
        "complete": complete,
        "command": sys.argv[1:],
        "sides": check.sides(),
        "machine": machine(),
        "versions": versions(),
        "warnings": check.warnings,
    }
    write_run(path, samples, meta)
    Console(stderr=True, quiet=quiet).print(f"run file: {path}", highlight=False)


EXIT_CODES: dict[Outcome, int] = {"PASS": 0, "FAIL": EXIT_FAILED, "INCONCLUSIVE": EXIT_INCONCLUSIVE}
_SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True)
class CheckOutputs(VerdictFiles):
    """The files of a verdict, checked before anything is measured and written after it."""

    def check(self) -> None:
        """Raises ``UserError`` for what could not be written, before anything is measured."""
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
        """Writes all files, prints the table unless stdout is taken. Returns the exit code."""
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
    """The criteria of what fails: ``rules`` and the strictness of counters."""

    rules: list[Rule] = field(default_factory=list)
    counters: Strictness = "exact"

    @classmethod
    def of(cls, flags: JudgementFlags) -> Judgement:
        """Reads the criteria from flags. Raises ``UserError`` for a rule that can't be read,
        ``MissingError`` without scipy."""
        one_of("--counters", flags.counters, get_args(Strictness))
        try:
            rules = [parse_rule(text) for text in (flags.fail_on or [DEFAULT_RULE])]
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
        return cls(rules, flags.counters)


def _missing(error: ImportError) -> MissingError:
    return MissingError(
        f"verdicts need the package {error.name}; run: pip install 'lmcache-bench[check]'"
    )
