"""Declares ``lmcache compare``: the judgement of check over runs that are stored."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.options.flags import flag, flattened
from lmcache_cli.options.verdict import JudgementFlags, VerdictFiles

EXAMPLES = (
    "Examples:  lmcache compare before/ after/   |   lmcache compare old.json new.json"
    " --noise 0.03   |   lmcache compare --history runs/"
)


@flattened
def compare(
    judgement: JudgementFlags,
    files: VerdictFiles,
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
        str | None,
        typer.Argument(
            metavar="NEW",
            help="A run file, several with commas, or a folder of them, to judge by BASE.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[
        Path | None,
        flag(
            "Look instead for the runs of a folder, in order of time, after which a metric"
            " changed.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, flag("Show no warnings.", None, "--quiet")] = False,
) -> None:
    """Judges stored runs against stored runs. Runs that are not alike are refused. Exit code 0
    PASS, 1 FAIL, 3 INCONCLUSIVE."""
    from lmcache_cli.check.compare import run_compare
    from lmcache_cli.check.history import run_history
    from lmcache_cli.check.run import CheckOutputs
    from lmcache_cli.check.side import Judgement
    from lmcache_cli.errors import UserError

    outputs = CheckOutputs(**asdict(files))
    with outputs.of_refusals("compare"):
        rules = Judgement.of(judgement)
        if history is not None:
            if base or new:
                raise UserError("--history takes a folder in place of BASE and NEW; leave them out")
            raise typer.Exit(run_history(history, rules, outputs, quiet))
        if base is None or new is None:
            raise UserError("two sides are needed: lmcache compare BASE NEW, or --history FOLDER")
        raise typer.Exit(run_compare(base, new, rules, outputs, quiet))
