"""``lmcache bench``: what does reuse give me?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.config_file import load_config

EXAMPLES = (
    "Examples:  lmcache bench   |   lmcache bench rag --corpus docs/ --cpu-size 1GiB,4GiB"
    "   |   lmcache bench chat --engine simulated --chunk-tokens 16,64,256 --json -"
)
_MEASURED = "What is measured"
_SWEPT = "Swept (lists with commas)"
_CACHE = "The cache"
_WORKLOAD = "The workload"
_LOAD = "The load"
_TRACE = "The trace (workload trace)"


def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORKLOAD]...",
            help="long-context, rag, chat, agent, random; or trace. [default: long-context rag]",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="transformers, vllm (starts servers), openai (a running server), simulated.",
            rich_help_panel=_MEASURED,
        ),
    ] = "transformers",
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face id or folder. [default: the embedded SmolLM2-135M]",
            show_default=False,
            rich_help_panel=_MEASURED,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1.", rich_help_panel=_MEASURED)
    ] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_MEASURED),
    ] = "auto",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Server with OpenAI's completions API (openai). Its API key is read from"
            " LMCACHE_API_KEY or OPENAI_API_KEY.",
            show_default=False,
            rich_help_panel=_MEASURED,
        ),
    ] = None,
    vllm_args: Annotated[
        str | None,
        typer.Option(
            metavar="ARGS",
            help='Further flags of vllm serve, as one argument: "--max-model-len 4096" (vllm).',
            show_default=False,
            rich_help_panel=_MEASURED,
        ),
    ] = None,
    reuse: Annotated[
        str | None,
        typer.Option(
            help="off, prefix, blend (transformers); vllm: also vllm (its own prefix cache),"
            " offload, lmcache; openai: only server (as it is, since a running server's"
            " cache can't be switched)."
            " [default: off,prefix; off,vllm,prefix; server]",
            show_default=False,
            rich_help_panel=_SWEPT,
        ),
    ] = None,
    device_size: Annotated[
        str,
        typer.Option(help="KV kept in the engine's memory; 0 for none.", rich_help_panel=_SWEPT),
    ] = "0",
    cpu_size: Annotated[
        str,
        typer.Option(help="KV kept in DRAM.", rich_help_panel=_SWEPT),
    ] = "2GiB",
    chunk_tokens: Annotated[str, typer.Option(help="Chunk length.", rich_help_panel=_SWEPT)] = "64",
    context_tokens: Annotated[
        str,
        typer.Option(help="Length of a document or context.", rich_help_panel=_SWEPT),
    ] = "2000",
    disk_size: Annotated[
        str,
        typer.Option(help="KV kept on disk.", rich_help_panel=_SWEPT),
    ] = "0",
    disk_path: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the disk tier. [default: one below --out, removed afterwards]",
            show_default=False,
            rich_help_panel=_CACHE,
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Remote tier: redis://, rediss://, mooncake://, or a plugin (module:Class).",
            show_default=False,
            rich_help_panel=_CACHE,
        ),
    ] = None,
    codec: Annotated[str, typer.Option(rich_help_panel=_CACHE, help="none, fp8, int8.")] = "none",
    admission: Annotated[
        str,
        typer.Option(
            help="What may enter the disk tier: none (all), second-touch, bytes-per-day.",
            rich_help_panel=_CACHE,
        ),
    ] = "none",
    disk_writes_per_day: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Budget of --admission bytes-per-day.",
            show_default=False,
            rich_help_panel=_CACHE,
        ),
    ] = None,
    cache_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Start with what earlier runs of this name left on disk or remote."
            " [default: a cold start]",
            show_default=False,
            rich_help_panel=_CACHE,
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="Eviction order: lru, lfu-aging, gdsf, s3-fifo, arc; unbounded (simulated).",
            rich_help_panel=_CACHE,
        ),
    ] = "lru",
    placement: Annotated[
        str,
        typer.Option(
            help="write_on_insertion (inclusive) or write_on_eviction (exclusive).",
            rich_help_panel=_CACHE,
        ),
    ] = "write_on_insertion",
    blend_ratio: Annotated[
        str,
        typer.Option(help="Share of reused tokens to recompute (blend).", rich_help_panel=_SWEPT),
    ] = "0.15",
    blend_selection: Annotated[
        str,
        typer.Option(
            help="Which of them: hkvd, query, first, random, none, full (blend).",
            rich_help_panel=_SWEPT,
        ),
    ] = "hkvd",
    blend_check_layer: Annotated[
        str,
        typer.Option(
            help="Layer at which hkvd and query choose, from 0 on (blend).", rich_help_panel=_SWEPT
        ),
    ] = "1",
    blend_narrow: Annotated[
        int,
        typer.Option(
            help="Layers over which they narrow their choice (blend).", rich_help_panel=_CACHE
        ),
    ] = 1,
    blend_encoding: Annotated[
        str,
        typer.Option(
            help="Behind what chunks are encoded: auto, system, bos, none (blend).",
            rich_help_panel=_CACHE,
        ),
    ] = "auto",
    warm: Annotated[
        bool,
        typer.Option(
            "--warm",
            help="First serve, unmeasured, the same parts in another order.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = False,
    documents: Annotated[
        int, typer.Option(help="Documents (long-context).", rich_help_panel=_WORKLOAD)
    ] = 4,
    questions: Annotated[
        int,
        typer.Option(help="Questions per document (long-context).", rich_help_panel=_WORKLOAD),
    ] = 3,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Number of requests. [default: the workload's own]",
            show_default=False,
            rich_help_panel=_WORKLOAD,
        ),
    ] = None,
    question_tokens: Annotated[
        int, typer.Option(help="Length of a question.", rich_help_panel=_WORKLOAD)
    ] = 64,
    output_tokens: Annotated[
        int, typer.Option(help="Tokens generated per request.", rich_help_panel=_WORKLOAD)
    ] = 16,
    passages: Annotated[
        int, typer.Option(help="Passages per request (rag).", rich_help_panel=_WORKLOAD)
    ] = 4,
    passage_tokens: Annotated[
        int, typer.Option(help="Length of a passage (rag).", rich_help_panel=_WORKLOAD)
    ] = 480,
    corpus_passages: Annotated[
        int, typer.Option(help="Passages in the corpus (rag).", rich_help_panel=_WORKLOAD)
    ] = 64,
    zipf: Annotated[
        float,
        typer.Option(help="Skew of passage popularity (rag).", rich_help_panel=_WORKLOAD),
    ] = 1.0,
    system_tokens: Annotated[
        int, typer.Option(help="Length of the system prompt.", rich_help_panel=_WORKLOAD)
    ] = 128,
    sessions: Annotated[
        int, typer.Option(help="Sessions (chat, agent).", rich_help_panel=_WORKLOAD)
    ] = 4,
    rounds: Annotated[
        int,
        typer.Option(help="Rounds or steps per session.", rich_help_panel=_WORKLOAD),
    ] = 4,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="File or folder of real text. [default: generated text]",
            show_default=False,
            rich_help_panel=_WORKLOAD,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The trace to replay (trace); formats: lmcache trace info --help.",
            show_default=False,
            rich_help_panel=_TRACE,
        ),
    ] = None,
    trace_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Its format. [default: what it looks like]",
            show_default=False,
            rich_help_panel=_TRACE,
        ),
    ] = None,
    trace_chunk_tokens: Annotated[
        int | None,
        typer.Option(
            help="Its tokens per chunk. [default: its format's]",
            show_default=False,
            rich_help_panel=_TRACE,
        ),
    ] = None,
    speed_up: Annotated[
        float, typer.Option(help="Requests come so many times as fast.", rich_help_panel=_TRACE)
    ] = 1.0,
    scale: Annotated[
        float,
        typer.Option(
            help="All lengths times this, for small machines: 0.125 makes 512 tokens 64.",
            rich_help_panel=_TRACE,
        ),
    ] = 1.0,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: Poisson arrivals, requests per second.",
            show_default=False,
            rich_help_panel=_LOAD,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Closed loop: clients that wait for their answer. [default: 1]",
            show_default=False,
            rich_help_panel=_LOAD,
        ),
    ] = None,
    request_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Longest silence of a server before a request has failed (openai, vllm).",
            rich_help_panel=_LOAD,
        ),
    ] = 300.0,
    start_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Longest start of a server (vllm).", rich_help_panel=_LOAD
        ),
    ] = 600.0,
    repeat: Annotated[
        int,
        typer.Option(help="Repeats, each from a cold start.", rich_help_panel=_LOAD),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same requests.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the run file.")] = Path("runs"),
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write JSON; - for stdout.", show_default=False),
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write CSV; - for stdout.", show_default=False),
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
    """Runs workloads through an engine with and without KV reuse, side by side, and prints TTFT,
    ITL, throughput, hit rates and the speed-up."""
    from lmcache_cli.bench.plan import BenchOptions, make_plan
    from lmcache_cli.bench.report import run_and_report

    options = BenchOptions(
        workloads=tuple(workloads or ("long-context", "rag")),
        engine=engine,
        model=model,
        device=device,
        dtype=dtype,
        url=url,
        vllm_args=vllm_args,
        request_timeout=request_timeout,
        start_timeout=start_timeout,
        reuse=reuse,
        device_size=device_size,
        cpu_size=cpu_size,
        disk_size=disk_size,
        disk_path=disk_path,
        remote=remote,
        admission=admission,
        codec=codec,
        disk_writes_per_day=disk_writes_per_day,
        cache_name=cache_name,
        chunk_tokens=chunk_tokens,
        context_tokens=context_tokens,
        policy=policy,
        placement=placement,
        blend_ratio=blend_ratio,
        blend_selection=blend_selection,
        blend_check_layer=blend_check_layer,
        blend_narrow=blend_narrow,
        blend_encoding=blend_encoding,
        warm=warm,
        documents=documents,
        questions=questions,
        requests=requests,
        question_tokens=question_tokens,
        output_tokens=output_tokens,
        passages=passages,
        passage_tokens=passage_tokens,
        corpus_passages=corpus_passages,
        zipf=zipf,
        system_tokens=system_tokens,
        sessions=sessions,
        rounds=rounds,
        corpus=corpus,
        rate=rate,
        concurrency=concurrency,
        repeat=repeat,
        seed=seed,
        trace=trace,
        trace_format=trace_format,
        trace_chunk_tokens=trace_chunk_tokens,
        speed_up=speed_up,
        scale=scale,
    )
    raise typer.Exit(run_and_report(make_plan(options, out), out, json, csv, quiet))
