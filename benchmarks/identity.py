"""What it costs the connector to know whose KV it is: keys of tenants and adapters, files, weights.

``before`` is what the connector did until 2026-11-28: a digest of the adapter for each new salt.
All verbs take turns in each round:

    python benchmarks/identity.py [--mib 64] [--repeats 9]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cache_core.adapters.vllm.identity import Adapters, Hashers
from cache_core.adapters.vllm.worker.weights_watch import WeightsWatch
from cache_core.keys import Namespace
from cache_core.layout import KVLayout
from cache_core.weights import FileDigests, adapter_files

SERIAL = count()


def adapter(folder: Path, mib: int) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"lora_alpha": 16}')
    with (folder / "adapter_model.safetensors").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    long_ago = time.time() - 3600
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    time.sleep(2.1)  # what was just written is not remembered
    return folder


def request(lora: Any = None) -> Any:
    return SimpleNamespace(cache_salt=f"salt {next(SERIAL)}", lora_request=lora)


def read_all(folder: Path) -> None:
    for path in adapter_files(folder):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def verbs(scratch: Path, mib: int) -> dict[str, Callable[[], object]]:
    folder = adapter(scratch / "adapter", mib)
    lora = SimpleNamespace(lora_name="a", lora_int_id=1, lora_path=str(folder))
    base = Namespace(KVLayout(32, 8, 128, "bfloat16", 32), "m", extra={"config": "c" * 64})
    hashers = Hashers(base, Adapters(FileDigests(scratch / "shared")))
    hashers.of(request(lora))
    models = {
        layers: torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(layers))
        for layers in (16, 64)
    }
    watches = {len(list(m.parameters())): WeightsWatch(m) for m in models.values()}
    found: dict[str, Callable[[], object]] = {
        "a new salt": lambda: hashers.of(request()),
        f"a new salt with an adapter of {mib} MiB": lambda: hashers.of(request(lora)),
        "the same before: the adapter read": lambda: read_all(folder),
        "another process: its files' digest": lambda: FileDigests(scratch / "shared").of(
            adapter_files(folder), folder
        ),
    }
    return found | {f"a look at {n} parameters": watch.look for n, watch in watches.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cases = verbs(Path(scratch), given.mib)
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(given.repeats):
            for name, call in cases.items():
                began = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - began) * 1e6)
    table = Table("", "median us", "least", "most")
    for name, found in times.items():
        table.add_row(name, *(f"{value:,.0f}" for value in (median(found), min(found), max(found))))
    Console().print(table)


if __name__ == "__main__":
    main()
