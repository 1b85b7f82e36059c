"""Runs ``lmcache tune``: reads the source, searches, validates, reports."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.measured_costs import ProbedEngine, probed_engine, read_probed
from lmcache_cli.engines.vllm.flags import OWN_BLOCK_TOKENS, own_cache_flags
from lmcache_cli.errors import EXIT_INCONCLUSIVE, MissingError, UserError
from lmcache_cli.output import Say, check_output, write_output
from lmcache_cli.sizes import parse_size
from lmcache_cli.tune.catalogue import find_architecture, find_hardware
from lmcache_cli.tune.cost import (
    DeviceRoom,
    RequestCost,
    catalogue_cost,
    devices_needed,
    probed_cost,
)
from lmcache_cli.tune.report import print_report, tune_json_text
from lmcache_cli.tune.search import search
from lmcache_cli.tune.source import RequestSource, TuneOptions, made_source, trace_source
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.validate import SERVED_HITS, Prefill, Tolerance, neighbours, validate
from reports.units import bytes_text

if TYPE_CHECKING:
    from lmcache_cli.engines.engine import Engine

_DEFAULT_MODEL, _DEFAULT_HARDWARE = "llama-3.1-8b", "h100"
_PROBE_REPEATS = 5
_LEAST_CONTEXT = 64


def run_tune(options: TuneOptions, json_file: str | None, quiet: bool) -> int:
    """Prints the report (or JSON) and returns the exit code."""
    options.check()
    check_output(json_file)
    options.goal()
    prices = options.prices()
    if not options.made:
        options.path()
    talk = Console(stderr=True, quiet=quiet)
    validation = None
    with BenchProgress(talk, quiet) as progress, ExitStack() as stack:
        say = progress.step
        if not options.measured:
            _check_devices(options)
        say("reading the source")
        probed = read_probed(options.probe) if options.probe is not None else None
        _check_model(options, probed)
        engine = reference = None
        if options.validate:
            say(f"loading engine {options.engine}")
            engine = _start(options, probed, say)
            stack.callback(engine.close)
        source = _source(options, probed, engine, say)
        if options.serves:
            room = _served_room(options, engine, source)
            probed, reference = _probe_served(options, engine, source, stack, say)
        elif options.validate and probed is None:
            probed = _probe_now(options, engine, source, say)
        cost = _cost(options, probed)
        if options.serves:
            caching = not options.no_prefix_caching
            cost = replace(cost, device=DeviceRoom(cost.token_bytes, given=room, caching=caching))
        cards = cost.device_price * cost.cards * options.replicas
        if options.gpu_price is None:
            prices = replace(prices, cards=cards)
        goal = options.goal(priced=prices.cards > 0)
        study = Study(
            source.arrays,
            cost,
            prices,
            1.0 if options.made else options.speed_up,
            source.load.concurrency,
            goal,
            options.replicas,
            options.routing,
        )
        study.reported, study.any_position = source.reported, source.any_position
        if options.replicas > 1 and not study.plain(study.without):
            raise UserError(
                f"--replicas: {cost.model}'s layers keep different things, so no order of chunks"
                " decides its hits, and replicas can't be replayed; size one of them"
            )
        larger = None if probed is not None else partial(_more_cards, options)
        found = search(study, goal, source.chunks, say, larger)
        if engine is not None and probed is not None:
            p50, p90 = options.tolerances()
            validation = validate(
                study,
                source,
                engine,
                neighbours(found.chosen.stack),
                tolerance=Tolerance(p50, p90, SERVED_HITS if options.serves else 0.0),
                folder=options.out,
                repeats=options.repeat,
                prefill_points=probed.prefill_points,
                reference=reference,
                on_step=say,
            )
    if json_file == "-":
        source.warnings[:0] = source.heading
    for warning in (*source.warnings, *(validation.warnings if validation else ())):
        talk.print(f"warning: {warning}", style="yellow", highlight=False)
    if json_file is not None:
        write_output(json_file, tune_json_text(study, found, source.chunks, validation))
    if json_file != "-":
        for line in source.heading:
            Console().print(line, highlight=False, markup=False)
        print_report(Console(), study, found, validation)
    if validation:
        return validation.exit_code
    return 0 if found.keeps_bounds else EXIT_INCONCLUSIVE


def _check_devices(options: TuneOptions) -> None:
    """Raises ``UserError`` for cards over which vLLM does not split the model."""
    model = find_architecture(options.model or _DEFAULT_MODEL)
    splits = model.splits()
    if splits and options.devices not in splits:
        kv = {kind.heads for kind in model.kept if kind.heads and kind.keeps != "state"}
        heads = f"{model.heads} heads" + "".join(f", {n} of KV" for n in sorted(kv - {model.heads}))
        raise UserError(
            f"--devices: {options.devices} cards do not divide the attention of {model.name}"
            f" ({heads}), which vLLM refuses as --tensor-parallel-size; those that do:"
            f" {', '.join(map(str, splits))}"
        )


def _check_model(options: TuneOptions, probed: ProbedEngine | None) -> None:
    if probed is not None and options.model not in (None, probed.asked, probed.model):
        raise UserError(
            f"--model: the probe {probed.source} is of {probed.asked}; leave --model out, or probe"
            f" {options.model}: lmcache probe --model {options.model}"
        )


def _named(options: TuneOptions, probed: ProbedEngine | None) -> str | None:
    """Returns the model that is loaded here; None is the embedded one."""
    asked = probed.asked if probed is not None else options.model or "embedded"
    return None if asked == "embedded" else asked


def _start(options: TuneOptions, probed: ProbedEngine | None, say: Say) -> Engine:
    from lmcache_cli.engines.start import start_engine

    if options.serves:
        from lmcache_cli.engines.http.settings import ServerSettings

        serving = ServerSettings(args=options.serving_args(), folder=options.out, say=say)
        return start_engine("vllm", _named(options, None), "auto", "auto", serving)

    device, dtype = "cpu", "auto"
    if probed is not None:
        device, dtype = str(probed.facts["device"]), str(probed.facts["dtype"])
    probe = options.probe if options.engine == "simulated" else None
    model = _named(options, probed)
    return start_engine(options.engine, model, device, dtype, probe=probe)


def _source(
    options: TuneOptions, probed: ProbedEngine | None, engine: Engine | None, say: Say
) -> RequestSource:
    if not options.made:
        return trace_source(options, say)
    bench = options.made_bench()
    if engine is not None and options.serves:
        from lmcache_cli.engines.http.engine import SALT_TOKENS

        own = SALT_TOKENS, OWN_BLOCK_TOKENS
        return made_source(options, bench, engine.encode, engine.bos, *own, say)
    if engine is not None:
        return made_source(options, bench, engine.encode, engine.bos, say=say)
    if probed is None:
        from lmcache_cli.engines.simulated import encode_words

        source = made_source(options, bench, encode_words, None, say=say)
        source.warnings.append("a model of the catalogue has no tokenizer here: a word is a token")
        return source
    try:
        from lmcache_cli.engines.transformers.models import load_vocabulary
    except ImportError as error:
        raise MissingError(
            f"{options.source}: the tokenizer of {probed.model} needs the package {error.name};"
            " run: pip install 'lmcache-bench[transformers]'"
        ) from error
    return made_source(options, bench, *load_vocabulary(_named(options, probed)), say=say)


def _probe_now(
    options: TuneOptions, engine: Engine | None, source: RequestSource, on_step: Say
) -> ProbedEngine:
    """Probes the engine that is about to validate, with prompts as long as those that come."""
    from lmcache_cli.engines.transformers.engine import TransformersEngine
    from lmcache_cli.probe.engine import probe_engine

    assert isinstance(engine, TransformersEngine)
    longest = int(source.arrays.input_tokens.max()) + 1
    context = min(max(longest, _LEAST_CONTEXT), engine.max_context)
    found: dict[str, Any] = asdict(
        probe_engine(
            engine,
            options.out,
            context,
            _PROBE_REPEATS,
            on_step=on_step,
            asked=_named(options, None) or "embedded",
        )
    )
    return probed_engine(found, "measured just now")


def _probe_served(
    options: TuneOptions,
    engine: Engine | None,
    source: RequestSource,
    stack: ExitStack,
    say: Say,
) -> tuple[ProbedEngine, Prefill | None]:
    """Probes servers of the engine that is about to validate. The one that gives a reference of the
    machine's speed ends with ``stack``; None where one server at a time is up."""
    from lmcache_cli.engines.vllm.engine import VllmEngine
    from lmcache_cli.probe.served import ServedProbe

    assert isinstance(engine, VllmEngine)
    longest = int(source.arrays.input_tokens.max())
    largest = options.largest()
    tiers = [name for name in ("cpu", "disk") if largest[name]]
    [chunk] = source.chunks
    probe = ServedProbe(engine, options.out, longest, chunk, tiers or ["cpu"])
    stack.callback(probe.close)
    found = probe.measure(_PROBE_REPEATS, _named(options, None) or "embedded", say)
    reference = probe.prefill_s if engine.interleaves else None
    return probed_engine(asdict(found), "measured just now"), reference


