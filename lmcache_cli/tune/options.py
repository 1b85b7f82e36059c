"""The flags of ``lmcache tune``, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lmcache_cli.errors import UserError
from lmcache_cli.sizes import parse_count, parse_list, parse_size
from lmcache_cli.tune.candidates import HOURS_PER_MONTH, Goal, Prices
from lmcache_cli.tune.cost import PREFILL_EFFICIENCY

GIB = 2**30
_SLO = re.compile(r"ttft\.(p50|p90|p99)=([0-9.]+)(ms|s)")
_BUDGET = re.compile(r"([0-9.]+)/(hour|h|month)")


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """As given on the command line."""

    source: str
    model: str = "llama-3.1-8b"
    hardware: str = "h100"
    devices: int = 1
    efficiency: float = PREFILL_EFFICIENCY
    format: str | None = None
    chunk_tokens: str | None = None
    largest_cpu: str = "1TiB"
    largest_disk: str = "8TiB"
    slo: tuple[str, ...] = ()
    budget: str | None = None
    disk_writes_per_day: str | None = None
    dram_price: float = Prices().cpu
    disk_price: float = Prices().disk
    worth: float = 0.1
    speed_up: float = 1.0
    overlap: bool = False
    disk_bandwidth: str = "3GB"

    def goal(self) -> Goal:
        """The bounds. Raises ``UserError``."""
        ttft: dict[str, float] = {}
        for text in self.slo:
            match = _SLO.fullmatch(text.replace(" ", ""))
            if match is None:
                raise UserError(f"--slo: {text!r} is not one; write it like ttft.p90=500ms")
            ttft[match[1]] = float(match[2]) / (1000 if match[3] == "ms" else 1)
        most = None
        if self.budget is not None:
            match = _BUDGET.fullmatch(self.budget.replace(" ", "").lstrip("$"))
            if match is None:
                raise UserError(
                    f"--budget: {self.budget!r} is not one; write it like 0.05/hour or 30/month"
                )
            most = float(match[1]) / (HOURS_PER_MONTH if match[2] == "month" else 1)
        writes = None
        if self.disk_writes_per_day is not None:
            writes = float(parse_size(self.disk_writes_per_day, "--disk-writes-per-day"))
        return Goal(most, self.largest(), writes, ttft)

    def largest(self) -> dict[str, int]:
        """Bytes by tier. Raises ``UserError``."""
        return {
            "cpu": parse_size(self.largest_cpu, "--max-cpu"),
            "disk": parse_size(self.largest_disk, "--max-disk"),
        }

    def prices(self) -> Prices:
        """Per GiB and hour. Raises ``UserError``."""
        for flag, price in (("--dram-price", self.dram_price), ("--disk-price", self.disk_price)):
            if price < 0:
                raise UserError(f"{flag}: {price} is negative")
        return Prices(self.dram_price, self.disk_price)

    def chunks(self, trace_chunk: int) -> list[int]:
        """Chunk lengths to try, multiples of the trace's. Raises ``UserError``."""
        if self.chunk_tokens is None:
            return [trace_chunk * n for n in (1, 2, 4) if trace_chunk * n <= 2048] or [trace_chunk]
        chosen = parse_list(self.chunk_tokens, "--chunk-tokens", parse_count)
        for chunk in chosen:
            if chunk % trace_chunk:
                raise UserError(
                    f"--chunk-tokens: {chunk} is no multiple of the trace's {trace_chunk}; what is"
                    " shared within a chunk of the trace is not known"
                )
        return chosen

    def path(self) -> Path:
        """The trace's file. Raises ``UserError`` if there is none."""
        path = Path(self.source)
        if not path.exists():
            raise UserError(f"{self.source}: no such file; name a trace (lmcache trace info FILE)")
        return path
