"""Declares ``lmcache check``: did this change make it slower?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.options.flags import Quiet, flag, flattened
from lmcache_cli.options.verdict import JudgementFlags, VerdictFiles

EXAMPLES = (
    "Examples:  lmcache check --baseline 'rag --policy lru' --candidate 'rag --policy gdsf'   |"
    "   lmcache check --bench 'rag --repeat 1' --baseline-python old/bin/python"
    " --fail-on 'ttft.p50>5%' --fail-on 'hit_rate<-0.5pp'"
)
_SIDES, _BUDGET = "The sides", "How long"


@flattened
def check(
    judgement: JudgementFlags,
    files: VerdictFiles,
    baseline: Annotated[
        str | None,
        flag(
            "Flags of bench in one argument, a YAML file of them, a run file, or a store of them.",
            _SIDES,
            metavar="ARGS",
            show_default=False,
        ),
    ] = None,
    candidate: Annotated[
        str | None,
        flag(
            "Flags of bench in one argument, or a YAML file of them. \\[default: the baseline's]",
            _SIDES,
            metavar="ARGS",
            show_default=False,
        ),
    ] = None,
    bench: Annotated[
        str, flag("Flags of bench that both sides have.", _SIDES, metavar="ARGS")
    ] = "",
    baseline_python: Annotated[
        Path | None,
        flag(
            "Python of an environment with the version to compare with.",
            _SIDES,
            metavar="PYTHON",
            show_default=False,
        ),
    ] = None,
    candidate_python: Annotated[
        Path | None,
        flag(
            "Python of the candidate's environment. \\[default: this one]",
            _SIDES,
            metavar="PYTHON",
            show_default=False,
        ),
    ] = None,
    bisect: Annotated[
        tuple[str, str] | None,
        flag(
            "Find the commit between two of this git repository, the good one first, that made"
            " --bench worse; each gets a worktree and an environment.",
            _SIDES,
            metavar="GOOD BAD",
            show_default=False,
        ),
    ] = None,
    install: Annotated[
        str,
        flag("Shell command that installs a commit, for --bisect.", _SIDES, metavar="COMMAND"),
    ] = "python -m pip install .",
    calibrate: Annotated[
        bool,
        flag(
            "Compare the baseline against itself instead; prints noise, false alarms and the"
            " rounds that a verdict needs.",
            "The verdict",
            "--calibrate",
        ),
    ] = False,
    max_rounds: Annotated[int, flag("Limit of rounds per cell.", _BUDGET)] = 60,
    max_time: Annotated[
        str, flag("Limit of time, after which the check ends undecided: 90s, 10m.", _BUDGET)
    ] = "10m",
    seed: Annotated[int, flag("Seed of the order of turns.", _BUDGET)] = 0,
    out: Annotated[Path, flag("Folder for the run file.", "Outputs", metavar="FOLDER")] = Path(
        "runs"
    ),
    quiet: Quiet = False,
) -> None:
    """Runs baseline and candidate in turns, round by round, until it is decided whether the
    candidate is worse. Exit code 0 PASS, 1 FAIL, 3 INCONCLUSIVE."""
    from dataclasses import replace

    from lmcache_cli.bench.plan import make_plan
    from lmcache_cli.check.bisect import run_bisect
    from lmcache_cli.check.noise import run_calibrate
    from lmcache_cli.check.run import CheckOutputs, run_check
    from lmcache_cli.check.side import Budget, Judgement, parse_side, shared_flags
    from lmcache_cli.errors import UserError
    from lmcache_cli.sizes import parse_count, parse_duration

    outputs = CheckOutputs(**asdict(files))
    with outputs.of_refusals("check"):
        rules = Judgement.of(judgement)
        rounds = parse_count(str(max_rounds), "--max-rounds")
        budget = Budget(rounds, parse_duration(max_time, "--max-time"))
        if not (baseline or candidate or bench or baseline_python or bisect):
            raise UserError(
                "nothing to compare; give --baseline and --candidate, flags of bench each"
            )
        shared = shared_flags(bench)
        base = parse_side("baseline", baseline, baseline_python)
        new = parse_side("candidate", candidate, candidate_python)
        if not base.stored and (rules.noise or rules.allowed):
            raise UserError(
                "--noise and --allow-different are about stored runs; give one as --baseline, or"
                " leave them out"
            )
        if bisect is not None:
            if baseline or candidate or baseline_python or candidate_python or calibrate:
                raise UserError(
                    "--bisect: both sides are commits; give the flags of both as --bench"
                )
            if any(asdict(files).values()):
                raise UserError(
                    "--bisect: prints a commit and writes no files; redirect its output"
                )
            raise typer.Exit(run_bisect(bisect, install, shared, rules, budget, seed, out, quiet))
        if candidate is None and base.stored is None:
            new = replace(new, args=base.args)
        base = replace(base, args=(*shared, *base.args))
        new = replace(new, args=(*shared, *new.args))
        if calibrate:
            raise typer.Exit(run_calibrate(base, rules, budget, seed, out, outputs, quiet))
        if (base.args, base.python) == (new.args, new.python) and not base.stored:
            make_plan(base.options(), out)  # a typo is reported first: it may be what should differ
            raise UserError(
                "both sides are the same; let something differ, or measure the noise: --calibrate"
            )
        raise typer.Exit(run_check(base, new, rules, budget, seed, out, outputs, quiet))
