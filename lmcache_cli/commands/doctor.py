"""``lmcache doctor``: what is installed, built, reachable."""

from __future__ import annotations

from typing import Annotated

import typer

SHORT = "Says what is installed, built and missing, and how to get it."
EXAMPLES = "Example:  lmcache doctor --json doctor.json"


def doctor(
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write JSON; - for stdout.", show_default=False),
    ] = None,
) -> None:
    """Says what is here, what is missing for which engine or tier, and how to get it."""
    from lmcache_cli.doctor import run_doctor as examine

    raise typer.Exit(examine(json))
