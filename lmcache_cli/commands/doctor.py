"""Declares ``lmcache doctor``: what is installed, built, reachable."""

from __future__ import annotations

import typer

from lmcache_cli.options.flags import Json

EXAMPLES = "Example:  lmcache doctor --json doctor.json"


def doctor(json: Json = None) -> None:
    """Says what is here, what is missing for which engine or tier, and how to get it."""
    from lmcache_cli.doctor import run_doctor as examine

    raise typer.Exit(examine(json))
