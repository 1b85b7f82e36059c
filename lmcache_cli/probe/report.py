"""Runs the probes, saves the file, prints the tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.measured_costs import PROBE_SCHEMA
from lmcache_cli.engines.shape import check_device, check_model
from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.machine import machine, versions
from lmcache_cli.options.probe import ProbeFlags
from lmcache_cli.output import columns, write_output
from lmcache_cli.probe.media import (
    CopyFigure,
    DiskFigure,
    DiskProbe,
    Figure,
    RemoteProbe,
    probe_disk,
    probe_memory,
    probe_remote,
)
from lmcache_cli.sizes import parse_size

if TYPE_CHECKING:
    from lmcache_cli.probe.engine import EngineProbe


def run_probe(flags: ProbeFlags, json_file: str | None, quiet: bool) -> int:
    """Measures memory, the disk, a remote tier and an engine as the flags say; writes
    ``probe.json``, whole or not at all. Returns the exit code. Raises ``UserError``."""
    repeats, remote = flags.repeat, flags.remote
    disk_bytes = parse_size(flags.disk_size, "--disk-size")
    memory_bytes = parse_size(flags.memory_size, "--memory-size")
    if repeats < 3:
        raise UserError(f"--repeat: {repeats} repeats have no spread; use at least 3")
    if disk_bytes < 64 << 20:
        raise UserError("--disk-size: the probe needs a file of at least 64MiB")
    if flags.model:
        check_device(flags.device)
        check_model(None if flags.model == "embedded" else flags.model)
    elif flags.device != ProbeFlags.device:
        raise UserError("--device: it is the engine's; give --model too (or --transfer)")
    talk = Console(stderr=True, quiet=quiet)
    with BenchProgress(talk, quiet) as progress:
        progress.phase("memory: copying")
        copies = probe_memory(memory_bytes, repeats)
        disk = probe_disk(flags.disk_path, disk_bytes, repeats, progress.phase)
        far = None
        if remote:
            progress.phase("remote")
            far = probe_remote(remote, repeats)
        engine = _probe_engine(flags, progress.phase) if flags.model else None
    document = {
        "schema": PROBE_SCHEMA,
        "machine": machine(),
        "versions": versions(),
        "cpu": [asdict(figure) for figure in copies],
        "disk": asdict(disk),
        "remote": asdict(far) if far else None,
        "engine": asdict(engine) if engine else None,
    }
    text = json.dumps(document, indent=2) + "\n"
    file = flags.out / "probe.json"
    write_output(str(file), text, "--out", parents=True)
    if json_file is not None:
        write_output(json_file, text, parents=True)
    if json_file != "-":
        tables = [_memory_table(copies), *_disk_tables(disk), _remote_table(far)]
        Console().print(Group(*tables, *(engine_tables(engine) if engine else [])))
    talk.print(f"probe file: {file}", highlight=False)
    return 0


def _probe_engine(flags: ProbeFlags, on_step: Callable[[str], None]) -> EngineProbe:
    try:
        from lmcache_cli.probe.engine import probe_model
    except ImportError as error:
        raise MissingError(
            f"--model needs the package {error.name}; run:"
            " pip install 'lmcache-bench[transformers]'"
        ) from error
    return probe_model(flags, on_step)


def _gigabytes(figure: Figure) -> str:
    low, high = figure.low / 1e9, figure.high / 1e9
    return f"{figure.median / 1e9:.2f} ({low:.2f}-{high:.2f})"


def _milliseconds(figure: Figure) -> str:
    return f"{figure.median * 1e3:.2f} ({figure.low * 1e3:.2f}-{figure.high * 1e3:.2f})"


def _memory_table(copies: Sequence[CopyFigure]) -> Table:
    title = "memory: copies of 1 MiB, GB/s, median (min-max)"
    table = columns("threads", "GB/s", title=title)
    for copy in copies:
        table.add_row(str(copy.threads), _gigabytes(copy.rate))
    return table


def _disk_tables(disk: DiskProbe) -> list[Table]:
    tables = []
    for direct in (True, False):
        figures = [f for f in disk.figures if f.direct is direct]
        if not figures:
            continue
        how = "O_DIRECT" if direct else "page cache (cold reads; writes with their sync)"
        title = f"disk {disk.folder}: {how}, GB/s, median (min-max)"
        modes = dict.fromkeys(f.mode for f in figures)
        table = columns("KiB", "depth", *modes, title=title)
        rows: dict[tuple[int, int], list[DiskFigure]] = {}
        for figure in figures:
            rows.setdefault((figure.size_bytes, figure.depth), []).append(figure)
        for (size, depth), row in rows.items():
            table.add_row(str(size >> 10), str(depth), *(_gigabytes(f.rate) for f in row))
        tables.append(table)
    if tables:
        tables[-1].caption = f"4 KiB write and fdatasync: {_milliseconds(disk.fdatasync)} ms"
    return tables


def _remote_table(far: RemoteProbe | None) -> Table | str:
    if far is None:
        return ""
    title = f"remote {far.url}: chunks of 1 MiB, median (min-max)"
    names = ("write GB/s", "read GB/s", f"look-up of {far.count}")
    table = columns(*names, title=title)
    table.add_row(_gigabytes(far.write), _gigabytes(far.read), f"{_milliseconds(far.look_up)} ms")
    return table


def engine_tables(probe: EngineProbe) -> list[Table]:
    """Makes the tables of prefill beside its fit, and of loads by tier beside theirs."""
    cost = probe.prefill
    title = f"prefill of {probe.facts['model']}: ms, median (min-max)"
    prefill = columns("new", "cached", "ms", "fit", "fit - measured", title=title)
    for figure in probe.prefill_figures:
        fitted = cost.seconds(figure.new, figure.cached)
        prefill.add_row(
            str(figure.new),
            str(figure.cached),
            _milliseconds(figure.time),
            f"{1e3 * fitted:.1f}",
            f"{100 * (fitted / figure.time.median - 1):+.1f} %",
        )
    prefill.caption = (
        f"a + b n + c n (m + n/2): a {1e3 * cost.a:.3g} ms, b {1e3 * cost.b:.3g} ms,"
        f" c {1e9 * cost.c:.3g} ns · a decode step {1e3 * probe.decode_s:.3g} ms"
        f" + {1e6 * probe.decode_token_s:.3g} us per token in front"
    )
    title = "loads of a hit: ms, median (min-max)"
    loads = columns("tier", "chunk tokens", "chunks", "ms", "fit", left=("tier",), title=title)
    for load in probe.load_figures:
        loads.add_row(
            load.tier,
            str(load.chunk_tokens),
            str(load.chunks),
            _milliseconds(load.time),
            f"{1e3 * probe.tiers[load.tier].seconds(load.chunks, load.nbytes):.2f}",
        )
    loads.caption = " · ".join(
        f"{name}: {1e3 * tier.call_s:.2g} ms a load + {1e6 * tier.fixed_s:.2g} us a chunk"
        f" + bytes at {tier.bytes_per_s / 1e9:.2f} GB/s"
        for name, tier in probe.tiers.items()
    )
    return [prefill, loads]
