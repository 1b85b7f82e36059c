"""``lmcache tune``: how big should each tier be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SHORT = "Sizes storage by a trace or a workload, and can validate it."
EXAMPLES = (
    "Examples:  lmcache tune trace.jsonl --model llama-3.1-8b --hardware h100 --devices 2"
    " --slo ttft.p90=2s --max-cpu 512GiB   |   lmcache tune rag --probe runs/probe.json --validate"
)
_WHAT, _BOUNDS = "What is served", "What must hold"
_WORKLOAD = "The workload (as in bench)"
_VALIDATION = "Validation"


def tune(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A trace (see `lmcache trace info FILE`), or a workload of bench: long-context,"
            " rag, chat, agent, random.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="From the catalogue; with --validate, what bench takes. \\[default: llama-3.1-8b,"
            " the probe's, or the embedded one]",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Accelerator, from the catalogue. \\[default: h100]",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Costs that `lmcache probe --model` measured, in place of the catalogue.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(help="Accelerators that share a model.", rich_help_panel=_WHAT)
    ] = 1,
    efficiency: Annotated[
        float,
        typer.Option(help="Of the peak, that prefill reaches.", rich_help_panel=_WHAT),
    ] = 0.5,
    disk_bandwidth: Annotated[
        str, typer.Option(metavar="SIZE", help="Per second.", rich_help_panel=_WHAT)
    ] = "3GB",
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap", help="Layers are loaded while others compute.", rich_help_panel=_WHAT
        ),
    ] = False,
    speed_up: Annotated[
        float,
        typer.Option(help="Of the trace's arrivals: 2 is twice the load.", rich_help_panel=_WHAT),
    ] = 1.0,
    format: Annotated[
        str | None,
        typer.Option(help="Of the trace. \\[default: found out]", show_default=False),
    ] = None,
    chunk_tokens: Annotated[
        str | None,
        typer.Option(
            help="Chunk lengths to try. \\[default: the trace's, twice and four times it; of a"
            " workload 16,64,256]",
            show_default=False,
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ttft.p90=500ms",
            help="Repeatable; p50, p90 or p99.",
            show_default=False,
            rich_help_panel=_BOUNDS,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="0.05/hour",
            help="For DRAM and disk; or 30/month.",
            show_default=False,
            rich_help_panel=_BOUNDS,
        ),
    ] = None,
    max_cpu: Annotated[
        str, typer.Option(metavar="SIZE", help="Most DRAM.", rich_help_panel=_BOUNDS)
    ] = "1TiB",
    max_disk: Annotated[
        str, typer.Option(metavar="SIZE", help="Most disk.", rich_help_panel=_BOUNDS)
    ] = "8TiB",
    disk_writes_per_day: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What the SSD may take a day.",
            show_default=False,
            rich_help_panel=_BOUNDS,
        ),
    ] = None,
    dram_price: Annotated[
        float, typer.Option(help="Per GiB and hour.", rich_help_panel=_BOUNDS)
    ] = round(4.0 / (3 * 8760), 7),
    disk_price: Annotated[
        float, typer.Option(help="Per GiB and hour.", rich_help_panel=_BOUNDS)
    ] = round(0.1 / (3 * 8760), 8),
    worth: Annotated[
        float,
        typer.Option(
            help="Without --slo: seconds of mean TTFT that another dollar an hour must buy.",
            rich_help_panel=_BOUNDS,
        ),
    ] = 0.1,
    context_tokens: Annotated[
        int,
        typer.Option(
            help="Length of a document or context.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 2000,
    documents: Annotated[
        int,
        typer.Option(
            help="Documents (long-context).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 4,
    questions: Annotated[
        int,
        typer.Option(
            help="Questions per document (long-context).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 3,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Number of requests; of a trace, the first ones.",
            show_default=False,
            rich_help_panel=_WORKLOAD,
        ),
    ] = None,
    question_tokens: Annotated[
        int,
        typer.Option(
            help="Length of a question.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 64,
    output_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens generated per request.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 16,
    passages: Annotated[
        int,
        typer.Option(
            help="Passages per request (rag).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 4,
    passage_tokens: Annotated[
        int,
        typer.Option(
            help="Length of a passage (rag).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 480,
    corpus_passages: Annotated[
        int,
        typer.Option(
            help="Passages in the corpus (rag).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 64,
    zipf: Annotated[
        float,
        typer.Option(
            help="Skew of passage popularity (rag).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 1.0,
    system_tokens: Annotated[
        int,
        typer.Option(
            help="Length of the system prompt.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 128,
    sessions: Annotated[
        int,
        typer.Option(
            help="Sessions (chat, agent).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 4,
    rounds: Annotated[
        int,
        typer.Option(
            help="Rounds or steps per session.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 4,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="File or folder of real text. \\[default: generated text]",
            show_default=False,
            rich_help_panel=_WORKLOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: Poisson arrivals, requests per second.",
            show_default=False,
            rich_help_panel=_WORKLOAD,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Closed loop: clients that wait. \\[default: 1]",
            show_default=False,
            rich_help_panel=_WORKLOAD,
        ),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(
            help="All lengths of a trace times this, for small machines.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 1.0,
    seed: Annotated[
        int,
        typer.Option(
            help="Same seed, same requests.",
            rich_help_panel=_WORKLOAD,
        ),
    ] = 0,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate",
            help="Serve the requests here, under the recommendation and its neighbours.",
            rich_help_panel=_VALIDATION,
        ),
    ] = False,
    engine: Annotated[
        str,
        typer.Option(help="transformers or simulated.", rich_help_panel=_VALIDATION),
    ] = "transformers",
    tolerance: Annotated[
        str,
        typer.Option(help="Greatest errors of TTFT p50 and p90.", rich_help_panel=_VALIDATION),
    ] = "0.15,0.25",
    repeat: Annotated[
        int,
        typer.Option(help="Repeats, each from a cold start.", rich_help_panel=_VALIDATION),
    ] = 1,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for disk tiers, while they are used.", rich_help_panel=_VALIDATION
        ),
    ] = Path("runs"),
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write JSON; - for stdout.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Sizes storage by a trace or a workload: exact hits at every size, times from data sheets or a
    probe, the cheapest stack that keeps what you ask for. What it says is predicted; --validate
    measures it and exits with 1 if it was wrong."""
    from lmcache_cli.options.bench import BenchOptions
    from lmcache_cli.tune.options import TuneOptions
    from lmcache_cli.tune.run import run_tune

    options = TuneOptions(
        source=source,
        model=model,
        hardware=hardware,
        devices=devices,
        efficiency=efficiency,
        format=format,
        chunk_tokens=chunk_tokens,
        largest_cpu=max_cpu,
        largest_disk=max_disk,
        slo=tuple(slo or ()),
        budget=budget,
        disk_writes_per_day=disk_writes_per_day,
        dram_price=dram_price,
        disk_price=disk_price,
        worth=worth,
        speed_up=speed_up,
        overlap=overlap,
        disk_bandwidth=disk_bandwidth,
        probe=probe,
        engine=engine,
        bench=BenchOptions(
            engine="simulated",
            context_tokens=str(context_tokens),
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
            scale=scale,
            seed=seed,
        ),
        validate=validate,
        repeat=repeat,
        tolerance=tolerance,
        out=out,
    )
    raise typer.Exit(run_tune(options, json, quiet))
