"""The flags of ``lmcache bench``, as given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from lmcache_cli.options.flags import WORKLOAD, flag
from lmcache_cli.options.groups import (
    ApproximateFlags,
    CacheFlags,
    LoadFlags,
    MeasuredFlags,
    RehearsalFlags,
    ServerFlags,
    SweptFlags,
    TraceFlags,
    WorkloadFlags,
)

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BenchOptions(
    RehearsalFlags,
    ServerFlags,
    LoadFlags,
    TraceFlags,
    WorkloadFlags,
    ApproximateFlags,
    CacheFlags,
    SweptFlags,
    MeasuredFlags,
):
    """The flags of ``lmcache bench``, as given. What blend's are None for was calibrated for the
    model, or is the default."""

    warm: Annotated[
        bool, flag("First serve, unmeasured, the same parts in another order.", WORKLOAD, "--warm")
    ] = False
    dataset: Annotated[
        Path | None,
        flag(
            "Questions with passages and answers, JSON or JSON lines as of MuSiQue or"
            " LongBench; prompts are cut to --context-tokens (rag).",
            WORKLOAD,
            metavar="FILE",
        ),
    ] = None
    workloads: tuple[str, ...] = ("long-context", "rag")

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> BenchOptions:
        """From the command's parameters by name; those that are no options are left out."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in flags.items() if name in known}
        values["workloads"] = tuple(values.get("workloads") or cls.workloads)
        return cls(**values)
