"""``lmcache trace``: what do real requests share?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.config_file import load_config

EXAMPLES = (
    "Example:  lmcache trace record day.jsonl --url http://127.0.0.1:8000 --listen 127.0.0.1:8100"
    "   (and point clients at http://127.0.0.1:8100)"
)

app = typer.Typer(
    name="trace",
    help="Traces of real requests: keys, lengths and times; no text, no tokens.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


# Without a callback, typer would make a group of one command that command.
@app.callback()
def trace() -> None:
    """Traces of real requests: keys, lengths and times; no text, no tokens."""


@app.command("record", epilog=EXAMPLES)
def record(
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="New file.", show_default=False)],
    url: Annotated[
        str, typer.Option(help="The OpenAI-compatible server to record.", show_default=False)
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Loopback address of the proxy; port 0: any.")
    ] = "127.0.0.1:8100",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER_OR_ID",
            help="The model's tokenizer, where the server has no /tokenize.",
            show_default=False,
        ),
    ] = None,
    chunk_tokens: Annotated[
        str, typer.Option(help="Chunk length; a multiple can be analysed later, a part can't.")
    ] = "16",
    duration: Annotated[
        str | None,
        typer.Option(help="Stop after 90s, 10m, 2h. [default: Ctrl-C]", show_default=False),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many. [default: Ctrl-C]", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of these flags; flags win.",
            is_eager=True,
            callback=load_config,
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Records a trace through a proxy: point clients at --listen instead of the server. Every
    request goes on unchanged; of completions and chats, the keys of the prompt's chunks, lengths
    and times are kept. Ctrl-C ends it: open requests get ten seconds, a second Ctrl-C none."""
    from importlib.util import find_spec

    from lmcache_cli.errors import MissingError
    from lmcache_cli.sizes import parse_count, parse_duration

    if find_spec("aiohttp") is None:
        raise MissingError("trace record needs aiohttp; pip install 'lmcache-bench[openai]'")
    from lmcache_cli.recorder.run import RecordOptions
    from lmcache_cli.recorder.run import record as run

    raise typer.Exit(
        run(
            RecordOptions(
                out,
                url,
                listen,
                tokenizer,
                parse_count(chunk_tokens, "--chunk-tokens"),
                None if duration is None else parse_duration(duration, "--duration"),
                requests,
                quiet,
            )
        )
    )
