"""Finds, for ``check --bisect``, the commit that made it worse: a worktree and an environment for
each commit that is looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.check.run import CheckResult
from lmcache_cli.check.side import Budget, Judgement, Side
from lmcache_cli.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, MissingError, UserError
from reports.verdict.judge import Outcome


@dataclass(slots=True)
class Commits:
    """The environments of a repository's commits, made as they are asked for, in ``folder``.
    ``install`` is a shell command that installs the worktree it runs in."""

    folder: Path
    install: str
    made: dict[str, Path] = field(default_factory=dict)

    def python_of(self, commit: str) -> Path:
        """Returns the Python of a commit's environment. Raises ``UserError`` if it can't be
        installed."""
        if commit not in self.made:
            tree, environment = self.folder / commit, self.folder / f"{commit}-venv"
            _git("worktree", "add", "--detach", "--quiet", str(tree), commit)
            self.made[commit] = environment / "bin" / "python"
            make = [sys.executable, "-m", "venv", str(environment)]
            done = subprocess.run(make, capture_output=True, text=True, check=False)
            if done.returncode:  # what venv has to say, it says on stdout
                said = _last_line(done.stdout + done.stderr)
                raise UserError(f"--bisect: no environment can be made by {sys.executable}: {said}")
            path = f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
            done = subprocess.run(
                self.install,
                shell=True,
                cwd=tree,
                env=os.environ | {"PATH": path, "VIRTUAL_ENV": str(environment)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                said = _last_line(done.stderr)
                raise UserError(f"--install: failed for {commit[:10]}: {said}")
        return self.made[commit]

    def close(self) -> None:
        """Removes all worktrees."""
        for commit in self.made:
            _git("worktree", "remove", "--force", str(self.folder / commit))


def run_bisect(
    ends: tuple[str, str],
    install: str,
    args: Sequence[str],
    judgement: Judgement,
    budget: Budget,
    seed: int,
    out: Path,
    quiet: bool,
) -> int:
    """Checks commits between two against the good one, until neighbours are a good and a bad one.
    A commit that can't be installed, or is INCONCLUSIVE, is passed over. Returns 1 if one commit is
    found, 3 if several are left or the bad end is not bad. Raises ``UserError``."""
    good, bad = (_git("rev-parse", "--verify", f"{name}^{{commit}}") for name in ends)
    between = ["rev-list", "--reverse", "--first-parent", "--ancestry-path", f"{good}..{bad}"]
    commits = _git(*between).split()
    if not commits:
        raise UserError(f"--bisect: {ends[1]} does not follow {ends[0]}; give the older one first")
    say = Console(stderr=True, quiet=quiet)
    with TemporaryDirectory(prefix="lmcache-bisect-") as folder:
        known = Commits(Path(folder), install)

        def outcome(commit: str) -> Outcome:
            try:
                base = Side("baseline", tuple(args), known.python_of(good))
                new = replace(base, name="candidate", python=known.python_of(commit))
                mine = Budget(budget.rounds, budget.seconds)
                check = CheckResult(base, new, judgement, mine, seed, out, [], [])
                with BenchProgress(Console(stderr=True), quiet) as progress:
                    check.measure(progress)
                found = check.trial().outcome()
            except UserError as error:
                say.print(str(error), style="yellow", highlight=False, markup=False)
                found = "INCONCLUSIVE"
            say.print(f"{_named(commit)}: {found}", highlight=False, markup=False)
            return found

        try:
            known.python_of(good)
            if (last := outcome(bad)) != "FAIL":
                print(f"{last}: {ends[1]} is not shown to be worse than {ends[0]}")
                return EXIT_INCONCLUSIVE
            low, high = -1, len(commits) - 1
            passed_over: set[int] = set()
            while left := [i for i in range(low + 1, high) if i not in passed_over]:
                middle = min(left, key=lambda i: abs(2 * i - low - high))
                found = outcome(commits[middle])
                if found == "FAIL":
                    high = middle
                elif found == "PASS":
                    low = middle
                else:
                    passed_over.add(middle)
        finally:
            known.close()
    suspects = commits[low + 1 : high + 1]
    print("It became worse with" + (" one of:" if len(suspects) > 1 else ":"))
    for commit in suspects:
        print(_named(commit))
    return EXIT_FAILED if len(suspects) == 1 else EXIT_INCONCLUSIVE


def _named(commit: str) -> str:
    return _git("show", "--no-patch", "--format=%h %s", commit)


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
    except OSError as error:
        raise MissingError("--bisect needs git; install it") from error
    if done.returncode:
        raise UserError(f"--bisect: git {args[0]}: {_last_line(done.stderr)}")
    return done.stdout.strip()


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
