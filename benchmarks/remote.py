"""The remote tier: bytes per second in and out, and what a look-up costs.

Starts a redis-server on the loopback interface if it is given no URL. Where the package ``redis``
is installed, its client takes turns with ours:

    python benchmarks/remote.py [--url redis://host:port ...] [--mib 256] [--repeats 5]

``--evicting`` instead: on a Redis with ``maxmemory-policy allkeys-lru`` and a quarter of the room
that its chunks would need, how many are promised and how many are there:

    python benchmarks/remote.py --evicting [--mib 64] [--repeats 5]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from cache_core import _native
from cache_core.cache import TieredCache
from cache_core.layout import KVLayout
from cache_core.tiers.remote.url import open_remote, redacted
from cache_core.tiers.tier import TierError
from cache_core.transfer.chunks import FlatBuffers

SIZES = (1 << 20, 3 << 20, 8 << 20)
Rates = dict[str, list[float]]


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[str]:
    """The URL of a server without persistence. Raises ``FileNotFoundError`` if there is none."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise FileNotFoundError("redis-server is not installed (apt-get install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly"]
    process = subprocess.Popen([*command, "no", *options], stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def other_client(url: str, keys: list[bytes], data: bytes) -> Callable[[Rates], None] | None:
    """The same values through the package ``redis``: one connection, 8 MiB a pipeline."""
    try:
        import redis
    except ImportError:
        return None
    client = redis.Redis.from_url(url, socket_timeout=None)
    names = [f"other:{key.hex()}" for key in keys]
    nbytes = len(keys) * len(data)

    step = max(1, (8 << 20) // len(data))
    groups = [names[i : i + step] for i in range(0, len(names), step)]

    def write() -> None:
        for group in groups:
            pipeline = client.pipeline(transaction=False)
            for name in group:
                pipeline.set(name, data)
            pipeline.execute()

    def read() -> None:
        for group in groups:
            pipeline = client.pipeline(transaction=False)
            for name in group:
                pipeline.get(name)
            assert all(len(value) == len(data) for value in pipeline.execute())

    def run(rates: Rates) -> None:
        rates.setdefault("redis-py write", []).append(nbytes / seconds(write) / 1e9)
        rates.setdefault("redis-py read", []).append(nbytes / seconds(read) / 1e9)
        client.unlink(*names)

    return run


def measure(url: str, size: int, mib: int, repeats: int) -> Rates:
    """GB/s, and microseconds of a look-up of all keys."""
    count = max(1, (mib << 20) // size)
    slab = _native.Slab(count * size)
    view = slab.view()
    view[:] = np.random.default_rng(0).integers(0, 256, view.size, dtype=np.uint8)
    steps = np.arange(count, dtype=np.uint64) * np.uint64(size)
    place = FlatBuffers(np.uint64(slab.address) + steps, size)
    keys = [os.urandom(32) for _ in range(count)]
    other = other_client(url, keys, view[:size].tobytes()) if url.startswith("redis") else None
    tier = open_remote(url, size)
    tier.ping()
    rates: Rates = {}
    for repeat in range(repeats + 1):  # the first one is warm-up
        took = [seconds(lambda: all_true(tier.write(keys, place)))]
        took.append(seconds(lambda: all_true(tier.contains(keys))))
        took.append(seconds(lambda: all_true(tier.read(keys, place))))
        tier.discard(keys)
        if repeat:
            rates.setdefault("write", []).append(view.size / took[0] / 1e9)
            rates.setdefault("read", []).append(view.size / took[2] / 1e9)
            rates.setdefault(f"look up {count} chunks", []).append(took[1] * 1e6)
            if other is not None:
                other(rates)
    tier.close()
    return rates


def promises(url: str, size: int, mib: int) -> dict[str, tuple[int, int]]:
    """Chunks promised and delivered: to the process that stored them, a minute later, and to one
    that has just started. Prompts of eight chunks, the oldest first."""
    tokens, count = 256, 4 * (mib << 20) // size // 8
    layout = KVLayout(1, 1, size // tokens // 2, "int8", tokens)
    slab = _native.Slab(8 * size)
    slab.view()[:] = np.random.default_rng(0).integers(0, 256, 8 * size, dtype=np.uint8)
    place = FlatBuffers(
        np.uint64(slab.address) + np.arange(8, dtype=np.uint64) * np.uint64(size), size
    )
    prompts = [[os.urandom(32) for _ in range(8)] for _ in range(count)]
    later = [0.0]

    def opened() -> TieredCache:
        tier = open_remote(url, layout.chunk_bytes)
        return TieredCache(layout, [tier], clock=lambda: time.monotonic() + later[0])

    def serve(cache: TieredCache) -> tuple[int, int]:
        promised = delivered = 0
        for keys in prompts:
            hit = cache.acquire(keys)
            promised += len(hit)
            delivered += cache.load(hit, place.pick(list(range(len(hit))))).chunks
        return promised, delivered

    old = opened()
    for keys in prompts:
        old.store(keys, place).result()
    new = opened()
    found = {"just started": serve(new)}
    later[0] = 60.0
    found = {"stored them": serve(old)} | found
    old.close()
    new.close()
    return found


def evicting(mib: int, repeats: int) -> Table:
    table = Table(title=f"Redis of {mib} MiB that evicts (allkeys-lru), n={repeats}, median")
    for name in ("chunk", "asked by the process that", "promised", "delivered", "share"):
        table.add_column(name, justify="left" if name.startswith("asked") else "right")
    room = ("--maxmemory", f"{mib}mb", "--maxmemory-policy", "allkeys-lru")
    for size in SIZES:
        rounds = []
        for _ in range(repeats):
            with redis_server(*room) as url:
                rounds.append(promises(url, size, mib))
        for who in rounds[0]:
            promised = median(found[who][0] for found in rounds)
            delivered = median(found[who][1] for found in rounds)
            share = f"{delivered / promised:.2f}" if promised else "-"
            row = (f"{size >> 20} MiB", who, f"{promised:.0f}", f"{delivered:.0f}", share)
            table.add_row(*row)
    return table


def all_true(answers: Sequence[int]) -> None:
    assert all(answers), "the server did not keep what it was given"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", action="append", default=[])
    parser.add_argument("--evicting", action="store_true")
    parser.add_argument("--mib", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    mib = args.mib or (64 if args.evicting else 256)
    with contextlib.ExitStack() as stack:
        try:
            if args.evicting:
                Console().print(evicting(mib, args.repeats))
                return
            urls = args.url or [stack.enter_context(redis_server())]
            for url in urls:
                table = Table(title=f"remote tier on {redacted(url)}, n={args.repeats}")
                for name in ("chunk", "call", "median", "min", "max"):
                    table.add_column(name, justify="left" if name == "call" else "right")
                for size in SIZES:
                    for call, values in measure(url, size, mib, args.repeats).items():
                        unit = "us" if call.startswith("look") else "GB/s"
                        figures = (median(values), min(values), max(values))
                        row = (f"{x:.0f} us" if unit == "us" else f"{x:.2f} GB/s" for x in figures)
                        table.add_row(f"{size >> 20} MiB", call, *row)
                Console().print(table)
        except (FileNotFoundError, TierError) as error:
            print(f"remote: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
