"""TTFT of a hit in vLLM: its own prefix cache against our cpu and disk tiers, same tokens.

Each row runs vLLM in a process of its own, without a server, one request at a time:

    python benchmarks/vllm_hits.py [--model FOLDER] [--context-tokens 4000,8000] [--repeats 9]

Without --model: that of models/random_llama.py. The limits are 1.3 times vLLM's own hit,
and for disk the reading of the bytes more, at the bandwidth that a probe of the same folder finds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from models.random_llama import SETTINGS, connector, random_llama
from rich.console import Console
from rich.table import Table

BLOCKS = (128, 32)
ROWS = ("own", "cpu", "disk")
CHUNK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--context-tokens", default="4000,8000")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if find_spec("vllm") is None:
        print("vLLM is not installed: make vllm")
        return
    lengths = [int(text) for text in args.context_tokens.split(",")]
    if args.row:
        row, block, folder = args.row.split(":", 2)
        print(json.dumps(serve(args.model, row, int(block), Path(folder), lengths, args.repeats)))
        return
    table = Table("block", "row", *(f"{n} tokens: cold, hit (least-most) ms" for n in lengths))
    with TemporaryDirectory(prefix="lmcache-vllm-", dir=".") as scratch:
        model = args.model or random_llama(Path(scratch) / "model")
        bandwidth = probe(Path(scratch))
        token_bytes = bytes_per_token(model)
        for block in BLOCKS:
            for row in ROWS:
                found = in_process(model, f"{row}:{block}:{scratch}/disk-{block}", args)
                cells = [
                    f"{cold:.0f}, {median(hits):.1f} ({min(hits):.1f}-{max(hits):.1f})"
                    for cold, hits in found
                ]
                table.add_row(str(block), row, *cells)
                if row == "own":
                    own = [median(hits) for _, hits in found]
            reading = [1e3 * n * token_bytes / bandwidth for n in lengths]
            table.add_row("", "limit cpu", *(f"{1.3 * o:.1f}" for o in own))
            limits = [1.3 * o + r for o, r in zip(own, reading, strict=True)]
            table.add_row("", "limit disk", *(f"{limit:.1f}" for limit in limits))
    Console().print(table)
    print(f"disk probed at {bandwidth / 1e9:.2f} GB/s, {token_bytes} bytes of KV a token")


def in_process(model: str, row: str, args: argparse.Namespace) -> list[tuple[float, list[float]]]:
    command = [sys.executable, __file__, "--row", row, "--model", model]
    command += ["--context-tokens", args.context_tokens, "--repeats", str(args.repeats)]
    done = subprocess.run(
        command, env=SETTINGS | os.environ, stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[tuple[float, list[float]]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def serve(
    model: str, row: str, block: int, folder: Path, lengths: list[int], repeats: int
) -> list[tuple[float, list[float]]]:
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = {"enable_prefix_caching": row == "own", "block_size": block}
    if row != "own":
        options: dict[str, Any] = {"chunk_tokens": CHUNK, "cpu_size": "1GiB"}
        if row == "disk":
            options |= {"cpu_size": 0, "disk_size": "1GiB", "disk_path": str(folder)}
        settings["kv_transfer_config"] = connector(**options)
    llm = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=8320, **settings)
    rng = random.Random(1)
    first = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)

    def ttft(prompt: list[int]) -> float:
        began = time.perf_counter()
        llm.generate([{"prompt_token_ids": prompt}], first, use_tqdm=False)
        return 1e3 * (time.perf_counter() - began)

    found = []
    ttft([3] * 300)
    for length in lengths:
        document = [rng.randrange(3, 2000) for _ in range(length)]
        cold = ttft(document)
        hits = []
        for _ in range(repeats):
            # What is measured is not what the last request still has to store.
            time.sleep(0.3)
            hits.append(ttft([*document, *(rng.randrange(3, 2000) for _ in range(64))]))
        found.append((cold, hits))
    return found


def bytes_per_token(model: str) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * dim * 4)


def probe(folder: Path) -> float:
    """Bytes per second of O_DIRECT reads of 256 KiB, eight at a time."""
    from lmcache_cli.probe.media import probe_disk

    figures = probe_disk(folder, 256 << 20, 5, lambda step: None).figures
    wanted = ("read", 256 << 10, 8)
    return next(
        f.rate.median for f in figures if (f.mode, f.size_bytes, f.depth) == wanted and f.direct
    )


if __name__ == "__main__":
    main()
