"""``lmcache bench``: what does reuse give me?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.options.flags import (
    CACHE,
    LOAD,
    MEASURED,
    REHEARSAL,
    SWEPT,
    TRACE_PANEL,
    WORKLOAD,
    BlendCheckLayer,
    BlendEncoding,
    BlendNarrow,
    BlendPassport,
    BlendRatio,
    BlendSelection,
    Config,
    Json,
    Quiet,
    Unverified,
)
from lmcache_cli.options.yaml_file import flags_of_run

SHORT = "Measures what KV reuse gives: TTFT, ITL, hit rates, speed-up."
EXAMPLES = (
    "Examples:  lmcache bench   |   lmcache bench rag --corpus docs/ --cpu-size 1GiB,4GiB"
    "   |   lmcache bench chat --engine simulated --chunk-tokens 16,64,256 --json -"
)


def bench(
    ctx: typer.Context,
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORKLOAD",
            help="long-context, rag, chat, agent, random; or trace. \\[default: long-context rag]",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="transformers, vllm (starts servers), openai (a running server), simulated.",
            rich_help_panel=MEASURED,
        ),
    ] = "transformers",
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face id or folder. \\[default: the embedded SmolLM2-135M]",
            show_default=False,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1.", rich_help_panel=MEASURED)
    ] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=MEASURED),
    ] = "auto",
    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Costs from `lmcache probe --model` (simulated).",
            show_default=False,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Server with OpenAI's completions API (openai). Its API key is read from"
            " LMCACHE_API_KEY or OPENAI_API_KEY.",
            show_default=False,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    vllm_args: Annotated[
        str | None,
        typer.Option(
            metavar="ARGS",
            help='Further flags of vllm serve, as one argument: "--max-model-len 4096" (vllm).',
            show_default=False,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    reuse: Annotated[
        str | None,
        typer.Option(
            help="off, prefix, blend, shared (transformers); vllm: also vllm (its prefix cache),"
            " offload, lmcache; openai: only server (as it is, since a running server's"
            " cache can't be switched)."
            " \\[default: off,prefix; off,vllm,prefix; server]",
            show_default=False,
            rich_help_panel=SWEPT,
        ),
    ] = None,
    device_size: Annotated[
        str,
        typer.Option(help="KV kept in the engine's memory; 0 for none.", rich_help_panel=SWEPT),
    ] = "0",
    cpu_size: Annotated[str, typer.Option(help="KV kept in DRAM.", rich_help_panel=SWEPT)] = "2GiB",
    chunk_tokens: Annotated[str, typer.Option(help="Chunk length.", rich_help_panel=SWEPT)] = "64",
    context_tokens: Annotated[
        str, typer.Option(help="Length of a document or context.", rich_help_panel=SWEPT)
    ] = "2000",
    disk_size: Annotated[str, typer.Option(help="KV kept on disk.", rich_help_panel=SWEPT)] = "0",
    disk_path: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the disk tier. \\[default: one below --out, removed afterwards]",
            show_default=False,
            rich_help_panel=CACHE,
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Remote tier: redis://, rediss://, mooncake://, or a plugin (module:Class).",
            show_default=False,
            rich_help_panel=CACHE,
        ),
    ] = None,
    codec: Annotated[str, typer.Option(rich_help_panel=CACHE, help="none, fp8, int8.")] = "none",
    admission: Annotated[
        str,
        typer.Option(
            help="What may enter the disk tier: none (all), second-touch, bytes-per-day.",
            rich_help_panel=CACHE,
        ),
    ] = "none",
    disk_writes_per_day: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Budget of --admission bytes-per-day.",
            show_default=False,
            rich_help_panel=CACHE,
        ),
    ] = None,
    cache_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Start with what earlier runs of this name left on disk or remote."
            " \\[default: a cold start]",
            show_default=False,
            rich_help_panel=CACHE,
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="Eviction order: lru, lfu-aging, gdsf, s3-fifo, arc; unbounded (simulated).",
            rich_help_panel=CACHE,
        ),
    ] = "lru",
    placement: Annotated[
        str,
        typer.Option(
            help="write_on_insertion (inclusive) or write_on_eviction (exclusive).",
            rich_help_panel=CACHE,
        ),
    ] = "write_on_insertion",
    blend_ratio: BlendRatio = None,
    blend_selection: BlendSelection = None,
    blend_check_layer: BlendCheckLayer = None,
    blend_narrow: BlendNarrow = 1,
    blend_encoding: BlendEncoding = None,
    blend_passport: BlendPassport = None,
    unverified: Unverified = False,
    shared_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The base whose KV --model is served: id, folder or 'embedded' (shared).",
            show_default=False,
            rich_help_panel=CACHE,
        ),
    ] = None,
    recompute_layers: Annotated[
        str,
        typer.Option(
            help="Layers computed again: none, all, 25% (the lowest), 0-3+12 (shared).",
            rich_help_panel=SWEPT,
        ),
    ] = "25%",
    warm: Annotated[
        bool,
        typer.Option(
            "--warm",
            help="First serve, unmeasured, the same parts in another order.",
            rich_help_panel=WORKLOAD,
        ),
    ] = False,
    documents: Annotated[
        int, typer.Option(help="Documents (long-context).", rich_help_panel=WORKLOAD)
    ] = 4,
    questions: Annotated[
        int, typer.Option(help="Questions per document (long-context).", rich_help_panel=WORKLOAD)
    ] = 3,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Number of requests. \\[default: the workload's own]",
            show_default=False,
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    question_tokens: Annotated[
        int, typer.Option(help="Length of a question.", rich_help_panel=WORKLOAD)
    ] = 64,
    output_tokens: Annotated[
        int, typer.Option(help="Tokens generated per request.", rich_help_panel=WORKLOAD)
    ] = 16,
    passages: Annotated[
        int, typer.Option(help="Passages per request (rag).", rich_help_panel=WORKLOAD)
    ] = 4,
    passage_tokens: Annotated[
        int, typer.Option(help="Length of a passage (rag).", rich_help_panel=WORKLOAD)
    ] = 480,
    corpus_passages: Annotated[
        int, typer.Option(help="Passages in the corpus (rag).", rich_help_panel=WORKLOAD)
    ] = 64,
    zipf: Annotated[
        float, typer.Option(help="Skew of passage popularity (rag).", rich_help_panel=WORKLOAD)
    ] = 1.0,
    system_tokens: Annotated[
        int, typer.Option(help="Length of the system prompt.", rich_help_panel=WORKLOAD)
    ] = 128,
    sessions: Annotated[
        int, typer.Option(help="Sessions (chat, agent).", rich_help_panel=WORKLOAD)
    ] = 4,
    rounds: Annotated[
        int, typer.Option(help="Rounds or steps per session.", rich_help_panel=WORKLOAD)
    ] = 4,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="File or folder of real text. \\[default: generated text]",
            show_default=False,
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Questions with passages and answers, JSON or JSON lines as of MuSiQue or"
            " LongBench; prompts are cut to --context-tokens (rag).",
            show_default=False,
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The trace to replay (trace); formats: lmcache trace info --help.",
            show_default=False,
            rich_help_panel=TRACE_PANEL,
        ),
    ] = None,
    trace_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Its format. \\[default: what it looks like]",
            show_default=False,
            rich_help_panel=TRACE_PANEL,
        ),
    ] = None,
    trace_chunk_tokens: Annotated[
        int | None,
        typer.Option(
            help="Its tokens per chunk. \\[default: its format's]",
            show_default=False,
            rich_help_panel=TRACE_PANEL,
        ),
    ] = None,
    speed_up: Annotated[
        float,
        typer.Option(help="Requests come so many times as fast.", rich_help_panel=TRACE_PANEL),
    ] = 1.0,
    scale: Annotated[
        float,
        typer.Option(
            help="All lengths times this, for small machines: 0.125 makes 512 tokens 64.",
            rich_help_panel=TRACE_PANEL,
        ),
    ] = 1.0,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: Poisson arrivals, requests per second.",
            show_default=False,
            rich_help_panel=LOAD,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Closed loop: clients that wait for their answer. \\[default: 1]",
            show_default=False,
            rich_help_panel=LOAD,
        ),
    ] = None,
    request_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Longest silence of a server before a request has failed (openai, vllm).",
            rich_help_panel=LOAD,
        ),
    ] = 300.0,
    start_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Longest start of a server (vllm).", rich_help_panel=LOAD
        ),
    ] = 600.0,
    repeat: Annotated[
        int, typer.Option(help="Repeats, each from a cold start.", rich_help_panel=LOAD)
    ] = 1,
    tier_latency: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Make each read and write of a tier take so much longer.",
            rich_help_panel=REHEARSAL,
        ),
    ] = 0.0,
    jitter: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Noise on the times of each request: 0.05 for 5 % (simulated).",
            rich_help_panel=REHEARSAL,
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same requests.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the run file.")] = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Finish an interrupted run, with its flags and in its file.",
            is_eager=True,
            callback=flags_of_run,
            show_default=False,
        ),
    ] = None,
    json: Json = None,
    csv: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write CSV; - for stdout.", show_default=False),
    ] = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Runs workloads through an engine with and without KV reuse, side by side, and prints TTFT,
    ITL, throughput, hit rates and the speed-up."""
    from lmcache_cli.bench.plan import make_plan
    from lmcache_cli.bench.report import run_and_report
    from lmcache_cli.options.bench import BenchOptions

    options = BenchOptions.of(ctx.params)
    raise typer.Exit(run_and_report(make_plan(options, out), out, json, csv, quiet, resume))
