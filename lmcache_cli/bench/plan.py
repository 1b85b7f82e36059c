"""Makes a plan of flags: everything that can be wrong with the input is found here, before any
model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from uuid import uuid4

from cache_core.memory_limits import require_memory
from lmcache_cli.bench.cells import SWEPT_BY_CONTEXT, BenchPlan, Cell, Scenario, cross
from lmcache_cli.bench.requests import TRACE, check_trace_flags, read_dataset, trace_scenario
from lmcache_cli.engines.engine import Load
from lmcache_cli.errors import UserError
from lmcache_cli.modes.blend import Blend
from lmcache_cli.modes.cross_model import Shared
from lmcache_cli.modes.mode import (
    ForeignOffload,
    Mode,
    Plain,
    Sweep,
    check_server_flags,
    one_of,
    reuse_modes,
)
from lmcache_cli.modes.prefix import Prefix
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.options.flags import flag_name
from lmcache_cli.sizes import parse_count, parse_duration, parse_list, parse_size
from workloads import (
    WORKLOAD_USES,
    WORKLOADS,
    Corpus,
    CorpusError,
    Example,
    FolderCorpus,
    GeneratedCorpus,
    Settings,
)

MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Plain("off", 0, foreign=False),
        Plain("base", 0, foreign=True),
        Plain("server", 1, foreign=True),
        Plain("vllm", 1, foreign=True),
        ForeignOffload("offload"),
        ForeignOffload("lmcache"),
        Prefix("prefix"),
        Blend("blend"),
        Shared("shared"),
    )
}


ENGINE_USES: dict[str, tuple[str, ...]] = {
    "transformers": ("model", "device", "dtype", "time_budget"),
    "vllm": ("model", "dtype", "vllm_args", "request_timeout", "start_timeout"),
    "openai": ("model", "url", "base_url", "request_timeout", "time_budget"),
    "simulated": ("model", "hardware", "probe", "jitter"),
}
"""The flags that are not every engine's, by engine."""


def make_plan(options: BenchOptions, out: Path) -> BenchPlan:
    """Checks every flag and crosses the lists. ``out`` is where a disk tier without a folder goes.
    Raises ``UserError`` with one clear line."""
    args = check_server_flags(options)
    if options.policy == "unbounded" and options.engine != "simulated":
        raise UserError("--policy: unbounded needs tiers without bytes; add --engine simulated")
    for name in options.workloads:
        one_of("workload", name, (*WORKLOADS, TRACE))
    check_trace_flags(options)
    if options.repeat < 1:
        raise UserError(f"--repeat: {options.repeat} is too small; it must be at least 1")
    _check_rehearsal(options)
    _check_time_budget(options)
    budget = 0
    if options.disk_writes_per_day is not None:
        budget = parse_size(options.disk_writes_per_day, "--disk-writes-per-day")
    if (options.admission == "bytes-per-day") != (budget > 0):
        raise UserError("--admission bytes-per-day and --disk-writes-per-day SIZE go together")
    # Without a name no earlier run's chunks can be hit: a cold start, proven.
    salt = f"named {options.cache_name}" if options.cache_name else uuid4().hex
    scratch = out / f"disk-{salt[-8:]}" if options.disk_path is None else None
    modes = [MODES[name] for name in reuse_modes(options.engine, options.reuse, options.base_url)]
    _check_uses(options, modes)
    sweep = Sweep(
        options,
        chunk_tokens=parse_list(options.chunk_tokens, "--chunk-tokens", parse_count),
        tier_sizes={
            "device": parse_list(options.device_size, "--device-size", parse_size),
            "cpu": parse_list(options.cpu_size, "--cpu-size", parse_size),
            "disk": parse_list(options.disk_size, "--disk-size", parse_size),
        },
        salt=salt,
        disk_path=options.disk_path or scratch,
        bytes_per_day=budget,
    )
    _check_lasting(options, disk=any(sweep.tier_sizes["disk"]))
    scenarios = tuple(_scenarios(options))
    cells = tuple(cross(scenarios, modes, sweep))
    _check_lengths(scenarios, cells)
    return BenchPlan(
        options,
        scenarios,
        cells,
        _load(options),
        _corpus(options),
        salt,
        scratch,
        args,
    )


def prompt_tokens(scenario: Scenario) -> tuple[int, int]:
    """Returns the least and the greatest length that the longest prompt of a generated workload
    may have, in tokens."""
    settings, name = scenario.settings, scenario.workload
    if name in SWEPT_BY_CONTEXT:
        length = settings.context_tokens + settings.question_tokens * (name == "long-context")
        return length, length
    length = settings.system_tokens + settings.question_tokens
    if name == "rag":
        length += settings.passages * settings.passage_tokens
        return length, length
    rounds = settings.question_tokens + settings.reply_tokens + settings.result_tokens
    return length, length + settings.rounds * rounds


