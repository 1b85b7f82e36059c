"""What a check is given: its sides with their flags, Pythons and processes, its time, and what
fails."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import typer

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.check.stored_runs import ComparedRun, read_compared
from lmcache_cli.errors import (
    EXIT_FAILED,
    EXIT_MISSING,
    MissingError,
    UserError,
    held_back,
    parser_text,
)
from lmcache_cli.modes.mode import DEFAULT_MODES, one_of
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.options.verdict import JudgementFlags
from reports.verdict.counters import Strictness
from reports.verdict.rule import DEFAULT_RULES, Rule, RuleError, parse_rule
from reports.verdict.trial import Comparison

_GRACE_S = 10.0
"""The seconds that a process has to stop by itself."""
_START_S = 120.0


@dataclass(slots=True)
class Processes:
    """The runner that starts ``python -m lmcache_cli.main bench`` once per side and round, in an
    order drawn anew."""

    sides: Sequence[Side]
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    """The version of lmcache-bench that each side runs, by the side's name."""
    warnings: list[str] = field(default_factory=list)

    def run(
        self,
        comparisons: list[Comparison],
        budget: Budget,
        settled: Callable[[Comparison], bool],
        progress: BenchProgress,
    ) -> None:
        """Adds a comparison per cell, with rounds, until all are settled or the budget is spent."""
        for side in self.sides:
            if side.python is not None:
                _require_package(side.name, side.python)
        rng = random.Random(self.seed)
        number = 0
        while True:
            runs = {}
            began = time.monotonic()
            for side in rng.sample(list(self.sides), len(self.sides)):
                progress.phase(f"round {number + 1}: {side.name}")
                try:
                    runs[side.name] = self._bench(side, budget.left())
                except OutOfTime as error:
                    self.warnings.append(str(error))
                    return
            number += 1
            self._add(comparisons, runs["baseline"], runs["candidate"])
            over = [settled(comparison) for comparison in comparisons]
            if all(over) or budget.spent(number, time.monotonic() - began, 0, 1):
                return

    def _bench(self, side: Side, seconds: float) -> ComparedRun:
        with tempfile.TemporaryDirectory(prefix="lmcache-check-") as folder:
            command = [
                # -P: the packages of this environment, not those of the current folder.
                *(str(side.python or sys.executable), "-P", "-m", "lmcache_cli.main", "bench"),
                *(
                    *side.args,
                    *side.reuse(),
                    "--repeat",
                    "1",
                    "--out",
                    folder,
                    "--json",
                    "-",
                    "--quiet",
                ),
            ]
            done = _run(command, seconds, side.python is not None)
            found = sorted(Path(folder).glob("*.parquet"))
            if done.returncode not in (0, EXIT_FAILED) or not found:
                said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                # What is missing there is missing for the check.
                raised = MissingError if done.returncode == EXIT_MISSING else UserError
                raise raised(f"--{side.name}: bench ended with code {done.returncode}: {said}")
            run = read_compared(found[0])
        self.versions[side.name] = run.facts.get("version", "unknown")
        return run

    def _add(self, comparisons: list[Comparison], base: ComparedRun, new: ComparedRun) -> None:
        for name in ("requests", "workload"):
            if base.facts.get(name) != new.facts.get(name):
                raise UserError(
                    f"the sides don't serve the same requests ({name} differs); give both the same"
                    " workloads, lengths and --seed"
                )
        if len(base.cells) != len(new.cells):
            raise UserError(
                f"the baseline has {len(base.cells)} cells and the candidate {len(new.cells)};"
                " sweep as many values on both sides, or none"
            )
        if not comparisons:
            comparisons += [Comparison(cell) for cell in base.cells]
        sides = zip(comparisons, base.cells.values(), new.cells.values(), strict=True)
        for comparison, before, after in sides:
            # Rounds in turns: of the day that a stored run is of they are no one sample.
            comparison.base += [replace(each, sample="") for each in before]
            comparison.new += [replace(each, sample="") for each in after]


