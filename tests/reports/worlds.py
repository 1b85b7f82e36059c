"""Runs and recommendations with everything in them that a page can show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reports.run_file import write_run
from reports.sample import Sample
from reports.stored import StoredRun, StoredTune

Make = Callable[..., Sample]
HOSTILE = """<script>alert("x")</script>'"><img src=http://evil.example/a.png>&amp;"""


def swept_run(folder: Path, name: str = "bench-sweep", evil: str = "", **meta: Any) -> StoredRun:
    """Reuse off, and three sizes by three chunk lengths over two tiers; noisy times. ``evil`` is
    put wherever a file may say what it likes."""
    rng = np.random.default_rng(7)
    cells: list[dict[str, Any]] = [_cell("off", None, {}, evil)]
    for size in (2**28, 2**29, 2**30):
        cells += [
            _cell("prefix", chunk, {"cpu": size, "disk": 2**33}, evil) for chunk in (16, 64, 256)
        ]
    samples = []
    for index, cell in enumerate(cells):
        share = min(0.9, 0.2 * index) if cell["tiers"] else 0.0
        for repeat in range(2):
            for number in range(12):
                hit = int(2000 * share) if number > 2 else 0
                ttft = (0.05 + 1e-3 * (2000 - hit)) * rng.lognormal(0, 0.1)
                at = 10.0 * (repeat * 12 + number)
                samples.append(
                    Sample(
                        cell=index,
                        repeat=repeat,
                        request_id=f"r{number}{evil}",
                        session="s",
                        workload="rag",
                        prompt_tokens=2000,
                        output_tokens=2,
                        scheduled_s=at,
                        sent_s=at,
                        first_token_s=at + ttft,
                        finished_s=at + ttft + 0.1,
                        token_s=(at + ttft, at + ttft + 0.1),
                        hit_tokens={"cpu": hit // 2, "disk": hit - hit // 2} if index else {},
                    )
                )
    described = {
        "started": "2026-01-02T03:04:05+00:00",
        "complete": True,
        "command": ["bench", "rag", evil],
        "config": {"seed": 7, "corpus": evil},
        "machine": {"cpu": f"Zen {evil}", "memory_bytes": 2**34},
        "versions": {"numpy": "2"},
        "engine": {"engine": "simulated"},
        "cells": cells,
        "warnings": [f"slow disk {evil}"] if evil else [],
    }
    path = folder / f"{name}.parquet"
    write_run(path, samples, described | meta)
    return StoredRun.read(path)


def _cell(reuse: str, chunk: int | None, tiers: dict[str, int], evil: str) -> dict[str, Any]:
    return {
        "workload": f"rag{evil}",
        "engine": "simulated",
        "model": f"tiny{evil}",
        "reuse": reuse,
        "chunk_tokens": chunk,
        "tiers": tiers,
    }


def tuned(evil: str = "") -> StoredTune:
    """Three chunk lengths by two kinds of curve, and a front of four stacks."""
    sizes = [2**30 * 2**power for power in range(8)]
    curves = [
        {
            "chunk_tokens": chunk,
            "kind": kind,
            "policy": "lru",
            "sampled": 1.0,
            "points": [
                {"capacity_bytes": size, "hit_rate": (0.1 + lift) * (1 - 0.6**power)}
                for power, size in enumerate(sizes)
            ],
        }
        for chunk in (64, 128, 256)
        for kind, lift in (("prefix", 0.3), ("any_position", 0.4))
    ]
    front = [
        {
            "tiers": {"cpu": size, "disk": 4 * size} if size else {},
            "chunk_tokens": 64,
            "hit_rate": 0.1 * number,
            "hit_tokens": {},
            "ttft_ms": {"p50": 900 - 200 * number, "p90": 1500 - 200 * number, "p99": 2000},
            "cost_per_hour": 0.02 * number,
            "disk_writes_per_day": 0,
        }
        for number, size in enumerate((0, 2**33, 2**34, 2**35))
    ]
    best = front[2]
    document = {
        "schema": "lmcache.tune/1",
        "source": {
            "requests": 1000,
            "tokens": 5_000_000,
            "unique_chunks": 900,
            "chunk_tokens": 64,
            "ceiling_hit_rate": 0.5,
        },
        "cost": {"notes": [f"a data sheet {evil}"]},
        "curves": curves,
        "recommendation": {
            "chunk_tokens": 64,
            "tiers": best["tiers"],
            "policy": f"lru{evil}",
            "placement": "write_on_insertion",
            "predicted": best,
            "verdicts": [f"disk: loading beats computing {evil}"],
            "marginals": [{"text": f"another 8 GiB of cpu changes little {evil}"}],
            "snippets": {"this connector in vLLM": f"--kv-transfer-config '{{}}' {evil}"},
        },
        "front": front,
        "validation": None,
    }
    return StoredTune("tuned", document)
