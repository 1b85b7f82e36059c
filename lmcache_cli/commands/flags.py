"""Flags that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.config_file import load_config

Json = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write JSON; - for stdout.", show_default=False),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of these flags; flags win.",
        is_eager=True,
        callback=load_config,
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