def _served_room(options: TuneOptions, engine: Engine | None, source: RequestSource) -> int:
    """Returns the bytes that the servers are given for their own prefix cache. Raises ``UserError``
    for what they could not serve, before one is started."""
    from lmcache_cli.bench.requests import refuse_too_long
    from lmcache_cli.engines.vllm.engine import VllmEngine

    assert isinstance(engine, VllmEngine)
    refuse_too_long(engine, source.requests)
    room = engine.own_room()
    if options.device_kv is not None:
        room = parse_size(options.device_kv, "--device-kv")
    if room is None:
        raise UserError(
            "--device-kv: how much room vLLM has for KV on a GPU is in its log; say how much it is"
            " to have"
        )
    if not options.no_prefix_caching:
        longest = int((source.arrays.input_tokens + source.arrays.output_tokens).max())
        own_cache_flags(
            CacheSpec(source.chunks[0], {"device": room}), engine.token_bytes(), longest
        )
    return room


def _more_cards(options: TuneOptions, devices: int) -> RequestCost:
    """Returns the cost of so many cards; room that was given grows with them."""
    cost = _cost(replace(options, devices=devices), None)
    assert cost.device is not None
    if cost.device.given is None:
        return cost
    given = cost.device.given * devices // options.devices
    return replace(cost, device=replace(cost.device, given=given))