def _check_lengths(scenarios: Sequence[Scenario], cells: Sequence[Cell]) -> None:
    """Raises ``UserError`` for chunks that are longer than any prompt, and for more requests than
    there is memory for."""
    for number, scenario in enumerate(scenarios):
        if scenario.examples or scenario.replay is not None:
            continue
        least, most = prompt_tokens(scenario)
        count = scenario.settings.requests or 1
        try:
            require_memory(count * least * 4, f"--requests: the tokens of {count:,} prompts")
        except MemoryError as error:
            raise UserError(str(error)) from error
        for cell in (cell for cell in cells if cell.scenario == number and cell.spec.ours):
            if cell.spec.chunk_tokens >= most:
                raise UserError(
                    f"--chunk-tokens: a chunk of {cell.spec.chunk_tokens} tokens is longer than any"
                    f" prompt of {scenario.workload} ({most}), so none could be reused; lower it"
                )


def _check_lasting(options: BenchOptions, disk: bool) -> None:
    """Raises ``UserError`` for flags about a disk tier, or about one that lasts, where there is
    none."""
    if not disk and options.disk_path is not None:
        raise UserError("--disk-path needs a disk tier; add --disk-size, as in --disk-size 8GiB")
    if not disk and options.admission != "none":
        raise UserError("--admission is the disk tier's; add --disk-size, as in --disk-size 8GiB")
    if options.cache_name is not None and options.disk_path is None and not options.remote:
        raise UserError("--cache-name needs a tier that lasts; give --disk-path or --remote")


def _check_uses(options: BenchOptions, modes: Sequence[Mode]) -> None:
    """Raises ``UserError`` for a flag that no workload, or no mode, of this bench uses."""
    workloads = WORKLOAD_USES | {TRACE: ()}
    if options.dataset is not None:  # its prompts are cut to a length
        workloads["rag"] = ("context_tokens",)
    _refuse_unused(options, "workload", options.workloads, workloads)
    flags = {name: mode.uses for name, mode in MODES.items() if mode.uses}
    _refuse_unused(options, "--reuse", [mode.name for mode in modes], flags)
    _refuse_unused(options, "--engine", [options.engine], ENGINE_USES)
    if (options.hardware is None) != (options.model is None) and options.engine == "simulated":
        raise UserError(
            "--model and --hardware go together with --engine simulated: both are of the catalogue"
            " of lmcache tune; without them it has costs of its own"
        )
    if options.hardware is not None and options.probe is not None:
        raise UserError("--probe and --hardware exclude each other: both say what requests cost")


def _refuse_unused(
    options: BenchOptions, what: str, chosen: Sequence[str], uses: Mapping[str, Sequence[str]]
) -> None:
    default = BenchOptions()
    used = list(dict.fromkeys(name for one in chosen for name in uses.get(one, ())))
    for name in dict.fromkeys(name for names in uses.values() for name in names):
        if name not in used and getattr(options, name) != getattr(default, name):
            others = ", ".join(one for one, names in uses.items() if name in names)
            has = ", ".join(map(flag_name, used))
            raise UserError(
                f"{flag_name(name)}: {what} {', '.join(chosen)} does not use it, {others} would;"
                + (f" use {has}, or leave it out" if has else " leave it out")
            )


def _check_rehearsal(options: BenchOptions) -> None:
    """Raises ``UserError`` for flags that make things worse on purpose, where that is not
    possible."""
    for flag, value in (("--tier-latency", options.tier_latency), ("--jitter", options.jitter)):
        if not 0 <= value < float("inf"):
            raise UserError(f"{flag}: {value} must be at least 0")
    if options.jitter and options.engine != "simulated":
        raise UserError("--jitter: real engines have noise of their own; add --engine simulated")
    if options.tier_latency and options.engine not in ("simulated", "transformers"):
        raise UserError(f"--tier-latency: the tiers of --engine {options.engine} can't be slowed")
    if options.tier_latency and options.cache_name:
        raise UserError("--tier-latency and --cache-name exclude each other; leave one out")


def _check_time_budget(options: BenchOptions) -> None:
    """Raises ``UserError`` for a time that can't be kept: requests that come when they come, a
    number of repeats that is given, caches that begin with what nobody knows."""
    if options.time_budget is None:
        return
    parse_duration(options.time_budget, "--time-budget")
    for flag, given in (
        ("--rate", options.rate is not None),
        ("--trace", options.trace is not None),
        ("--repeat", options.repeat != 1),
        ("--cache-name", options.cache_name is not None),
    ):
        if given:
            raise UserError(f"--time-budget and {flag} exclude each other; leave one out")


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
    names = {f.name for f in fields(Settings)} & {f.name for f in fields(BenchOptions)}
    knobs = {name: getattr(options, name) for name in names}
    for workload in dict.fromkeys(options.workloads):
        swept = lengths if workload in SWEPT_BY_CONTEXT or examples else lengths[:1]
        for length in swept:
            try:
                settings = Settings(**knobs | {"context_tokens": length})
            except ValueError as error:
                knob, colon, why = str(error).partition(":")
                raise UserError(f"{flag_name(knob)}{colon}{why}") from error
            # What blend reuses was seen before: the state that a service is in.
            warm = options.warm or (workload == "rag" and "blend" in (options.reuse or ""))
            scenarios.append(Scenario(workload, settings, warm, examples))
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
