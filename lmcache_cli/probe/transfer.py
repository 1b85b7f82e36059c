"""Measures moves between a GPU and pinned host memory: what each way costs, for the planner."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cache_core import _native
from cache_core.transfer.cuda import CudaMissing, PinnedMemory, cuda_devices, cuda_module
from cache_core.transfer.gpu import CopyStreams
from cache_core.transfer.planner import (
    COPY_COSTS_SCHEMA,
    CopyCost,
    Direction,
    Planner,
    Way,
    save_costs,
)
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.output import columns, write_output
from lmcache_cli.probe.media import timed_figure
from reports.units import bytes_text

if TYPE_CHECKING:
    from cache_core import _cuda

# Moves of these many runs of these many bytes, as far as they fit. Lengths are close together where
# copy engines are said to come into their own.
RUN_BYTES = tuple(kib << 10 for kib in (2, 4, 8, 16, 24, 28, 32, 64, 128, 512))
RUNS = (4, 64, 1024, 8192)
MOST_BYTES = 256 << 20
DIRECTIONS: tuple[Direction, ...] = ("d2h", "h2d")
WAYS: tuple[Way, ...] = ("dma", "kernel")


def gpu_number(device: str) -> int:
    """Returns the number of the GPU ``cuda`` or ``cuda:N``; 0 where no GPU is named. Raises
    ``UserError``."""
    _, _, number = device.partition(":")
    if device == "cpu" or not number:
        return 0
    if not number.isdigit():
        raise UserError(f"--device: {device!r} names no GPU; write cuda:1 for the second")
    return int(number)


@dataclass(frozen=True, slots=True)
class Moved:
    """One measured move: ``runs`` scattered runs of ``run_bytes`` each, in ``seconds`` (median of
    the repeats)."""

    direction: Direction
    way: Way
    runs: int
    run_bytes: int
    seconds: float


class Bench:
    """The memory to move between: KV on one GPU and as much pinned memory, with slots of one run
    each, in mixed order."""

    def __init__(self, device: int, nbytes: int = MOST_BYTES) -> None:
        self._cuda = cuda_module()
        self._nbytes = nbytes
        # Every second run is taken, so that no two of them are neighbours.
        self._engine: _cuda.DeviceMemory = self._cuda.DeviceMemory(device, 2 * nbytes)
        self._memory = PinnedMemory(device)
        [self._chunk] = self._memory.addresses(1, nbytes)
        self._ways = CopyStreams(device)  # what is measured is what is used

    def call(self, direction: Direction, way: Way, runs: int, run_bytes: int) -> Callable[[], None]:
        """Returns a function that makes one move and returns when it is done."""
        base = np.array([self._engine.address], dtype=np.uint64)
        count = self._nbytes * 2 // run_bytes
        paged = _native.Paged(
            base, base[:0], 1, run_bytes, run_bytes, run_bytes, 1, run_bytes, count
        )
        order = np.random.default_rng(0).permutation(count // 2)[:runs] * 2
        slots = np.ascontiguousarray(order[None, :], dtype=np.int64)
        chunks = np.array([self._chunk], dtype=np.uint64)
        name = ("gather" if direction == "d2h" else "scatter") + ("_dma" if way == "dma" else "")

        def run() -> None:
            with self._ways.way("out" if direction == "d2h" else "in") as transfer:
                getattr(transfer, name)(paged, slots, chunks, "NHD")

        return run

    def close(self) -> None:
        """Unpins and frees the host memory."""
        self._memory.release()


def measure_moves(bench: Bench, repeats: int) -> list[Moved]:
    """Measures all shapes of moves in both directions and ways; the ways take turns."""
    found = []
    for run_bytes in RUN_BYTES:
        for runs in (runs for runs in RUNS if runs * run_bytes <= MOST_BYTES):
            for direction in DIRECTIONS:
                for way in WAYS:
                    call = bench.call(direction, way, runs, run_bytes)
                    found.append(
                        Moved(direction, way, runs, run_bytes, timed_figure(call, repeats).median)
                    )
    return found


def fitted(moves: list[Moved]) -> Planner:
    """Fits the costs of each way to the moves. Raises ``ValueError`` for too few."""
    return Planner(
        {
            (direction, way): CopyCost.fit(
                [
                    (m.runs, m.run_bytes, m.seconds)
                    for m in moves
                    if (m.direction, m.way) == (direction, way)
                ]
            )
            for direction in DIRECTIONS
            for way in WAYS
        }
    )


def run_probe_transfer(
    device: int, repeats: int, file: Path, json_file: str | None, quiet: bool
) -> int:
    """Measures the GPU's ways, saves their costs under the GPU's name in ``file``, prints them.
    Returns the exit code. Raises ``MissingError`` without kernels, driver or GPU."""
    if repeats < 3:
        raise UserError(f"--repeat: {repeats} repeats have no median; use at least 3")
    try:
        gpus = cuda_devices()
    except CudaMissing as error:
        raise MissingError(f"--transfer needs a GPU: {error}") from error
    if not 0 <= device < len(gpus):
        raise MissingError(f"--transfer: there is no GPU {device}; the last is {len(gpus) - 1}")
    talk = Console(stderr=True, quiet=quiet)
    with BenchProgress(talk, quiet) as progress:
        progress.step("moving KV")
        bench = Bench(device)
        try:
            moves = measure_moves(bench, repeats)
        finally:
            bench.close()
    name = gpus[device]["name"]
    planner = fitted(moves)
    try:
        save_costs(file, name, planner)
    except (OSError, ValueError) as error:
        raise UserError(f"--out: {file} can't be written: {error}; name another folder") from error
    if json_file is not None:
        write_output(json_file, json.dumps(_document(name, planner, moves), indent=2) + "\n")
    if json_file != "-":
        Console().print(_table(name, planner))
    talk.print(f"transfer file: {file}", highlight=False)
    return 0


def _document(name: str, planner: Planner, moves: list[Moved]) -> dict[str, Any]:
    costs = {
        f"{direction} {way}": [asdict(size) for size in cost.sizes]
        for (direction, way), cost in planner.costs.items()
    }
    return {
        "schema": COPY_COSTS_SCHEMA,
        "gpu": name,
        "costs": costs,
        "moves": [asdict(m) for m in moves],
    }


def _table(name: str, planner: Planner) -> Table:
    """Makes a table with a row for each length of runs: the rate of many of them, each way."""
    names = ("direction", "run", "DMA GB/s", "kernel GB/s", "DMA µs a call", "kernel µs")
    table = columns(*names, left=("direction",), title=f"moves of KV: {name}")
    for direction in DIRECTIONS:
        ways = [planner.costs[direction, way].sizes for way in WAYS]
        for sizes in zip(*ways, strict=True):
            rates = [
                f"{size.run_bytes / 1e9 / size.run_s:.1f}" if size.run_s else "-" for size in sizes
            ]
            fixed = [f"{size.fixed_s * 1e6:.1f}" for size in sizes]
            table.add_row(direction, bytes_text(sizes[0].run_bytes), *rates, *fixed)
    return table
