"""Hit rates of every policy, with the bounds beside: Belady knows the future, Unbounded keeps all.

python benchmarks/policies.py [--shares 1,5,10,25,50] [--admission] [--match TITLE]

Requests are generated. Where LMCACHE_TRACES names a folder with `mooncake/` or `ragpulse/` traces
in it, those are read too. A share is a capacity in per cent of the distinct chunks. A hit is a
chunk of the longest leading run that is held when the request comes; the rate is over all chunks,
from an empty cache on. `--admission` adds what a tier writes (LRU).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.ledger import Ledger
from cache_core.policies import POLICIES, Admission, BytesPerDay, PolicyMaker, SecondTouch, belady
from lmcache_cli.engines.simulated import encode_words
from workloads import GeneratedCorpus, Settings, generate

_CHUNK_TOKENS = 64
_PARTS = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")
_DAY_S = 86_400.0

Prompts = list[list[bytes]]


def hasher(salt: str) -> ChunkHasher:
    layout = KVLayout(1, 1, 1, "int8", _CHUNK_TOKENS)
    return ChunkHasher(Namespace(layout, "policies", salt=salt))


def generated() -> Iterator[tuple[str, Prompts]]:
    """Three workloads of the bench, larger than its defaults. Words stand for tokens."""
    settings = {
        "rag": Settings(requests=1500, corpus_passages=400),
        "chat": Settings(sessions=60, rounds=12),
        "agent": Settings(sessions=40, rounds=16),
    }
    for name, knobs in settings.items():
        requests = generate(name, knobs, GeneratedCorpus(0), encode_words)
        hash_keys = hasher(name).keys
        yield f"generated: {name}", [hash_keys(r.token_ids).prefix for r in requests]


def mooncake(folder: Path) -> Iterator[tuple[str, Prompts]]:
    """Ids of chained blocks of 512 tokens are keys already."""
    for path in sorted(folder.glob("*.jsonl")):
        lines = map(json.loads, path.read_text().splitlines())
        yield (
            f"mooncake: {path.stem}",
            [[i.to_bytes(32, "little") for i in line["hash_ids"]] for line in lines],
        )


def ragpulse(folder: Path) -> Iterator[tuple[str, Prompts]]:
    """Texts are ids with a length: tokens are made up from the id and the place in its text."""
    lengths: dict[int, int] = {}
    trace: list[dict[str, dict[str, list[int]]]] = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in filter(str.strip, path.read_text().splitlines()):
            row = json.loads(line)
            if "hash_ids" in row:
                trace.append(row)
            else:
                [name] = (name for name in row if name.endswith("_id"))
                lengths[row[name]] = row["token_length"]
    # Texts have at most 512 tokens or so: a stride keeps their made-up tokens apart.
    stride = max(lengths.values()) + 1
    hash_keys = hasher("ragpulse").keys
    prompts = []
    for row in trace:
        texts = [i for part in _PARTS for i in row["hash_ids"][part] if lengths.get(i)]
        tokens = [np.arange(lengths[i], dtype=np.int64) + i * stride for i in texts]
        prompts.append(hash_keys(np.concatenate(tokens).astype(np.int32)).prefix if tokens else [])
    yield "ragpulse", prompts


def sources(traces: str | None) -> Iterator[tuple[str, Prompts]]:
    """Title and prompts of each source, in the order of printing."""
    yield from generated()
    for name, read in (("mooncake", mooncake), ("ragpulse", ragpulse)):
        if traces and (Path(traces) / name).is_dir():
            yield from read(Path(traces) / name)


def replay(
    prompts: Prompts,
    capacity: int,
    policy: PolicyMaker,
    admission: Admission | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[float, int]:
    """Hit rate in per cent, and chunks written."""
    ledger = Ledger([capacity], policy, admission=[admission])
    hits = total = written = 0
    for keys in prompts:
        tick()
        hits += len(ledger.lookup(keys))
        total += len(keys)
        plan = ledger.prepare_store(keys)
        written += sum(move.target == 0 for move in plan.moves)
        ledger.complete_store(plan.moves, stored=True)
    ledger.check()
    return 100 * hits / max(total, 1), written


def policies(title: str, prompts: Prompts, shares: Sequence[float]) -> Table:
    """One row per policy, one column per capacity."""
    capacities = _capacities(prompts, shares)
    table = Table(title=f"{title}: hit rate, n={len(prompts)} requests")
    table.add_column("policy")
    for share, capacity in zip(shares, capacities, strict=True):
        table.add_column(f"{share:g} %\n{capacity} chunks", justify="right")
    makers = {name: maker for name, maker in POLICIES.items() if name != "unbounded"}
    makers |= {"belady": belady(prompts), "unbounded": POLICIES["unbounded"]}
    for name, maker in makers.items():
        rates = [replay(prompts, capacity, maker)[0] for capacity in capacities]
        table.add_row(name, *(f"{rate:.1f} %" for rate in rates))
    return table


class RequestClock:
    """A day long, however many requests there are."""

    def __init__(self, requests: int) -> None:
        self._step = _DAY_S / requests
        self._now = 0.0

    def tick(self) -> None:
        self._now += self._step

    def __call__(self) -> float:
        return self._now


def admissions(title: str, prompts: Prompts, shares: Sequence[float]) -> Table:
    """What each admission hits and writes; the budget is a quarter of what is written without."""
    capacities = _capacities(prompts, shares)
    table = Table(title=f"{title}: hit rate and chunks written per chunk asked for, LRU")
    table.add_column("admission")
    for share, capacity in zip(shares, capacities, strict=True):
        table.add_column(f"{share:g} %\n{capacity} chunks", justify="right")
    rows: dict[str, list[str]] = {"none": [], "second-touch": [], "bytes-per-day": []}
    total = sum(map(len, prompts))
    for capacity in capacities:
        clock = RequestClock(len(prompts))
        none = replay(prompts, capacity, POLICIES["lru"])
        budget = BytesPerDay(max(none[1] / 4, 1), 1, clock)
        outcomes = {
            "none": none,
            "second-touch": replay(prompts, capacity, POLICIES["lru"], SecondTouch()),
            "bytes-per-day": replay(prompts, capacity, POLICIES["lru"], budget, clock.tick),
        }
        for name, (rate, written) in outcomes.items():
            rows[name].append(f"{rate:.1f} %  {written / max(total, 1):.2f}")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _capacities(prompts: Prompts, shares: Sequence[float]) -> list[int]:
    distinct = len({key for keys in prompts for key in keys})
    return [max(1, round(distinct * share / 100)) for share in shares]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", default="1,5,10,25,50")
    parser.add_argument("--admission", action="store_true")
    parser.add_argument("--match", default="", help="only sources with this in their title")
    args = parser.parse_args()
    shares = [float(text) for text in args.shares.split(",")]
    console = Console()
    for title, prompts in sources(os.environ.get("LMCACHE_TRACES")):
        if args.match not in title:
            continue
        console.print(policies(title, prompts, shares))
        if args.admission:
            console.print(admissions(title, prompts, shares))


if __name__ == "__main__":
    main()
