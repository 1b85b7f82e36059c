"""From flags to a plan: everything that can be wrong with the input is found here, before any
model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from cache_core.admission import ADMISSIONS
from cache_core.ledger import PLACEMENTS, Placement
from cache_core.policy import POLICIES
from cache_core.tiers.remote_url import redacted
from cache_core.transfer.codec import CODECS
from lmcache_cli.bench.cells import SWEPT_BY_CONTEXT, Cell, Scenario, Sweep, cross
from lmcache_cli.bench.dataset import read_dataset
from lmcache_cli.bench.from_trace import TRACE, check_trace_flags, trace_scenario
from lmcache_cli.bench.modes import (
    ENGINES,
    blend_variants,
    check_server_flags,
    one_of,
    reuse_modes,
    shared_variants,
)
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.serving import Serving
from lmcache_cli.errors import UserError
from lmcache_cli.sizes import parse_count, parse_list, parse_size
from workloads import (
    WORKLOADS,
    Corpus,
    CorpusError,
    Example,
    FolderCorpus,
    GeneratedCorpus,
    Settings,
)

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


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run."""

    options: BenchOptions
    scenarios: tuple[Scenario, ...]
    cells: tuple[Cell, ...]
    load: Load
    corpus: Corpus
    salt: str
    scratch: Path | None
    """A disk tier's folder that is made for this run and removed after it."""
    vllm_args: tuple[str, ...] = ()

    def serving(self, out: Path, say: Callable[[str], None]) -> Serving:
        """What an engine with a server needs to know. Logs go into ``out``."""
        options = self.options
        return Serving(
            url=options.url or "",
            args=self.vllm_args,
            silence_s=options.request_timeout,
            folder=out,
            start_s=options.start_timeout,
            say=say,
        )

    def config(self) -> dict[str, object]:
        """The options as plain values, for the run file: with them the run can be repeated."""
        values = asdict(self.options)
        values["workloads"] = list(self.options.workloads)
        values["disk_path"] = str(self.options.disk_path) if self.options.disk_path else None
        passport = self.options.blend_passport
        values["blend_passport"] = str(passport) if passport else None
        values["trace"] = str(self.options.trace) if self.options.trace else None
        values["remote"] = redacted(self.options.remote) if self.options.remote else None
        values["dataset"] = str(self.options.dataset) if self.options.dataset else None
        values["probe"] = str(self.options.probe) if self.options.probe else None
        values["corpus"] = str(self.options.corpus) if self.options.corpus else None
        return values


def make_plan(options: BenchOptions, out: Path) -> Plan:
    """Checks every flag and crosses the lists. ``out`` is where a disk tier without a folder goes.
    Raises ``UserError`` with one clear line."""
    one_of("--engine", options.engine, tuple(ENGINES))
    one_of("--dtype", options.dtype, DTYPES)
    args = check_server_flags(options)
    one_of("--policy", options.policy, tuple(POLICIES))
    if options.policy == "unbounded" and options.engine != "simulated":
        raise UserError("--policy: unbounded needs tiers without bytes; add --engine simulated")
    if options.probe is not None and options.engine != "simulated":
        raise UserError("--probe: only --engine simulated has its costs from a file; leave it out")
    one_of("--placement", options.placement, PLACEMENTS)
    for name in options.workloads:
        one_of("workload", name, (*WORKLOADS, TRACE))
    check_trace_flags(options)
    if options.repeat < 1:
        raise UserError(f"--repeat: {options.repeat} is too small; it must be at least 1")
    _check_rehearsal(options)
    one_of("--admission", options.admission, ADMISSIONS)
    one_of("--codec", options.codec, CODECS)
    budget = 0
    if options.disk_writes_per_day is not None:
        budget = parse_size(options.disk_writes_per_day, "--disk-writes-per-day")
    if (options.admission == "bytes-per-day") != (budget > 0):
        raise UserError("--admission bytes-per-day and --disk-writes-per-day SIZE go together")
    # Without a name no earlier run's chunks can be hit: a cold start, proven.
    salt = f"named {options.cache_name}" if options.cache_name else uuid4().hex
    scratch = out / f"disk-{salt[-8:]}" if options.disk_path is None else None
    modes = reuse_modes(options.engine, options.reuse)
    sweep = Sweep(
        reuse=modes,
        chunk_tokens=parse_list(options.chunk_tokens, "--chunk-tokens", parse_count),
        tier_sizes={
            "device": parse_list(options.device_size, "--device-size", parse_size),
            "cpu": parse_list(options.cpu_size, "--cpu-size", parse_size),
            "disk": parse_list(options.disk_size, "--disk-size", parse_size),
        },
        policy=options.policy,
        placement=cast(Placement, options.placement),
        salt=salt,
        disk_path=options.disk_path or scratch,
        remote=options.remote or "",
        admission=options.admission,
        bytes_per_day=budget,
        lasting=options.cache_name is not None,
        variants={"blend": blend_variants(options), "shared": shared_variants(options, modes)},
        latency_s=options.tier_latency,
        codec=options.codec,
    )
    _check_lasting(options, disk=any(sweep.tier_sizes["disk"]))
    scenarios = tuple(_scenarios(options))
    return Plan(
        options,
        scenarios,
        tuple(cross(scenarios, sweep)),
        _load(options),
        _corpus(options),
        salt,
        scratch,
        args,
    )


