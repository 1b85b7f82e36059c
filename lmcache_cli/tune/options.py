"""The flags of ``lmcache tune``, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from lmcache_cli.errors import UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.options.tune import TuneFlags
from lmcache_cli.sizes import parse_count, parse_list, parse_size
from lmcache_cli.tune.candidates import HOURS_PER_MONTH, Goal, Prices
from workloads import WORKLOADS

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_SLO = re.compile(rf"((?:ttft|itl|e2e)\.(?:mean|p50|p90|p95|p99))={_NUMBER}(ms|s)")
_WORTH = 0.1
_BUDGET = re.compile(rf"{_NUMBER}/(hour|h|month)")


@dataclass(frozen=True)
class TuneOptions(TuneFlags):
    """The flags of ``lmcache tune``, as given."""

    source: str = ""
    bench: BenchOptions = field(default_factory=BenchOptions)
    """The flags by which requests are made, where SOURCE is a workload's name or a trace to be
    replayed."""

    def check(self) -> None:
        """Raises ``UserError`` for what is out of range or does not go together."""
        if self.devices < 1:
            raise UserError(f"--devices: {self.devices} is too small; it must be at least 1")
        if not 0 < self.efficiency <= 1:
            raise UserError(f"--efficiency: {self.efficiency} must be above 0 and at most 1")
        if not 0 < self.speed_up < inf:
            raise UserError(f"--speed-up: {self.speed_up} must be above 0")
        if not parse_size(self.disk_bandwidth, "--disk-bandwidth"):
            raise UserError("--disk-bandwidth: it must be above 0, as in 3GB (a second)")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise UserError(
                f"--gpu-memory-utilization: {self.gpu_memory_utilization} must be above 0 and at"
                " most 1"
            )
        if self.device_kv is not None and not parse_size(self.device_kv, "--device-kv"):
            raise UserError(
                "--device-kv: 0 leaves no room for a request; --no-prefix-caching is an engine that"
                " keeps nothing for the next one"
            )
        if self.kv_bytes_per_token is not None and self.kv_bytes_per_token < 1:
            raise UserError(f"--kv-bytes-per-token: {self.kv_bytes_per_token} must be at least 1")
        if not self.drive_writes_per_day > 0:
            raise UserError(
                f"--drive-writes-per-day: {self.drive_writes_per_day} must be above 0; inf is no"
                " bound"
            )
        if self.worth is not None and not 0 <= self.worth < inf:
            raise UserError(f"--worth: {self.worth} must be 0 or more")
        for name, value in (("--time-unit", self.time_unit), ("--tokenizer", self.tokenizer)):
            if value is not None and self.made:
                raise UserError(
                    f"{name}: these requests are made anew, so there is none to read; for"
                    " --validate, --requests or --scale convert the trace first: lmcache trace"
                    " convert"
                )
        if self.repeat < 1:
            raise UserError(f"--repeat: {self.repeat} is too small; it must be at least 1")
        if self.hardware is not None and self.measured:
            raise UserError(
                "--hardware: with --probe or --validate costs are measured; leave it out"
            )
        if self.engine == "simulated" and self.validate and self.probe is None:
            raise UserError("--engine simulated needs costs: --probe FILE")
        self.tolerances()

    @property
    def measured(self) -> bool:
        """Returns whether costs come from an engine here, not from data sheets."""
        return self.probe is not None or self.validate

    @property
    def made(self) -> bool:
        """Returns whether requests are made as tokens, as ``bench`` does."""
        replayed = self.validate or self.bench.requests is not None or self.bench.scale != 1
        return self.source in WORKLOADS or replayed

    def made_bench(self) -> BenchOptions:
        """Returns the flags with which ``bench`` would serve these requests."""
        if self.source in WORKLOADS:
            return replace(self.bench, workloads=(self.source,))
        return replace(
            self.bench,
            workloads=("trace",),
            trace=self.path(),
            trace_format=self.format,
            speed_up=self.speed_up,
        )

    def tolerances(self) -> tuple[float, float]:
        """Returns the tolerances of TTFT p50 and p90. Raises ``UserError``."""
        try:
            found = [float(part) for part in self.tolerance.split(",")]
        except ValueError:
            found = []
        if len(found) not in (1, 2) or not all(0 < part < 10 for part in found):
            raise UserError(
                f"--tolerance: {self.tolerance!r} is not one; write it like 0.15,0.25 (p50, p90)"
            )
        return found[0], found[-1]

    def chunks_made(self) -> list[int]:
        """Returns the chunk lengths to try where requests are tokens. Raises ``UserError``."""
        return parse_list(self.chunk_tokens or "16,64,256", "--chunk-tokens", parse_count)

    def goal(self, priced: bool = True) -> Goal:
        """Returns the bounds that a recommendation must keep. Without prices of cards, time is
        worth what ``--worth`` says, or a tenth of a second per dollar. Raises ``UserError``."""
        slo: dict[str, float] = {}
        for text in self.slo or ():
            match = _SLO.fullmatch(text.replace(" ", ""))
            if match is None:
                raise UserError(f"--slo: {text!r} is not one; write it like ttft.p90=500ms")
            if match[1] in slo:
                raise UserError(f"--slo: {match[1]} is bounded twice; leave one out")
            slo[match[1]] = float(match[2]) / (1000 if match[3] == "ms" else 1)
            if not slo[match[1]]:
                raise UserError(f"--slo: {text!r}: nothing answers in no time; give more")
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
        return Goal(
            most,
            self.largest(),
            writes,
            slo,
            self.drive_writes_per_day,
            float(parse_size(self.disk_bandwidth, "--disk-bandwidth")),
            self.worth if priced or self.worth is not None else _WORTH,
        )

    def largest(self) -> dict[str, int]:
        """Returns the largest size of each tier in bytes. Raises ``UserError``."""
        return {
            "cpu": parse_size(self.max_cpu, "--max-cpu"),
            "disk": parse_size(self.max_disk, "--max-disk"),
        }

    def prices(self) -> Prices:
        """Returns the prices of each tier per GiB and hour, and of the cards where ``--gpu-price``
        says it. Raises ``UserError``."""
        given = ("--dram-price", self.dram_price), ("--disk-price", self.disk_price)
        for flag, price in (*given, ("--gpu-price", self.gpu_price or 0.0)):
            if not 0 <= price < inf:
                raise UserError(f"{flag}: {price} is no price; give dollars, 0 or more")
        return Prices(self.dram_price, self.disk_price, (self.gpu_price or 0.0) * self.devices)

    def chunks(self, trace_chunk: int) -> list[int]:
        """Returns the chunk lengths to try, multiples of the trace's. Raises ``UserError``."""
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
        """Returns the trace's file. Raises ``UserError`` if there is none."""
        path = Path(self.source)
        if not path.exists():
            raise UserError(
                f"{self.source}: no such file, and no workload ({', '.join(WORKLOADS)}); name a"
                " trace (lmcache trace info FILE) or one of them"
            )
        return path
