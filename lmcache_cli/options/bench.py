"""The flags of ``lmcache bench``, as given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The flags of ``lmcache bench``, as given."""

    workloads: tuple[str, ...] = ("long-context", "rag")
    engine: str = "transformers"
    model: str | None = None
    device: str = "cpu"
    dtype: str = "auto"
    url: str | None = None
    vllm_args: str | None = None
    request_timeout: float = 300.0
    start_timeout: float = 600.0
    reuse: str | None = None
    device_size: str = "0"
    cpu_size: str = "2GiB"
    disk_size: str = "0"
    disk_path: Path | None = None
    remote: str | None = None
    admission: str = "none"
    codec: str = "none"
    disk_writes_per_day: str | None = None
    cache_name: str | None = None
    chunk_tokens: str = "64"
    context_tokens: str = "2000"
    policy: str = "lru"
    placement: str = "write_on_insertion"
    documents: int = 4
    questions: int = 3
    requests: int | None = None
    question_tokens: int = 64
    output_tokens: int = 16
    passages: int = 4
    passage_tokens: int = 480
    corpus_passages: int = 64
    zipf: float = 1.0
    system_tokens: int = 128
    sessions: int = 4
    rounds: int = 4
    corpus: Path | None = None
    dataset: Path | None = None
    rate: float | None = None
    concurrency: int | None = None
    blend_ratio: str | None = None
    """None, as of the next ones: what was calibrated for the model, else the default."""
    blend_selection: str | None = None
    blend_check_layer: str | None = None
    blend_narrow: int = 1
    blend_encoding: str | None = None
    blend_passport: Path | None = None
    unverified: bool = False
    shared_from: str | None = None
    recompute_layers: str = "25%"
    warm: bool = False
    repeat: int = 1
    seed: int = 0
    trace: Path | None = None
    trace_format: str | None = None
    trace_chunk_tokens: int | None = None
    speed_up: float = 1.0
    scale: float = 1.0
    tier_latency: float = 0.0
    jitter: float = 0.0
    probe: Path | None = None

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> BenchOptions:
        """From the command's parameters by name; those that are no options are left out."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in flags.items() if name in known}
        values["workloads"] = tuple(values.get("workloads") or ("long-context", "rag"))
        return cls(**values)