class OutOfTime(Exception):
    """The time of a check is over in the middle of a round, which does not count."""


LATE = "--max-time ended a round before it was whole: it does not count; give more time"


def _run(command: Sequence[str], seconds: float, foreign: bool) -> subprocess.CompletedProcess[str]:
    """Runs a command and what it starts, at most so long. A ``foreign`` Python gets no PYTHONPATH,
    which would put this version's packages before its own. Raises :class:`OutOfTime`."""
    environment = dict(os.environ)
    if foreign:
        environment.pop("PYTHONPATH", None)
    process: subprocess.Popen[str] | None = None
    try:
        with held_back():
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )
        out, err = process.communicate(timeout=max(seconds, 0.0))
    except BaseException as error:
        if process is None:
            raise
        # SIGINT first: a bench stops the server that it has started.
        for signum, grace in ((signal.SIGINT, _GRACE_S), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=grace)
                break
        if isinstance(error, subprocess.TimeoutExpired):
            raise OutOfTime(LATE) from error
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _require_package(side: str, python: Path) -> None:
    """Raises ``MissingError`` for what can't be run, or can't import lmcache's command line: before
    anything is measured."""
    command = [str(python), "-P", "-c", "import lmcache_cli.main"]
    try:
        done = _run(command, _START_S, foreign=True)
    except OSError as error:
        raise MissingError(f"--{side}-python: {python}: {error.strerror}") from None
    except OutOfTime:
        raise MissingError(f"--{side}-python: {python} did not start in {_START_S:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise MissingError(
            f"--{side}-python: {python} can't run lmcache ({said}); install it in that environment,"
            " or give the Python of another"
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """The limit of a check: at most ``rounds`` per cell, and ``seconds`` in all from its making
    on."""

    rounds: int
    seconds: float
    began: float = field(default_factory=time.monotonic)

    def spent(self, rounds: int, lasts: float, cell: int, cells: int) -> bool:
        """Returns whether cell number ``cell`` of ``cells`` has had its share of rounds or time, or
        has no time left for a round that lasts so many seconds."""
        return rounds >= self.rounds or self.left(cell, cells) < lasts

    def late(self, cell: int, cells: int) -> bool:
        """Returns whether the cell's share of time is over."""
        return self.left(cell, cells) <= 0

    def left(self, cell: int = 0, cells: int = 1) -> float:
        """Returns the seconds left of the cell's share of time."""
        return self.began + self.seconds * (cell + 1) / cells - time.monotonic()


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a check. ``name`` is baseline or candidate. ``args`` are flags of bench, for
    ``python`` (None: this one); or ``stored`` is a run file, or a store of them."""

    name: str
    args: tuple[str, ...] = ()
    python: Path | None = None
    stored: Path | None = None

    def options(self) -> BenchOptions:
        """Returns the side's flags, parsed as ``lmcache bench`` does. Raises ``UserError``."""
        # Typer brings its own copy of click, or uses the installed one.
        from typer.main import get_command

        from lmcache_cli.commands.bench import bench

        # With typer's flags for completion a YAML file could set them, too.
        app = typer.Typer(add_completion=False)
        app.command("bench")(bench)
        command = get_command(app)
        try:
            with command.make_context("bench", list(self.args)) as context:
                options = BenchOptions.of(context.params)
                if options.time_budget is not None:
                    raise UserError("--time-budget sizes one bench; --max-time is a check's")
                if options.base_url is not None:
                    raise UserError("--base-url is a bench's; give each side of a check its --url")
                return options
        except UserError as error:
            raise UserError(f"--{self.name}: {error}") from error
        except typer.Exit as error:
            raise UserError(f"--{self.name}: --help is no flag of a run; leave it out") from error
        except Exception as error:
            text = parser_text(error)
            if text is None:
                raise
            raise UserError(f"--{self.name}: {text} Flags are those of bench") from error

    def reuse(self) -> list[str]:
        """Returns the flags to add for a reuse mode, which a check needs: none where the side asks
        for one. Another version's flags, which this one can't read, are taken as they look."""
        try:
            asked = self.options()
        except UserError:
            return [] if "--reuse" in " ".join(self.args) else ["--reuse", "prefix"]
        return [] if asked.reuse else ["--reuse", str(with_default_reuse(asked).reuse)]


def with_default_reuse(options: BenchOptions) -> BenchOptions:
    """Returns the options with a reuse mode: a check is about reuse, so the engine's default is
    taken where none is asked for."""
    if options.reuse is not None:
        return options
    return replace(options, reuse=DEFAULT_MODES.get(options.engine, "prefix").split(",")[-1])


def parse_side(name: str, text: str | None, python: Path | None) -> Side:
    """Makes a side of ``text``: flags of bench, a YAML file of them, or a run file. Raises
    ``UserError``."""
    if python is not None and not python.exists():
        raise MissingError(
            f"--{name}-python: {python} does not exist; give a Python of an environment"
        )
    path = Path(text) if text else None
    stored = path is not None and (path.suffix in (".parquet", ".json") or path.is_dir())
    if path is not None and stored and "\n" not in str(path):
        if name == "candidate" or python is not None:
            raise UserError(f"--{name}: {path} is a run; to judge runs use lmcache compare")
        if not path.exists():
            raise UserError(f"--{name}: {path} does not exist; give a run file, or flags of bench")
        return Side(name, stored=path)
    if path is not None and path.suffix in (".yaml", ".yml"):
        return Side(name, ("--config", str(path)), python)
    try:
        return Side(name, tuple(shlex.split(text or "")), python)
    except ValueError as error:
        raise UserError(f"--{name}: {error}; quote it as for a shell") from error


def shared_flags(text: str) -> tuple[str, ...]:
    """Splits the flags in ``--bench``, which the sides share. Raises ``UserError``."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"--bench: {error}; quote it as for a shell") from error


@dataclass(slots=True)
class Judgement:
    """The criteria of what fails: ``rules`` (``default``: those that are taken if none is given)
    and the strictness of counters; what ``inconclusive`` is to the exit code; the ``noise`` of
    stored runs as it was given; and in which facts these may differ, ``allowed``."""

    rules: list[Rule] = field(default_factory=list)
    counters: Strictness = "exact"
    default: bool = False
    inconclusive: Literal["fail", "pass"] = "fail"
    noise: str | None = None
    allowed: Sequence[str] = ()

    def needed(self) -> list[Rule]:
        """Returns the rules that must be judged; none of the default ones, which are left out where
        a round has too few values."""
        return [] if self.default else self.rules

    @classmethod
    def of(cls, flags: JudgementFlags) -> Judgement:
        """Reads the criteria from flags. Raises ``UserError`` for a rule that can't be read,
        ``MissingError`` without scipy."""
        one_of("--counters", flags.counters, get_args(Strictness))
        try:
            rules = [parse_rule(text) for text in (flags.fail_on or DEFAULT_RULES)]
        except RuleError as error:
            raise UserError(f"--fail-on: {error}") from error
        names = [str(rule) for rule in rules]
        for rule in rules:
            if [r.metric for r in rules].count(rule.metric) > 1:
                raise UserError(f"--fail-on: {rule.metric} has several rules: {', '.join(names)}")
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise missing_package(error) from error
        return cls(
            rules,
            flags.counters,
            not flags.fail_on,
            flags.inconclusive,
            flags.noise,
            flags.allow_different or (),
        )


def missing_package(error: ImportError) -> MissingError:
    """Returns the error that says how to get a package that verdicts need."""
    return MissingError(
        f"verdicts need the package {error.name}; run: pip install 'lmcache-bench[check]'"
    )
