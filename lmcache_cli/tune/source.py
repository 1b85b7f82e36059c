"""The flags of ``lmcache tune``, checked, and what is tuned for: a trace, or the requests that
``lmcache bench`` would make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import repeat
from math import gcd, inf
from pathlib import Path

import numpy as np

from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from lmcache_cli.bench.cells import Scenario
from lmcache_cli.bench.plan import make_plan
from lmcache_cli.bench.requests import make_requests
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.vllm.flags import OWN_BLOCK_TOKENS
from lmcache_cli.errors import UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.options.tune import TuneFlags
from lmcache_cli.output import Say, counted
from lmcache_cli.sizes import parse_count, parse_list, parse_size, shell_words
from lmcache_cli.trace.tools import TraceSource, odd_lengths
from lmcache_cli.tune.candidates import HOURS_PER_MONTH, Goal, Prices
from workloads import WORKLOADS, Request, seen_before
from workloads.tokens import Encode
from workloads.traces import FEW_MALFORMED, TraceArrays, TraceError, load_arrays
from workloads.traces.lines import about_lines
from workloads.traces.summary import Watched

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_SLO = re.compile(rf"((?:ttft|itl|e2e)\.(?:mean|p50|p90|p95|p99))={_NUMBER}(ms|s)")
_WORTH = 0.1
_SERVED_CHUNK = "64"
_OF_DATA_SHEETS = (
    *("hardware", "dtype", "kv_dtype", "kv_bytes_per_token", "gpu_memory_utilization"),
    *("device_kv", "no_prefix_caching", "efficiency", "replicas", "pipeline", "remote_size"),
)
_OF_A_POOL = "remote_size", "network_bandwidth", "remote_price"
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
        for name in ("devices", "pipeline", "replicas"):
            if (count := getattr(self, name)) < 1:
                raise UserError(f"--{name}: {count} is too small; it must be at least 1")
        if self.replicas == 1 and self.routing != TuneFlags.routing:
            raise UserError("--routing: one replica takes every request; give --replicas too")
        of_a_pool = _OF_A_POOL[self.replicas > 1 :]  # replicas may be given no pool
        for name in of_a_pool if not self.largest()["remote"] else ():
            if getattr(self, name) != getattr(TuneFlags, name):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag}: there is no pool; give --replicas, or --remote-size")
        if self.replicas > 1 and self.validate:
            raise UserError("--replicas: --validate serves on one engine; leave one of them out")
        if not 0 < self.efficiency <= 1:
            raise UserError(f"--efficiency: {self.efficiency} must be above 0 and at most 1")
        if not 0 < self.speed_up < inf:
            raise UserError(f"--speed-up: {self.speed_up} must be above 0")
        for flag in ("--disk-bandwidth", "--network-bandwidth"):
            if not parse_size(getattr(self, flag[2:].replace("-", "_")), flag):
                raise UserError(f"{flag}: it must be above 0, as in 3GB (a second)")
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
        served = ("device_kv", "no_prefix_caching") if self.serves else ()
        for name in _OF_DATA_SHEETS if self.measured else ():
            if name not in served and getattr(self, name) != getattr(TuneFlags, name):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{flag}: with --probe or --validate costs are measured; leave it out"
                )
        if self.engine == "simulated" and self.validate and self.probe is None:
            raise UserError("--engine simulated needs costs: --probe FILE")
        self._check_served()
        self.tolerances()

    def _check_served(self) -> None:
        if self.vllm_args is not None and not self.serves:
            raise UserError("--vllm-args: only --validate --engine vllm starts a server")
        if not self.serves:
            return
        if self.probe is not None:
            raise UserError("--probe: --engine vllm measures its servers itself; leave it out")
        self.serving_args()
        chunks = self.chunks_made()
        if len(chunks) > 1 or chunks[0] % OWN_BLOCK_TOKENS:
            raise UserError(
                f"--chunk-tokens: with --engine vllm it is one length, a multiple of its block of"
                f" {OWN_BLOCK_TOKENS} tokens; the default is {_SERVED_CHUNK}"
            )

    @property
    def serves(self) -> bool:
        """Returns whether servers are started, to be measured."""
        return self.validate and self.engine == "vllm"

    def serving_args(self) -> tuple[str, ...]:
        """Returns the words of ``--vllm-args``. Raises ``UserError``."""
        return shell_words(self.vllm_args, "--vllm-args")

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
        given = self.tolerance or ("0.2,0.3" if self.serves else "0.15,0.25")
        try:
            found = [float(part) for part in given.split(",")]
        except ValueError:
            found = []
        if len(found) not in (1, 2) or not all(0 < part < 10 for part in found):
            raise UserError(
                f"--tolerance: {self.tolerance!r} is not one; write it like 0.15,0.25 (p50, p90)"
            )
        return found[0], found[-1]

    def chunks_made(self) -> list[int]:
        """Returns the chunk lengths to try where requests are tokens. Raises ``UserError``."""
        given = self.chunk_tokens or (_SERVED_CHUNK if self.serves else "16,64,256")
        return parse_list(given, "--chunk-tokens", parse_count)

    def goal(self, priced: bool = True) -> Goal:
        """Returns the bounds that a recommendation must keep. Without prices of cards, time is
        worth what ``--worth`` says, or a tenth of a second per dollar. Raises ``UserError``."""
        slo: dict[str, float] = {}
        for text in self.slo or ():
            match = _SLO.fullmatch(text.replace(" ", ""))
            if match is None:
                bare = _SLO.fullmatch(f"{text.replace(' ', '')}s")
                if bare is not None:
                    one = bare[2]
                    raise UserError(f"--slo: {text!r} has no unit; {one}s or {one}ms?")
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
        pool = "8TiB" if self.replicas > 1 else "0"
        return {
            "cpu": parse_size(self.max_cpu, "--max-cpu"),
            "disk": parse_size(self.max_disk, "--max-disk"),
            "remote": parse_size(self.remote_size or pool, "--remote-size"),
        }

    def prices(self) -> Prices:
        """Returns the prices of each tier per GiB and hour, and of the cards where ``--gpu-price``
        says it. Raises ``UserError``."""
        flags = "--dram-price", "--disk-price", "--remote-price", "--gpu-price"
        for flag in flags:
            price = getattr(self, flag[2:].replace("-", "_")) or 0.0
            if not 0 <= price < inf:
                raise UserError(f"{flag}: {price} is no price; give dollars, 0 or more")
        return Prices(
            self.dram_price,
            self.disk_price,
            (self.gpu_price or 0.0) * self.devices * self.pipeline * self.replicas,
            self.remote_price,
            self.replicas,
        )

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


@dataclass(frozen=True, slots=True)
class RequestSource:
    """The requests that are tuned for, as arrays; as tokens too where they were made here.
    ``chunks`` are the chunk lengths to try, ``load`` how the requests come."""

    arrays: TraceArrays
    chunks: list[int]
    load: Load = field(default_factory=lambda: Load(None))
    requests: tuple[Request, ...] = ()
    scenario: Scenario | None = None
    warnings: list[str] = field(default_factory=list)
    reported: float | None = None
    """The hit rate that the server reported which recorded the trace; None where it told none."""
    any_position: float | None = None
    """The hit rate of a cache without a bound that finds chunks (of a made workload its parts, such
    as passages) at any position; None where the trace does not name content."""
    heading: list[str] = field(default_factory=list)
    """What stands above the answer, for it may make it wrong."""


def trace_source(options: TuneOptions, say: Say = lambda text: None) -> RequestSource:
    """Reads the requests of a trace as they are. Raises ``UserError``."""
    try:
        file, unit_s = options.path(), options.time_unit
        trace = TraceSource(file, options.format, None, unit_s, options.tokenizer).open()
        watched = Watched()
        told = counted(trace.requests(), say, "reading the source: requests", about_lines(file))
        arrays = load_arrays(watched.watch(told))
    except TraceError as error:
        raise UserError(str(error)) from error
    if not len(arrays):
        raise UserError(f"{options.source}: there is no request in it")
    warnings, bad = list(trace.malformed.examples), trace.malformed
    heading = []
    if bad.share > FEW_MALFORMED:
        heading.append(f"{options.source}: {bad.told()}; what follows is of the others")
    elif bad.count:
        warnings.append(f"{bad.told()} and were left out")
    if trace.guess:
        heading.append(f"{options.source}: guessed: {trace.guess}")
    if not arrays.chunk_tokens:
        warnings.append(
            f"{options.source} has lengths only ({trace.format}): what prompts share is unknown, so"
            " every token counts as new; the room of the cards and the load are right, tiers can't"
            " be sized"
        )
        return RequestSource(arrays, [16], warnings=warnings + odd_lengths(arrays), heading=heading)
    warnings += odd_lengths(arrays)
    tokens = int(arrays.input_tokens.sum())
    return RequestSource(
        arrays,
        options.chunks(arrays.chunk_tokens),
        warnings=warnings,
        reported=watched.reported(tokens),
        any_position=watched.ceiling(tokens),
        heading=heading,
    )


def made_source(
    options: TuneOptions,
    bench: BenchOptions,
    encode: Encode,
    bos: int | None,
    salted: int = 0,
    block: int = 0,
    say: Say = lambda text: None,
) -> RequestSource:
    """Makes the requests that ``lmcache bench`` makes of these options and this tokenizer, token
    for token. With an engine that puts ``salted`` tokens in front of each, behind BOS, and keeps
    prefixes in blocks of ``block`` tokens, arrays are of what it sees. Raises ``UserError``."""
    plan = make_plan(bench, options.out)
    warnings: list[str] = []
    [scenario, *others] = plan.scenarios
    if others:
        raise UserError("--context-tokens: tune is for one length at a time")
    texts = counted(repeat(encode), say, "making requests: texts")
    requests = make_requests(
        scenario, plan.corpus, lambda text: next(texts)(text), bos, warnings.append
    )
    chunks = options.chunks_made()
    arrays = request_arrays(requests, reduce(gcd, chunks, block), salted, bos, say)
    anywhere = seen_before(requests) if options.source in WORKLOADS else None
    made = tuple(requests)
    return RequestSource(arrays, chunks, plan.load, made, scenario, warnings, any_position=anywhere)


def request_arrays(
    requests: Sequence[Request],
    chunk_tokens: int,
    salted: int = 0,
    bos: int | None = None,
    say: Say = lambda text: None,
) -> TraceArrays:
    """Turns requests into a trace: chunks of ``chunk_tokens``, named by their prefix, with
    ``salted`` more tokens in front, behind ``bos``. Requests are to ascend in time."""
    # Only what is equal matters here, not the shape of the KV.
    hasher = ChunkHasher(Namespace(KVLayout(1, 1, 1, "int8", chunk_tokens), "trace"))
    names: dict[bytes, int] = {}
    sessions: dict[str, int] = {}
    ids: list[int] = []
    offsets = [0]
    for request in counted(requests, say, "naming what requests share", len(requests)):
        tokens = request.token_ids
        if salted:  # which ones does not matter: a cold start has the same for all
            tokens = np.insert(tokens, int((tokens[:1] == bos).sum()), np.zeros(salted, np.int32))
        ids += [names.setdefault(k, len(names)) for k in hasher.keys(tokens).prefix]
        offsets.append(len(ids))
        sessions.setdefault(request.session, len(sessions))
    return TraceArrays(
        np.array(ids, np.int64),
        np.array(offsets, np.int64),
        np.array([r.arrival_s for r in requests], np.float64),
        np.array([len(r.token_ids) + salted for r in requests], np.int64),
        np.array([r.max_tokens for r in requests], np.int64),
        np.array([sessions[r.session] for r in requests], np.int64),
        tuple(sessions),
        chunk_tokens,
    )
