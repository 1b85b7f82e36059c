"""Runs ``lmcache check``: two sides in turns until every cell is decided, and writes the
verdicts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.bench.report import check_folder
from lmcache_cli.check.in_process import InProcess, engine_differences, plan_of
from lmcache_cli.check.side import Budget, Judgement, Processes, Side, missing_package
from lmcache_cli.check.stored_runs import (
    ComparedRun,
    noise_of_history,
    read_baseline,
    refuse_elsewhere,
    refuse_unlike_runs,
)
from lmcache_cli.errors import (
    EXIT_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_INTERRUPTED,
    EXIT_NOT_WRITTEN,
    MissingError,
    UserError,
)
from lmcache_cli.machine import commit, machine, versions
from lmcache_cli.options.verdict import VerdictFiles
from lmcache_cli.output import check_output, comment_on_pull_request, write_output
from reports.bench_json import json_text
from reports.run_file import CHECK, CheckRecordError, RunFileError, write_run
from reports.verdict.formats import (
    side_text,
    verdict_json,
    verdict_junit,
    verdict_markdown,
    verdict_table,
    with_causes,
)
from reports.verdict.judge import Outcome
from reports.verdict.round import measured_by_clock
from reports.verdict.trial import Comparison, Trial

_DRIFT = (
    "a stored baseline was measured at another time: what the machine was doing then is in the"
    " change; give flags of bench as --baseline to have both measured in turns"
)
_LEAST_NEW = 5
"""The least number of rounds of a candidate beside a stored baseline."""


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
    noise: float | Mapping[str, float] | None = None
    until_spent: bool = False
    different: Sequence[str] = ()
    """The facts, with both values, in which the sides differ as they were allowed to."""

    def trial(self, over: bool = True) -> Trial:
        """Returns the rounds so far under the rules; ``over``: no more will follow."""
        judgement = self.judgement
        return Trial(
            self.comparisons,
            judgement.rules,
            judgement.counters,
            paired=self.stored is None,
            noise=self.noise,
            over=over,
            optional=judgement.default,
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
        here = InProcess.of(options, self.seed, self.out, self.judgement.needed())
        self.runner = here
        self.comparisons += here.comparisons()
        here.run(self.comparisons, self.budget, self._settled, progress)

    def _in_processes(self, progress: BenchProgress) -> None:
        for side in (self.new, self.base):
            if side.python is None:  # another version may know other flags
                plan_of(side.options(), self.out, self.judgement.needed())
        runner = Processes((self.base, self.new), self.seed)
        self.runner = runner
        runner.run(self.comparisons, self.budget, self._settled, progress)

    def _measure_new(self, stored: ComparedRun, progress: BenchProgress) -> None:
        """Measures the candidate alone, as often as the stored baseline: rounds that are in no
        pairs can't be looked at one by one."""
        here = InProcess.of([self.new.options()], self.seed, self.out, self.judgement.needed())
        self.runner = here
        facts = here.facts()
        if not any(measured_by_clock(rule.metric) for rule in self.judgement.rules):
            facts.pop("hardware")  # counters are the same everywhere
        if stored.path.suffix == ".parquet":
            facts.pop("requests")  # a digest of those that were served, not the flag
        planned = ComparedRun(Path("candidate"), "lmcache", {}, facts)
        self.different = refuse_unlike_runs(
            [stored], [planned], self.judgement.allowed, self.warnings
        )
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
        need = max([_LEAST_NEW, *(len(rounds) for rounds in stored.cells.values())])

        def enough(comparison: Comparison) -> bool:
            return len(comparison.new) >= need

        try:
            here.run(self.comparisons, self.budget, enough, progress)
        finally:
            for comparison in found:  # of one day, as the baseline's are
                comparison.new[:] = [replace(each, sample="now") for each in comparison.new]

    def _settled(self, comparison: Comparison) -> bool:
        return not self.until_spent and self.trial(over=False).settled(comparison)

    def sides(self) -> dict[str, Any]:
        """Returns what was compared, for JSON."""
        found: dict[str, Any] = {}
        for side in (self.base, self.new):
            found[side.name] = {
                "args": list(side.args),
                "python": str(side.python) if side.python else None,
                "stored": str(side.stored) if side.stored else None,
                "version": versions().get("lmcache-bench"),
                "commit": commit(side.python.parent if side.python else None),
                "hardware": machine()["fingerprint"],
            }
            if side.stored and self.stored is not None:
                facts = self.stored.facts
                known = {n: facts.get(n) for n in ("version", "commit", "hardware")}
                found[side.name] |= known
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
    check_folder(out)
    try:
        stored = read_baseline(base.stored) if base.stored else None
    except CheckRecordError as error:
        raise UserError(f"--baseline: {error}") from error
    check = CheckResult(base, new, judgement, budget, seed, out, [], [], stored=stored)
    if stored is not None:
        refuse_elsewhere(stored, judgement.rules)
        check.noise = noise_of_history(judgement.noise, judgement.rules, stored)
        if any(measured_by_clock(rule.metric) for rule in judgement.rules):
            check.warnings.append(_DRIFT)
        check.warnings += stored.warnings
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
    elif check.runner is not None:
        check.warnings += check.runner.warnings
    settings: Mapping[str, Any] = {
        "fail_on": [str(rule) for rule in judgement.rules],
        "counters": judgement.counters,
        "inconclusive": judgement.inconclusive,
        "max_rounds": budget.rounds,
        "max_time_s": budget.seconds,
        "seed": seed,
        "machine": machine(),
    }
    trial = check.trial(over=not interrupted)
    code = outputs.write(
        "check",
        trial,
        check.sides(),
        settings,
        check.warnings,
        not interrupted,
        quiet,
        judgement,
        check.different,
    )
    if isinstance(check.runner, InProcess):
        try:
            _keep_samples(check, check.runner, started, not interrupted, quiet)
        except RunFileError as error:
            print(f"lmcache: --out: {error}", file=sys.stderr)
            code = EXIT_NOT_WRITTEN
    return EXIT_INTERRUPTED if interrupted else code


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
        if self.github:
            check_output(os.environ[_SUMMARY], f"--github: {_SUMMARY}")
        if self.comment and shutil.which("gh") is None:
            raise MissingError("--comment needs the GitHub CLI, gh: see https://cli.github.com")
        if self.junit:
            try:
                import junitparser  # noqa: F401
            except ImportError as error:
                raise missing_package(error) from error

    @contextmanager
    def of_refusals(self, command: str) -> Iterator[None]:
        """Has a ``UserError`` from within told in the files for people and CI, too: an error in
        JUnit, so that no file of an earlier run is taken for this one's."""
        title = f"lmcache {command}"
        try:
            yield
        except UserError as error:
            text = f"### refused: {title}\n\n{error}\n"
            # What can't be written, or what its writing needs, may be what is refused.
            with suppress(UserError, ImportError):
                if self.junit:
                    write_output(self.junit, verdict_junit([], title, trouble=str(error)))
            with suppress(UserError):
                if self.markdown:
                    write_output(self.markdown, text)
            with suppress(OSError):
                if self.github and _SUMMARY in os.environ:
                    _append_summary(text)
            raise

    def write(
        self,
        command: str,
        trial: Trial,
        sides: Mapping[str, Any],
        settings: Mapping[str, Any],
        warnings: Sequence[str],
        complete: bool,
        quiet: bool,
        judgement: Judgement,
        different: Sequence[str] = (),
    ) -> int:
        """Prints the table unless stdout is taken, then writes all files. A FAIL names what is
        ``different`` in the sides. Returns the exit code, another one than those of verdicts if a
        file could not be written; a comment that gh refuses is a warning."""
        verdicts, outcome = with_causes(trial.verdicts(), different), trial.outcome()
        title, void = f"lmcache {command}", trial.unjudged()
        lenient = judgement.inconclusive == "pass"
        if void:
            void += "; --inconclusive pass is for noise and does not cover this" if lenient else ""
            warnings, lenient = [*warnings, void], False
        if "-" not in (self.json, self.markdown, self.junit):
            Console().print(verdict_table(verdicts, outcome))
        talk = Console(stderr=True, quiet=quiet)
        for warning in warnings:
            talk.print(
                f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True
            )
        compared = [side_text(name, side) for name, side in sides.items()]
        markdown = verdict_markdown(verdicts, outcome, title, [*compared, *warnings])
        document = verdict_json(verdicts, outcome, sides, settings, warnings, complete and not void)
        failed = False
        texts: list[tuple[str, str | None, Callable[[], str]]] = [
            ("--json", self.json, lambda: json_text(document)),
            ("--markdown", self.markdown, lambda: markdown),
            (
                "--junit",
                self.junit,
                lambda: verdict_junit(verdicts, title, compared, lenient, void),
            ),
        ]
        for flag, target, text in texts:
            try:
                if target:
                    write_output(target, text(), flag)
            except UserError as error:
                failed = True
                print(f"lmcache: {error}", file=sys.stderr)
        try:
            if self.github:
                _append_summary(markdown)
        except OSError as error:
            failed = True
            print(f"lmcache: --github: {error}", file=sys.stderr)
        if self.comment:
            comment_on_pull_request(markdown)
        if failed:
            return EXIT_NOT_WRITTEN
        return 0 if lenient and outcome == "INCONCLUSIVE" else EXIT_CODES[outcome]


def _append_summary(markdown: str) -> None:
    with Path(os.environ[_SUMMARY]).open("a", encoding="utf-8") as summary:
        summary.write(markdown)
