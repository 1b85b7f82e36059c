"""Declares ``lmcache probe``: what can this machine's tiers do?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.options.flags import Config, Json, Quiet

EXAMPLES = (
    "Examples:  lmcache probe --disk-path /mnt/nvme --remote redis://127.0.0.1:6379"
    "   |   lmcache probe --model embedded"
)
_ENGINE = "The engine (only with --model)"


def probe(
    disk_path: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder on the disk to measure.")
    ] = Path("runs"),
    disk_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Size of the file to make on the disk; larger than the device's cache is better.",
        ),
    ] = "512MiB",
    memory_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Bytes to copy in memory; larger than the last-level cache."
        ),
    ] = "512MiB",
    remote: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Remote tier to measure.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Measure the engine transformers with this model too: prefill, decode steps,"
            " loads. A Hugging Face id, a folder, or embedded (SmolLM2-135M).",
            show_default=False,
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device: cpu, cuda, cuda:1.", rich_help_panel=_ENGINE)
    ] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(
            help="Number format: auto, float32, bfloat16 or float16.", rich_help_panel=_ENGINE
        ),
    ] = "auto",
    context_tokens: Annotated[
        int, typer.Option(help="Longest prompt that is measured.", rich_help_panel=_ENGINE)
    ] = 2048,
    transfer: Annotated[
        bool,
        typer.Option(
            "--transfer",
            help="Measure instead how fast a GPU's ways of moving KV are (--device), for the"
            " planner; saved as transfer.json.",
        ),
    ] = False,
    repeat: Annotated[int, typer.Option(help="Repeats per figure.")] = 5,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the probe file.")] = Path(
        "runs"
    ),
    json: Json = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Measures memory copies, the disk at several sizes and depths with its sync, a remote, and
    what an engine's prefill, decode steps and loads take; saves the figures as probe.json, which
    tune and the simulated engine read. A call that fails is a failed probe: exit code 1, no file.
    """
    if transfer:
        from lmcache_cli.probe.transfer import gpu_number, run_probe_transfer

        number = gpu_number(device)
        raise typer.Exit(run_probe_transfer(number, repeat, out / "transfer.json", json, quiet))
    from lmcache_cli.probe.report import ModelOptions, run_probe
    from lmcache_cli.sizes import parse_size

    raise typer.Exit(
        run_probe(
            disk_path,
            parse_size(disk_size, "--disk-size"),
            parse_size(memory_size, "--memory-size"),
            remote,
            repeat,
            out / "probe.json",
            json,
            quiet,
            ModelOptions(model, device, dtype, context_tokens) if model else None,
        )
    )
