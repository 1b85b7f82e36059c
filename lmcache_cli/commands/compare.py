"""``lmcache compare``: the judgement of check over runs that are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SHORT = "The same judgement of stored runs, also of other tools."
EXAMPLES = (
    "Examples:  lmcache compare before/ after/   |   lmcache compare old.json new.json"
    " --noise 0.03   |   lmcache compare --history runs/"
)
_OUTPUT = "Outputs"


def compare(
    base: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE",
            help="A run file, several with commas, or a folder of them: of lmcache bench, vLLM,"
            " SGLang, aiperf, guidellm, LMCache.",
            show_default=False,
        ),
    ] = None,
    new: Annotated[
        str | None, typer.Argument(metavar="NEW", help="Likewise.", show_default=False)
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="As of check; may be given several times. \\[default: ttft.p50>5%]",
            show_default=False,
        ),
    ] = None,
    counters: Annotated[str, typer.Option(help="exact, worse or ignore, as of check.")] = "exact",
    noise: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Known noise from run to run (check --calibrate), for single runs: 0.05 for 5 %.",
            show_default=False,
        ),
    ] = None,
    allow_different: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare although the runs differ in this; may be given several times.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Instead: look for the runs of a folder, in order of time, after which a metric"
            " changed.",
            show_default=False,
        ),
    ] = None,
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
    quiet: Annotated[bool, typer.Option("--quiet", help="No warnings.")] = False,
) -> None:
    """Judges stored runs against stored runs. Runs that are not alike are refused. Exit code 0
    PASS, 1 FAIL, 3 INCONCLUSIVE."""
    from lmcache_cli.check.compare import run_compare
    from lmcache_cli.check.history import run_history
    from lmcache_cli.check.run import CheckOutputs, Judgement
    from lmcache_cli.errors import UserError

    judgement = Judgement.of(fail_on or [], counters)
    outputs = CheckOutputs(json, markdown, junit, github)
    allowed = allow_different or []
    if history is not None:
        if base or new:
            raise UserError("--history takes a folder in place of BASE and NEW; leave them out")
        raise typer.Exit(run_history(history, judgement, allowed, outputs, quiet))
    if base is None or new is None:
        raise UserError("two sides are needed: lmcache compare BASE NEW, or --history FOLDER")
    raise typer.Exit(run_compare(base, new, judgement, allowed, noise, outputs, quiet))
