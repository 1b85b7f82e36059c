"""``lmcache tune``: how big should each tier be?"""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = (
    "Example:  lmcache tune trace.jsonl --model llama-3.1-8b --hardware h100 --devices 2"
    " --slo ttft.p90=2s --max-cpu 512GiB"
)
_WHAT, _BOUNDS = "What is served", "What must hold"


def tune(
    source: Annotated[str, typer.Argument(help="A trace: see `lmcache trace info FILE`.")],
    model: Annotated[
        str, typer.Option(help="From the catalogue.", rich_help_panel=_WHAT)
    ] = "llama-3.1-8b",
    hardware: Annotated[
        str, typer.Option(help="Accelerator, from the catalogue.", rich_help_panel=_WHAT)
    ] = "h100",
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
        typer.Option(help="Of the trace. [default: found out]", show_default=False),
    ] = None,
    chunk_tokens: Annotated[
        str | None,
        typer.Option(
            help="Chunk lengths to try. [default: the trace's, twice and four times it]",
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
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write JSON; - for stdout.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Sizes storage by a trace: exact hits at every size, times from data sheets, the cheapest
    stack that keeps what you ask for. What it says is predicted, not measured."""
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
    )
    raise typer.Exit(run_tune(options, json, quiet))
