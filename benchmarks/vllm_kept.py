"""What the vLLM connector keeps of windows and recurrent states, on requests of public traces.

    LMCACHE_TRACES=FOLDER python -m benchmarks.vllm_kept [--requests 3000] [--window 1024]

No engine and no bytes: prompts are looked up by what each group of layers needs, and what
:class:`~cache_core.adapters.vllm.scheduler.kept.Kept` says to be worth it is kept for good, beside
keeping all. A trace names chunks of prompts, so ends of answers are seen where a next prompt goes
on behind them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from cache_core.adapters.vllm.scheduler.kept import Kept
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.layout import Group, reach
from workloads.traces.reader import TraceRequest
from workloads.traces.trace import open_trace

SOURCES = {"chat": "mooncake/conversation_trace.jsonl", "coding agents": "weka"}


def traces(
    folder: Path, most: int, sources: Iterable[str] = SOURCES
) -> Iterator[tuple[str, list[TraceRequest]]]:
    """Yields each source's first requests, in the order of arrival."""
    for title in sources:
        name = SOURCES[title]
        place = folder / name
        found: list[TraceRequest] = []
        for number, path in enumerate(sorted(place.glob("*.json")) if place.is_dir() else [place]):
            for request in islice(open_trace(path).requests(), most):
                if request.chunk_tokens:  # sessions of files of their own share nothing
                    found.append(replace(request, chunks=request.chunks + (number << 56)))
        found.sort(key=lambda request: request.arrival_s)
        yield title, found[:most]


def served(requests: Iterable[TraceRequest], groups: Sequence[Group], everything: bool) -> Any:
    """Returns tokens asked for and hit, and chunks held of all groups and of those that don't keep
    everything."""
    held: set[bytes] = set()
    parts = asked = hit = 0
    kept: Kept | None = None
    for request in requests:
        size = request.chunk_tokens
        kept = kept or Kept(size, whole=True)
        keys = [int(chunk).to_bytes(32, "big", signed=True)[::-1] for chunk in request.chunks]
        # The last token is always computed.
        keys = keys[: (request.input_tokens - 1) // size]
        ask = SimpleNamespace(request_id=request.id, num_prompt_tokens=request.input_tokens)
        state = RequestState(ask, cast(Any, SimpleNamespace(chunk_tokens=size)), keys=keys)
        whole = next(
            (n for n, key in enumerate(keys) if groups[0].name(key) not in held), len(keys)
        )
        chunks = reach(keys, groups, size, held.__contains__)
        state.branches = kept.branches(state, keys, whole, chunks)
        asked, hit = asked + request.input_tokens, hit + chunks * size
        held.update(groups[0].name(key) for key in keys[chunks:])
        for group in groups[1:]:
            worth = range(len(keys)) if everything else kept.worth(state, group)
            for chunk in worth:
                name = group.name(keys[chunk]) if chunks <= chunk < len(keys) else None
                if name is not None and name not in held:
                    held.add(name)
                    parts += 1
    return asked, hit, len(held), parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--window", type=int, default=1024, help="tokens")
    args = parser.parse_args()
    folder = os.environ.get("LMCACHE_TRACES")
    if not folder:
        parser.error("LMCACHE_TRACES names no folder of public traces")
    table = Table(title=f"chunks held for each 1,000 tokens hit; a window of {args.window:,}")
    for name in ("trace", "layers", "requests", "chunk", "hit: worth", "hit: all"):
        table.add_column(name, justify="right")
    for name in ("windows, states: worth", "all", "all groups: worth", "all"):
        table.add_column(name, justify="right")
    for title, requests in traces(Path(folder), args.requests):
        block = requests[0].chunk_tokens
        for layers, rest in (
            ("full + window", Group(1, ("b",), block, 1, "window", args.window)),
            ("full + state", Group(1, ("b",), block, 1, "state")),
        ):
            groups = (Group(0, ("a",), block, 1), rest)
            worth, everything = (served(requests, groups, how) for how in (False, True))
            shares = [f"{hit / asked:.1%}" for asked, hit, _, _ in (worth, everything)]
            each = [
                f"{1000 * found[place] / max(1, found[1]):.2f}"
                for place in (3, 2)
                for found in (worth, everything)
            ]
            table.add_row(title, layers, f"{len(requests):,}", str(block), *shares, *each)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
