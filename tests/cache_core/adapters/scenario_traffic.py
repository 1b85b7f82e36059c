"""Requests that share beginnings, with and without the connector, and with trouble beneath it: the
same tokens, and no request that fails?

What the scheduler may come to is ``benchmarks.vllm_simulation``'s; this is the rest of vLLM. One
engine without the connector serves all comparisons. Prints one JSON object. Arguments: model
folder, scratch folder, JSON object of cases by name, each ``{"settings": vLLM's, "options": the
connector's}``; then what trouble to make: ``server``, ``disk``.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import (
    Ask,
    Outcome,
    count_preempted,
    drive,
    engine,
    mixed,
)

Options = dict[str, Any]
Result = dict[str, Any]

REQUESTS, AT_ONCE = 60, 8
TROUBLED, WRITTEN = 30, 20


def main() -> None:
    model, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    cases: dict[str, dict[str, Any]] = json.loads(sys.argv[3])
    # Answers of more than a block: those that run take blocks until none is left.
    asks = [replace(ask, output=3 * ask.output) for ask in mixed(REQUESTS)]
    steady = mixed(TROUBLED, aborts=False)
    troubles = {"server": server, "disk": disk}
    with engine(model, None) as (llm, _):
        plain = drive(llm, asks, AT_ONCE)
        expected = drive(llm, steady, 4)
    found = {
        name: compare(model, scratch / name, asks, plain, case) for name, case in cases.items()
    }
    for trouble in sys.argv[4:]:
        for name, outcome in troubles[trouble](model, scratch, steady).items():
            parts = outcome.pop("parts")
            outcome["same"] = same(expected, parts)
            outcome["failed"] = [number for part in parts for number in part.failed]
            found[name] = outcome
    print(json.dumps(found))


def compare(
    model: Path, folder: Path, asks: list[Ask], plain: Outcome, case: dict[str, Any]
) -> Result:
    """Traffic in which some requests are aborted, so that not all can be compared."""
    options = case["options"]
    if "disk_size" in options:
        options["disk_path"] = str(folder)
    with engine(model, options, **case["settings"]) as (llm, counts):
        preempted = count_preempted(llm)
        ours = drive(llm, asks, AT_ONCE)
    both = plain.tokens.keys() & ours.tokens.keys()
    return {
        "compared": len(both),
        "different": sorted(n for n in both if plain.tokens[n] != ours.tokens[n]),
        "failed": ours.failed,
        "counts": counts,
        "preempted": len(preempted),
    }


def same(expected: Outcome, parts: list[Outcome]) -> int:
    """Requests with the tokens that vLLM alone generates; ``parts`` follow each other."""
    got: dict[int, list[int]] = {}
    for part in parts:
        shift = len(got)
        got |= {shift + number: tokens for number, tokens in part.tokens.items()}
    return sum(got.get(number) == tokens for number, tokens in expected.tokens.items())


def server(model: Path, scratch: Path, asks: list[Ask]) -> dict[str, Result]:
    """Redis is killed between requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
        url = f"redis://127.0.0.1:{port}?timeout=1"
        options: Options = {"chunk_tokens": 32, "cpu_size": "2MiB", "remote": url}
        with engine(model, options) as (llm, counts):
            before = drive(llm, asks[:15], 4)
            from_remote = counts.get("hit_tokens:remote", 0)
            redis.kill()
            redis.wait()
            after = drive(llm, asks[15:], 4)
            return {"server": {"parts": [before, after], "counts": counts, "remote": from_remote}}
    finally:
        redis.kill()


def disk(model: Path, scratch: Path, asks: list[Ask]) -> dict[str, Result]:
    """Two engines on one folder: the disk takes no more after the first third of the requests; the
    next engine finds what was written, until its bytes are damaged beneath it."""
    folder = scratch / "disk"
    options: Options = {
        "chunk_tokens": 32,
        "cpu_size": "2MiB",
        "disk_size": "200MiB",
        "disk_path": str(folder),
    }
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with engine(model, options) as (llm, counts):
        before = drive(llm, asks[:WRITTEN], 4)
        written = counts.get("write_bytes:disk", 0)
        # No file may grow any more: what a full disk says, without filling one.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        after = drive(llm, asks[WRITTEN:], 4)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        full = {"parts": [before, after], "counts": dict(counts), "written": written}
    with engine(model, options) as (llm, counts):
        again = drive(llm, asks[:WRITTEN], 4)
        first = dict(counts)
        damage(folder / "rank-0")
        rest = drive(llm, asks[WRITTEN:], 4)
        once_more = drive(llm, asks, 4)
        return {
            "full": full,
            "restart": {"parts": [again, rest], "counts": first},
            "damage": {"parts": [once_more], "counts": counts},
        }


def damage(folder: Path) -> None:
    """Flips bytes all over the disk tier's files of chunks."""
    for file in folder.iterdir():
        size = file.stat().st_size
        if file.is_file() and size > 1 << 20:
            with file.open("r+b") as handle:
                for place in range(1 << 19, size, 300_000):
                    handle.seek(place)
                    byte = handle.read(1)
                    handle.seek(place)
                    handle.write(bytes([byte[0] ^ 0xFF]))


def wait_for(try_it: Callable[[], None]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return try_it()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
