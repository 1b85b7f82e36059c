"""``lmcache probe``: what can this machine's tiers do?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.config_file import load_config

EXAMPLES = "Example:  lmcache probe --disk-path /mnt/nvme --remote redis://127.0.0.1:6379"


def probe(
    disk_path: Annotated[Path, typer.Option(help="Folder on the disk to measure.")] = Path("runs"),
    disk_size: Annotated[
        str, typer.Option(help="File to make there; larger than the device's cache is better.")
    ] = "512MiB",
    memory_size: Annotated[
        str, typer.Option(help="Bytes to copy; larger than the last-level cache.")
    ] = "512MiB",
    remote: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Remote tier to measure.", show_default=False),
    ] = None,
    transfer: Annotated[
        bool,
        typer.Option(
            "--transfer",
            help="Instead: how fast a GPU's ways of moving KV are, for the planner; saved as"
            " transfer.json.",
        ),
    ] = False,
    device: Annotated[int, typer.Option(help="Number of the GPU (--transfer).")] = 0,
    repeat: Annotated[int, typer.Option(help="Repeats per figure.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the probe file.")] = Path("runs"),
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write JSON; - for stdout.", show_default=False),
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
    """Measures memory copies, the disk at several sizes and depths with its sync, and a remote;
    saves the figures as probe.json. A call that fails is a failed probe: exit code 1, no file."""
    if transfer:
        from lmcache_cli.probe.transfer import run_probe_transfer

        raise typer.Exit(run_probe_transfer(device, repeat, out / "transfer.json", json, quiet))
    from lmcache_cli.probe.report import run_probe
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
        )
    )
