"""Declares ``lmcache probe``: what can this machine's tiers do?"""

from __future__ import annotations

import typer

from lmcache_cli.options.flags import Config, Json, Quiet, flattened
from lmcache_cli.options.probe import ProbeFlags

EXAMPLES = (
    "Examples:  lmcache probe --disk-path /mnt/nvme --remote redis://127.0.0.1:6379"
    "   |   lmcache probe --model embedded"
)


@flattened
def probe(
    flags: ProbeFlags, json: Json = None, config: Config = None, quiet: Quiet = False
) -> None:
    """Measures memory copies, the disk at several sizes and depths with its sync, a remote, and
    what an engine's prefill, decode steps and loads take; saves the figures as probe.json, which
    tune and the simulated engine read. A call that fails is a failed probe: exit code 1, no file.
    """
    if flags.transfer:
        from lmcache_cli.probe.transfer import gpu_number, run_probe_transfer

        file = flags.out / "transfer.json"
        number = gpu_number(flags.device)
        raise typer.Exit(run_probe_transfer(number, flags.repeat, file, json, quiet))
    from lmcache_cli.probe.report import run_probe

    raise typer.Exit(run_probe(flags, json, quiet))
