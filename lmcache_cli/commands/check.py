"""``lmcache check``: did this change make it slower?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SHORT = "Did this change make it slower? PASS, FAIL or INCONCLUSIVE."
EXAMPLES = (
    "Examples:  lmcache check --baseline 'rag --policy lru' --candidate 'rag --policy gdsf'   |"
    "   lmcache check --bench 'rag --repeat 1' --baseline-python old/bin/python"
    " --fail-on 'ttft.p50>5%' --fail-on 'hit_rate<-0.5pp'"
)
_SIDES, _VERDICT, _BUDGET, _OUTPUT = "The sides", "The verdict", "How long", "Outputs"


def check(
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="ARGS",
            help="Flags of bench in one argument, a YAML file of them, or a run file.",
            show_default=False,
            rich_help_panel=_SIDES,
        ),
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(
            metavar="ARGS",
            help="Likewise, without run files. \\[default: the baseline's]",
            show_default=False,
            rich_help_panel=_SIDES,
        ),
    ] = None,
    bench: Annotated[
        str,
        typer.Option(
            metavar="ARGS", help="Flags of bench that both sides have.", rich_help_panel=_SIDES
        ),
    ] = "",
    baseline_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Python of an environment with the version to compare with.",
            show_default=False,
            rich_help_panel=_SIDES,
        ),
    ] = None,
    candidate_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Python of the candidate's environment. \\[default: this one]",
            show_default=False,
            rich_help_panel=_SIDES,
        ),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="METRIC>LIMIT or METRIC<-LIMIT; may be given several times."
            " \\[default: ttft.p50>5%]",
            show_default=False,
            rich_help_panel=_VERDICT,
        ),
    ] = None,
    counters: Annotated[
        str,
        typer.Option(
            help="exact: any change of a counter fails; worse: only one for the worse; ignore.",
            rich_help_panel=_VERDICT,
        ),
    ] = "exact",
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Instead: the baseline against itself; prints noise, false alarms and the rounds"
            " that a verdict needs.",
            rich_help_panel=_VERDICT,
        ),
    ] = False,
    max_rounds: Annotated[
        int, typer.Option(help="Most rounds per cell.", rich_help_panel=_BUDGET)
    ] = 60,
    max_time: Annotated[
        str, typer.Option(help="Then it ends undecided: 90s, 10m.", rich_help_panel=_BUDGET)
    ] = "10m",
    seed: Annotated[int, typer.Option(help="Of the order of turns.", rich_help_panel=_BUDGET)] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for the run file.", rich_help_panel=_OUTPUT)
    ] = Path("runs"),
    json: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write JSON; - for stdout.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    markdown: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Likewise.", show_default=False, rich_help_panel=_OUTPUT),
    ] = None,
    junit: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Likewise, JUnit XML.", show_default=False, rich_help_panel=_OUTPUT
        ),
    ] = None,
    github: Annotated[
        bool,
        typer.Option(
            "--github",
            help="Append the Markdown to $GITHUB_STEP_SUMMARY.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Runs baseline and candidate in turns, round by round, until it is decided whether the
    candidate is worse. Exit code 0 PASS, 1 FAIL, 3 INCONCLUSIVE."""
    from dataclasses import replace

    from lmcache_cli.bench.plan import make_plan
    from lmcache_cli.check.noise import run_calibrate
    from lmcache_cli.check.run import CheckOutputs, Judgement, run_check
    from lmcache_cli.check.side import Budget, parse_side, shared_flags
    from lmcache_cli.errors import UserError
    from lmcache_cli.sizes import parse_count, parse_duration

    judgement = Judgement.of(fail_on or [], counters)
    rounds = parse_count(str(max_rounds), "--max-rounds")
    budget = Budget(rounds, parse_duration(max_time, "--max-time"))
    if not (baseline or candidate or bench or baseline_python):
        raise UserError("nothing to compare; give --baseline and --candidate, flags of bench each")
    shared = shared_flags(bench)
    base = parse_side("baseline", baseline, baseline_python)
    new = parse_side("candidate", candidate, candidate_python)
    if candidate is None and base.stored is None:
        new = replace(new, args=base.args)
    base = replace(base, args=(*shared, *base.args))
    new = replace(new, args=(*shared, *new.args))
    outputs = CheckOutputs(json, markdown, junit, github)
    if calibrate:
        raise typer.Exit(run_calibrate(base, judgement, budget, seed, out, outputs, quiet))
    if (base.args, base.python) == (new.args, new.python) and not base.stored:
        make_plan(base.options(), out)  # a typo is told first: it may be what should differ
        raise UserError(
            "both sides are the same; let something differ, or measure the noise: --calibrate"
        )
    raise typer.Exit(run_check(base, new, judgement, budget, seed, out, outputs, quiet))
