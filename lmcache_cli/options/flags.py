"""Flags that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.options.yaml_file import load_config

MEASURED = "What is measured"
SWEPT = "Swept (lists with commas)"
CACHE = "The cache"
WORKLOAD = "The workload"
LOAD = "The load"
TRACE_PANEL = "The trace (workload trace)"
REHEARSAL = "Made worse on purpose (to rehearse lmcache check)"


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


BlendRatio = Annotated[
    str | None,
    typer.Option(
        help="Share of reused tokens to recompute (blend). Default: as calibrated by"
        " lmcache verify, else 0.15.",
        show_default=False,
        rich_help_panel=SWEPT,
    ),
]


BlendSelection = Annotated[
    str | None,
    typer.Option(
        help="Which of them: hkvd, query, first, random, none, full (blend)."
        " Default: hkvd; first for vllm.",
        show_default=False,
        rich_help_panel=SWEPT,
    ),
]


BlendCheckLayer = Annotated[
    str | None,
    typer.Option(
        help="Layer at which hkvd and query choose, from 0 on (blend). Default: as"
        " calibrated, else 1.",
        show_default=False,
        rich_help_panel=SWEPT,
    ),
]


BlendNarrow = Annotated[
    int,
    typer.Option(help="Layers over which they narrow their choice (blend).", rich_help_panel=CACHE),
]


BlendEncoding = Annotated[
    str | None,
    typer.Option(
        help="Behind what chunks are encoded: auto, system, bos, none (blend). Default: as"
        " calibrated, else auto.",
        show_default=False,
        rich_help_panel=CACHE,
    ),
]


BlendPassport = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What lmcache verify --blend --out wrote (blend). Default: its own place.",
        show_default=False,
        rich_help_panel=CACHE,
    ),
]


Unverified = Annotated[
    bool,
    typer.Option(
        "--unverified",
        help="Blend a model that lmcache verify --blend has not passed.",
        rich_help_panel=CACHE,
    ),
]
