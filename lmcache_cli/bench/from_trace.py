"""The workload `trace`: its flags, checked before any model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmcache_cli.bench.cells import Scenario
from lmcache_cli.errors import UserError
from workloads import Replay, Settings
from workloads.traces import ReadOptions, TraceError, open_trace

if TYPE_CHECKING:
    from lmcache_cli.bench.plan import BenchOptions

TRACE = "trace"


def check_trace_flags(options: BenchOptions) -> None:
    """Raises ``UserError`` if the workload `trace` and --trace don't go together, or other
    workloads or a rate go with them."""
    if (TRACE in options.workloads) != (options.trace is not None):
        raise UserError(
            "workload trace and --trace FILE go together: lmcache bench trace --trace FILE"
        )
    if options.trace is None:
        if options.speed_up != 1 or options.scale != 1 or options.trace_format is not None:
            raise UserError("--speed-up, --scale and --trace-format are the workload trace's")
        return
    if len(set(options.workloads)) > 1:
        raise UserError("workload trace has arrivals of its own; bench other workloads apart")
    if options.rate is not None:
        raise UserError("--rate: a trace has its own arrivals; use --speed-up, or --concurrency")


def trace_scenario(options: BenchOptions) -> Scenario:
    """The trace's requests. Raises ``UserError`` if it can't be read at all; lines are looked at
    later."""
    assert options.trace is not None
    try:
        replay = Replay(
            options.trace,
            options.trace_format,
            options.requests,
            options.speed_up,
            options.scale,
            options.seed,
            options.trace_chunk_tokens,
        )
        read = ReadOptions(chunk_tokens=replay.chunk_tokens)
        open_trace(replay.path, replay.format, read)
        settings = Settings(seed=options.seed, requests=options.requests)
    except TraceError as error:
        raise UserError(f"--trace: {error}") from error
    except ValueError as error:
        raise UserError(f"--{error}") from error
    return Scenario(TRACE, settings, replay=replay)