def _check_lasting(options: BenchOptions, disk: bool) -> None:
    """What is about a disk tier, where there is none."""
    if not disk and options.disk_path is not None:
        raise UserError("--disk-path needs a disk tier; add --disk-size, as in --disk-size 8GiB")
    if not disk and options.admission != "none":
        raise UserError("--admission is the disk tier's; add --disk-size, as in --disk-size 8GiB")
    if options.cache_name is not None and options.disk_path is None and not options.remote:
        raise UserError("--cache-name needs a tier that lasts; give --disk-path or --remote")


def _check_rehearsal(options: BenchOptions) -> None:
    """The flags that make things worse on purpose."""
    for flag, value in (("--tier-latency", options.tier_latency), ("--jitter", options.jitter)):
        if not 0 <= value < float("inf"):
            raise UserError(f"{flag}: {value} must be at least 0")
    if options.jitter and options.engine != "simulated":
        raise UserError("--jitter: real engines have noise of their own; add --engine simulated")
    if options.tier_latency and options.engine not in ("simulated", "transformers"):
        raise UserError(f"--tier-latency: the tiers of --engine {options.engine} can't be slowed")
    if options.tier_latency and options.cache_name:
        raise UserError("--tier-latency and --cache-name exclude each other; leave one out")


def _scenarios(options: BenchOptions) -> list[Scenario]:
    lengths = parse_list(options.context_tokens, "--context-tokens", parse_count)
    scenarios = []
    if options.trace is not None:
        return [trace_scenario(options)]
    examples: tuple[Example, ...] = ()
    if options.dataset is not None:
        if set(options.workloads) != {"rag"}:
            raise UserError("--dataset goes with the workload rag alone: lmcache bench rag")
        examples = tuple(read_dataset(options.dataset, options.requests))
    for workload in dict.fromkeys(options.workloads):
        swept = lengths if workload in SWEPT_BY_CONTEXT or examples else lengths[:1]
        for length in swept:
            try:
                settings = Settings(
                    context_tokens=length,
                    documents=options.documents,
                    requests=options.requests,
                    questions=options.questions,
                    question_tokens=options.question_tokens,
                    output_tokens=options.output_tokens,
                    passages=options.passages,
                    passage_tokens=options.passage_tokens,
                    corpus_passages=options.corpus_passages,
                    zipf=options.zipf,
                    system_tokens=options.system_tokens,
                    sessions=options.sessions,
                    rounds=options.rounds,
                    seed=options.seed,
                    rate=options.rate,
                )
            except ValueError as error:
                raise UserError(str(error)) from error
            scenarios.append(Scenario(workload, settings, options.warm, examples))
    return scenarios


def _load(options: BenchOptions) -> Load:
    if options.rate is not None:
        if options.concurrency is not None:
            raise UserError("--rate and --concurrency exclude each other: open or closed loop")
        return Load(None)
    if options.trace is not None and options.concurrency is None:
        return Load(None)  # at the trace's own times
    concurrency = 1 if options.concurrency is None else options.concurrency
    if concurrency < 1:
        raise UserError(f"--concurrency: {concurrency} is too small; it must be at least 1")
    return Load(concurrency)


def _corpus(options: BenchOptions) -> Corpus:
    if options.corpus is None:
        return GeneratedCorpus(options.seed)
    try:
        return FolderCorpus(options.corpus)
    except CorpusError as error:
        raise UserError(f"--corpus: {error}") from error