def _cost(options: TuneOptions, probed: ProbedEngine | None) -> RequestCost:
    if probed is not None:
        return probed_cost(probed, options.overlap)
    hardware = find_hardware(options.hardware or _DEFAULT_HARDWARE)
    model = find_architecture(options.model or _DEFAULT_MODEL)
    item_bytes = _ITEM_BYTES[options.dtype]
    given = options.device_kv
    cost = catalogue_cost(
        hardware,
        model,
        devices=options.devices,
        efficiency=options.efficiency,
        item_bytes=item_bytes,
        kv_item_bytes=_ITEM_BYTES[options.kv_dtype],
        token_bytes=options.kv_bytes_per_token,
        utilisation=options.gpu_memory_utilization,
        device_kv=None if given is None else parse_size(given, "--device-kv"),
        caching=not options.no_prefix_caching,
        disk_bytes_s=float(parse_size(options.disk_bandwidth, "--disk-bandwidth")),
        remote_bytes_s=float(parse_size(options.network_bandwidth, "--network-bandwidth")),
        overlap=options.overlap,
        stages=options.pipeline,
    )
    assert cost.device is not None
    if cost.device.nbytes <= 0:
        util = options.gpu_memory_utilization
        need = devices_needed(hardware, model, item_bytes, util, options.pipeline)
        takes = "no number of cards that divides its heads does: give --pipeline more stages"
        if need is not None:
            takes = f"it takes {need * options.pipeline}: --devices {need}"
            takes += f" --pipeline {options.pipeline}" if options.pipeline > 1 else ""
        raise UserError(
            f"--devices: {model.name}'s weights ({bytes_text(cost.device.weights)} in"
            f" {options.dtype}) leave no room for KV on {cost.cards} x {hardware.name}"
            f" ({bytes_text(cost.device.memory)}); {takes}"
        )
    return cost


_ITEM_BYTES = {"bfloat16": 2, "fp8": 1}
