"""What can go wrong beneath a running vLLM: no request may fail or change.

Prints one JSON object with what came of each scenario. Arguments: model folder, scratch folder.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import Ask, Outcome, drive, engine, mixed

Options = dict[str, Any]
Result = dict[str, Any]


def main() -> None:
    model, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    asks = mixed(30, aborts=False)
    with engine(model, None) as (llm, _):
        expected = drive(llm, asks, 4)
    found = {name: run(model, scratch, asks) for name, run in SCENARIOS.items()}
    for outcome in found.values():
        parts = outcome.pop("parts", [])
        outcome["same"] = same(expected, parts) if parts else None
        outcome["failed"] = [number for part in parts for number in part.failed]
    print(json.dumps(found))


def same(expected: Outcome, parts: list[Outcome]) -> int:
    """Requests with the tokens that vLLM alone generates; ``parts`` follow each other."""
    got: dict[int, list[int]] = {}
    for part in parts:
        shift = len(got)
        got |= {shift + number: tokens for number, tokens in part.tokens.items()}
    return sum(got.get(number) == tokens for number, tokens in expected.tokens.items())


def lost(load: str, model: Path, asks: list[Ask]) -> Result:
    """A tier can't read what it took."""
    options: Options = {
        "chunk_tokens": 32,
        "cpu_size": "2MiB",
        "remote": "tests.cache_core.adapters.failing_tier:Forgetful",
    }
    with engine(model, options | {"load": load}) as (llm, counts):
        return {"parts": [drive(llm, asks, 4)], "counts": counts}


def server(model: Path, scratch: Path, asks: list[Ask]) -> Result:
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
            return {"parts": [before, after], "counts": counts, "remote": from_remote}
    finally:
        redis.kill()


def full(model: Path, scratch: Path, asks: list[Ask]) -> Result:
    """The disk takes no more."""
    folder = scratch / "full"
    options: Options = {
        "chunk_tokens": 32,
        "cpu_size": "2MiB",
        "disk_size": "1GiB",
        "disk_path": str(folder),
    }
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with engine(model, options) as (llm, counts):
        before = drive(llm, asks[:10], 4)
        written = counts.get("write_bytes:disk", 0)
        # No file may grow any more: what a full disk says, without filling one.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        after = drive(llm, asks[10:], 4)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return {"parts": [before, after], "counts": counts, "written": written}


def restart(
    model: Path,
    scratch: Path,
    asks: list[Ask],
    between: Callable[[Path], None] | None = None,
) -> Result:
    """What an engine left on disk is there for the next one."""
    folder = scratch / "disk"
    shutil.rmtree(folder, ignore_errors=True)
    options: Options = {
        "chunk_tokens": 32,
        "cpu_size": "2MiB",
        "disk_size": "200MiB",
        "disk_path": str(folder),
    }
    with engine(model, options) as (llm, _):
        drive(llm, asks, 4)
    if between is not None:
        between(folder)
    with engine(model, options) as (llm, counts):
        return {"parts": [drive(llm, asks, 4)], "counts": counts}


def damage(model: Path, scratch: Path, asks: list[Ask]) -> Result:
    """Bytes of the disk tier's files are flipped between two engines."""

    def flip(folder: Path) -> None:
        for file in (folder / "rank-0").iterdir():
            size = file.stat().st_size
            if file.is_file() and size > 1 << 20:
                with file.open("r+b") as handle:
                    for place in range(1 << 19, size, 300_000):
                        handle.seek(place)
                        byte = handle.read(1)
                        handle.seek(place)
                        handle.write(bytes([byte[0] ^ 0xFF]))

    return restart(model, scratch, asks, flip)


def salt(model: Path, scratch: Path, asks: list[Ask]) -> Result:
    """Tenants share nothing."""
    long = asks[0].prompt
    with engine(model, {"chunk_tokens": 32}) as (llm, counts):
        hits = []
        for tenant in ("a", "a", "b", None, None):
            before = counts.get("hit_tokens:cpu", 0.0)
            drive(llm, [Ask(long, 4, salt=tenant)])
            hits.append(counts.get("hit_tokens:cpu", 0.0) - before)
        return {"hits": hits, "tokens": len(long)}


def reset(model: Path, scratch: Path, asks: list[Ask]) -> Result:
    """The cache is emptied."""
    with engine(model, {"chunk_tokens": 32}) as (llm, counts):
        hits = []
        for clear in (False, False, True, False):
            if clear:
                llm.llm_engine.reset_prefix_cache(reset_connector=True)
            before = counts.get("hit_tokens:cpu", 0.0)
            drive(llm, asks[:1])
            hits.append(counts.get("hit_tokens:cpu", 0.0) - before)
        return {"hits": hits}


def wait_for(try_it: Callable[[], None]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return try_it()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


SCENARIOS: dict[str, Callable[[Path, Path, list[Ask]], Result]] = {
    "lost, sync": lambda model, _, asks: lost("sync", model, asks),
    "lost, async": lambda model, _, asks: lost("async", model, asks),
    "server": server,
    "full": full,
    "damage": damage,
    "restart": restart,
    "salt": salt,
    "reset": reset,
}

if __name__ == "__main__":
    main()
