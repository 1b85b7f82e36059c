"""Declares ``lmcache trace``: what do real requests share?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.options.flags import Config, Json, Quiet

_FORMATS = (
    "Formats: lmcache, mooncake, bailian, timed-trace, ragpulse, weka, lmcache-lookup, azure,"
    " burstgpt, openai-chat; plain, gzip or Zstandard."
)
INFO_EXAMPLES = "Example:  lmcache trace info conversation_trace.jsonl   |   " + _FORMATS
CONVERT_EXAMPLES = (
    "Example:  lmcache trace convert day.jsonl day.mooncake.jsonl --to mooncake   |   " + _FORMATS
)
SYNTH_EXAMPLES = (
    "Example:  lmcache trace synth new.jsonl --like day.jsonl --requests 10000"
    "   |   lmcache trace synth rag.jsonl --workload rag --requests 500 --rate 2"
)
EXAMPLES = (
    "Example:  lmcache trace record day.jsonl --url http://127.0.0.1:8000 --listen 127.0.0.1:8100"
    "   (and point clients at http://127.0.0.1:8100)"
    "   |   lmcache trace record day.jsonl --kv-events tcp://127.0.0.1:5557"
)

trace_app = typer.Typer(
    name="trace",
    help="Traces of real requests: names of chunks, lengths and times; no text, no tokens.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


# Without a callback, typer would make a group of one command that command.
@trace_app.callback()
def trace() -> None:
    """Works on traces of real requests: names of chunks, lengths and times; no text, no tokens."""


@trace_app.command(
    "record", short_help="Records requests to a server, through a proxy.", epilog=EXAMPLES
)
def record(
    out: Annotated[
        Path, typer.Argument(metavar="OUT.jsonl", help="New file to write.", show_default=False)
    ],
    url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server to record, by a proxy.", show_default=False),
    ] = None,
    kv_events: Annotated[
        str | None,
        typer.Option(
            metavar="tcp://HOST:PORT",
            help="Where a vLLM server publishes KV events (--kv-events-config), without a proxy.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Loopback address of the proxy; port 0: any.")
    ] = "127.0.0.1:8100",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER_OR_ID",
            help="Tokenizer of the model, where the server has no /tokenize.",
            show_default=False,
        ),
    ] = None,
    chunk_tokens: Annotated[
        str, typer.Option(help="Chunk length; a multiple can be analysed later, a part can't.")
    ] = "16",
    duration: Annotated[
        str | None,
        typer.Option(help="Stop after 90s, 10m, 2h. \\[default: Ctrl-C]", show_default=False),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after so many requests. \\[default: Ctrl-C]", show_default=False
        ),
    ] = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Records a trace through a proxy: point clients at --listen instead of the server. Every
    request goes on unchanged; of completions and chats, the keys of the prompt's chunks, lengths
    and times are kept. Ctrl-C ends it: open requests get ten seconds, a second Ctrl-C none.
    With --kv-events there is no proxy: requests are told from the blocks that vLLM stores."""
    from importlib.util import find_spec

    from lmcache_cli.errors import MissingError
    from lmcache_cli.sizes import parse_count, parse_duration

    if find_spec("aiohttp") is None:
        raise MissingError("trace record needs aiohttp; pip install 'lmcache-bench[openai]'")
    from lmcache_cli.trace.record import RecordOptions
    from lmcache_cli.trace.record import run_recording as run

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
                kv_events,
            )
        )
    )


_Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="Format of the trace. \\[default: what it looks like]", show_default=False
    ),
]
_ChunkTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens per chunk of the trace. \\[default: the format's]", show_default=False
    ),
]
_TimeUnit = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Unit of the trace's times. \\[default: the format's]",
        show_default=False,
    ),
]
_Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER_OR_ID", help="Tokenizer for traces that hold text.", show_default=False
    ),
]
_Map = Annotated[
    str | None,
    typer.Option(
        "--map",
        metavar="NAME=FIELD,...",
        help="Fields of a CSV or JSON lines of your own: time=FIELD,input=FIELD, also output,"
        " session, chunks.",
        show_default=False,
    ),
]
_To = Annotated[str, typer.Option("--to", help="Format to write: lmcache or mooncake.")]


@trace_app.command(
    "info",
    short_help="What a trace amounts to, and what a cache could serve of it.",
    epilog=INFO_EXAMPLES,
)
def info(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Trace file, or a folder of them; - for stdin.", show_default=False
        ),
    ],
    format: _Format = None,
    chunk_tokens: _ChunkTokens = None,
    time_unit: _TimeUnit = None,
    tokenizer: _Tokenizer = None,
    map: _Map = None,
    json: Json = None,
) -> None:
    """Shows what a trace amounts to: requests, lengths, arrivals, and the most that a cache without
    limits would serve of it, by prefix and at any position."""
    from lmcache_cli.trace.tools import TraceSource, show_info

    show_info(TraceSource(file, format, chunk_tokens, time_unit, tokenizer, map), json)


@trace_app.command(
    "convert", short_help="Writes a trace in another format.", epilog=CONVERT_EXAMPLES
)
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="Trace file, or a folder of them; - for stdin.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.jsonl", help="New file to write; - for stdout.", show_default=False
        ),
    ],
    to: _To = "lmcache",
    format: _Format = None,
    chunk_tokens: _ChunkTokens = None,
    time_unit: _TimeUnit = None,
    tokenizer: _Tokenizer = None,
    map: _Map = None,
) -> None:
    """Writes a trace anew, in the order of arrival."""
    from lmcache_cli.trace.tools import TraceSource
    from lmcache_cli.trace.tools import convert_trace as run

    run(TraceSource(file, format, chunk_tokens, time_unit, tokenizer, map), out, to)


@trace_app.command(
    "synth", short_help="Makes a trace that shares as another does.", epilog=SYNTH_EXAMPLES
)
def synth(
    out: Annotated[
        Path, typer.Argument(metavar="OUT.jsonl", help="New file to write.", show_default=False)
    ],
    like: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Share as this trace does.", show_default=False),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Share as this workload of bench does.", show_default=False
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of requests. \\[default: the trace's or workload's own]",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests per second (--workload). \\[default: 1]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the trace: same seed, same trace.")] = 0,
    to: _To = "lmcache",
    format: _Format = None,
    chunk_tokens: _ChunkTokens = None,
) -> None:
    """Makes a synthetic trace that shares as a given one does, or as a workload does."""
    from lmcache_cli.trace.tools import TraceSource, synth_like, synth_workload

    if like is not None and workload is None:
        synth_like(TraceSource(like, format, chunk_tokens), out, to, requests, seed)
    else:
        synth_workload(workload, like is not None, out, to, requests, rate, seed, chunk_tokens)
