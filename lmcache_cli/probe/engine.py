"""Measures an engine's own costs: prefill after what is cached, decode steps, loads from each tier.

The costs are measured through the very calls that serve requests: the engine's forward over its
buffer, and ``TieredCache.load`` into it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from cache_core.cache import TieredCache
from cache_core.groups import GroupedCache, GroupedLoad, KeptLayer
from cache_core.layout import KVLayout
from cache_core.sizing.prefill_cost import PrefillCost, fit, nonnegative_fit
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.measured_costs import TierCost
from lmcache_cli.errors import UserError
from lmcache_cli.options.probe import ProbeFlags
from lmcache_cli.probe.media import Figure, ProbeError, figure_of

if TYPE_CHECKING:
    from lmcache_cli.engines.transformers.engine import TransformersEngine

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
CHUNKS = (16, 64, 256)
_STEPS = 4
"""The number of decode steps per round and place."""
_LEAST_CONTEXT = 64
_NO_TIME = 1e-9


@dataclass(frozen=True, slots=True)
class PrefillFigure:
    """The time of ``new`` tokens computed after ``cached`` ones, to the first token."""

    new: int
    cached: int
    time: Figure


@dataclass(frozen=True, slots=True)
class StepFigure:
    """The time of one decode step after ``cached`` tokens."""

    cached: int
    time: Figure


@dataclass(frozen=True, slots=True)
class LoadFigure:
    """The time of a hit of ``chunks`` chunks, found and loaded into the engine's memory."""

    tier: str
    chunk_tokens: int
    chunks: int
    nbytes: int
    time: Figure


@dataclass(frozen=True, slots=True)
class EngineProbe:
    """What was measured of an engine, and the costs fitted to the medians. ``prefill_range`` are
    fits to the shortest and the longest times. ``worst`` is the fit's greatest relative error at a
    point."""

    facts: dict[str, object]
    asked: str
    """The model as it was named; ``embedded`` for the embedded one."""
    layout: KVLayout
    """The KV layout of one token."""
    kept: tuple[KeptLayer, ...]
    """The layers of a model whose layers keep different things."""
    prefill: PrefillCost
    prefill_range: tuple[PrefillCost, PrefillCost]
    worst: float
    decode_s: float
    decode_token_s: float
    tiers: dict[str, TierCost]
    prefill_figures: tuple[PrefillFigure, ...]
    step_figures: tuple[StepFigure, ...]
    load_figures: tuple[LoadFigure, ...]


def probe_engine(
    engine: TransformersEngine,
    folder: Path,
    context: int,
    repeats: int,
    remote: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
    asked: str = "embedded",
) -> EngineProbe:
    """Measures an engine with prompts of up to ``context`` tokens, every point once a round in an
    order drawn anew, so that a drift of the machine hits all points alike. Files of the disk tier
    are made in ``folder`` and removed. Raises ``UserError`` for a context that is too short or too
    long."""
    if not _LEAST_CONTEXT <= context <= engine.max_context:
        raise UserError(
            f"--context-tokens: {context} must be from {_LEAST_CONTEXT} to {engine.max_context}"
            f" (the context of {engine.model})"
        )
    with ExitStack() as stack:
        points = _prefills(engine, context)
        points |= _steps(engine, context)
        points |= _loads(engine, folder, context, remote, stack)
        times: dict[_Point, list[float]] = {point: [] for point in points}
        order = random.Random(0)
        for number in range(repeats):
            on_step(f"engine {engine.model}: round {number + 1} of {repeats}")
            for point in order.sample(list(points), len(points)):
                times[point] += points[point]()
    return _fitted(engine, asked, times)


@dataclass(frozen=True, slots=True)
class _Point:
    """What is timed: a prefill, a step or a load (``tier`` is set)."""

    new: int = 0
    cached: int = 0
    tier: str = ""
    chunk_tokens: int = 0
    nbytes: int = 0


_Timed = Callable[[], list[float]]


def _prefills(engine: TransformersEngine, context: int) -> dict[_Point, _Timed]:
    ids = _tokens(engine, context)
    engine.reserve(context)
    engine.warm_up(context - 2)
    buffer = engine.kv_buffer()
    engine.forward(buffer, ids[:-1], 0)  # KV for what is cached
    pairs = {
        (new, cached)
        for cached in (0, context // 4, context // 2)
        for new in (*LENGTHS, context // 2)
        if new + cached < context and new <= context // 2
    } | {(context - 1, 0)}

    def timed(new: int, cached: int) -> list[float]:
        began = time.perf_counter()
        int(engine.forward(buffer, ids[cached : cached + new], cached).argmax())
        return [time.perf_counter() - began]

    return {_Point(n, m): lambda n=n, m=m: timed(n, m) for n, m in sorted(pairs)}  # type: ignore[misc]


def _steps(engine: TransformersEngine, context: int) -> dict[_Point, _Timed]:
    ids, buffer = _tokens(engine, context), engine.kv_buffer()

    def timed(cached: int) -> list[float]:
        found = []
        for _ in range(_STEPS):
            began = time.perf_counter()
            int(engine.forward(buffer, ids[cached : cached + 1], cached).argmax())
            found.append(time.perf_counter() - began)
        return found

    places = (8, context // 2, context - 2)
    return {_Point(1, m): lambda m=m: timed(m) for m in places}  # type: ignore[misc]


def _loads(
    engine: TransformersEngine,
    folder: Path,
    context: int,
    remote: str | None,
    stack: ExitStack,
) -> dict[_Point, _Timed]:
    found: dict[_Point, _Timed] = {}
    names = ["cpu", "disk", *(["remote"] if remote else [])]
    if engine.loaded.device.type != "cpu":
        names.insert(0, "device")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(stack.enter_context(TemporaryDirectory(dir=folder, prefix=".lmcache-probe-")))
    for name in names:
        for size in (size for size in CHUNKS if size <= context // 2):
            room = _room(engine, context, size)
            spec = CacheSpec(
                size,
                {name: 0 if name == "remote" else room},
                salt=f"probe {uuid4().hex}",
                folder=scratch / f"{name}-{size}",
                remote=remote or "",
            )
            found |= _loads_of(engine, spec, name, context, stack)
    return found


def _room(engine: TransformersEngine, context: int, size: int) -> int:
    """Returns the bytes of a tier that holds a context, whatever it keeps for itself."""
    most = 4 * engine.token_bytes() * (context + 4 * size)
    if engine.kept_layers():
        slots = len(engine.groups(size)) * (context // size + 4)
        most = 2 * slots * engine.layout(size).chunk_bytes
    return most + (8 << 20)


def _loads_of(
    engine: TransformersEngine, spec: CacheSpec, name: str, context: int, stack: ExitStack
) -> dict[_Point, _Timed]:
    from cache_core.keys import ChunkHasher
    from lmcache_cli.engines.transformers.open_cache import open_cache

    namespace = engine.namespace(spec)
    cache: TieredCache = open_cache(spec, namespace, engine.loaded.device)
    stack.callback(cache.close)
    buffer = engine.kv_buffer()
    size = spec.chunk_tokens
    keys = tuple(ChunkHasher(namespace).keys(_tokens(engine, context)).prefix)
    counts = sorted({1, max(1, len(keys) // 4), len(keys)})
    if engine.kept_layers():
        return _grouped_loads(engine, GroupedCache(cache, engine.groups(size)), keys, counts, name)
    cache.store(keys, buffer.chunks(cache.layout, 0, len(keys), 1)).result()
    chunk_bytes = cache.layout.chunk_bytes

    def timed(count: int) -> list[float]:
        began = time.perf_counter()
        hit = cache.acquire(keys[:count])
        loaded = cache.load(hit, buffer.chunks(cache.layout, 0, len(hit), engine.threads))
        seconds = time.perf_counter() - began
        if loaded.chunks != count or loaded.by_tier.get(name) != count:
            raise ProbeError(f"engine probe failed: {name} lost {count - loaded.chunks} chunks")
        return [seconds]

    for count in counts:
        timed(count)  # warms up, and is not counted
    return {
        _Point(0, count * size, name, size, count * chunk_bytes): lambda c=count: timed(c)  # type: ignore[misc]
        for count in counts
    }


def _grouped_loads(
    engine: TransformersEngine,
    grouped: GroupedCache,
    keys: tuple[bytes, ...],
    counts: Sequence[int],
    name: str,
) -> dict[_Point, _Timed]:
    from lmcache_cli.engines.transformers.layer_groups import GroupedBuffer

    buffer, groups, size = engine.kv_buffer(), grouped.prompts.groups, grouped.prompts.chunk_tokens
    assert isinstance(buffer, GroupedBuffer)
    kept = dict.fromkeys(counts, buffer.states())
    grouped.store(keys, counts, lambda rows: buffer.rows(rows, groups, size, kept)).result()

    def load(count: int) -> GroupedLoad:
        loaded = grouped.load(keys[:count], lambda rows: buffer.rows(rows, groups, size))
        if loaded.chunks != count or set(loaded.from_tiers) != {name}:
            raise ProbeError(f"engine probe failed: {name} lost {count - loaded.chunks} chunks")
        return loaded

    def timed(count: int) -> list[float]:
        began = time.perf_counter()
        load(count)
        return [time.perf_counter() - began]

    return {
        _Point(0, count * size, name, size, load(count).bytes): lambda c=count: timed(c)  # type: ignore[misc]
        for count in counts
    }


def _tokens(engine: TransformersEngine, count: int) -> NDArray[np.int32]:
    rng = np.random.default_rng(0)
    return rng.integers(0, engine.loaded.text_config.vocab_size, count).astype(np.int32)


def _fitted(
    engine: TransformersEngine, asked: str, times: dict[_Point, list[float]]
) -> EngineProbe:
    prefills, steps, loads = [], [], []
    for point, values in times.items():
        figure = figure_of(values, "s")
        if point.tier:
            size = point.chunk_tokens
            chunks = point.cached // size
            loads.append(LoadFigure(point.tier, size, chunks, point.nbytes, figure))
        elif point.new == 1:
            steps.append(StepFigure(point.cached, figure))
        else:
            prefills.append(PrefillFigure(point.new, point.cached, figure))
    cost = fitted_prefill(prefills, lambda figure: figure.median)
    return EngineProbe(
        engine.facts(),
        asked,
        engine.layout(1),
        tuple(engine.kept_layers()),
        cost,
        (
            fitted_prefill(prefills, lambda figure: figure.low),
            fitted_prefill(prefills, lambda figure: figure.high),
        ),
        max(abs(cost.seconds(f.new, f.cached) / f.time.median - 1) for f in prefills),
        *fitted_step(steps),
        {
            name: _tier_cost([f for f in loads if f.tier == name])
            for name in dict.fromkeys(f.tier for f in loads)
        },
        tuple(prefills),
        tuple(steps),
        tuple(loads),
    )


def fitted_prefill(figures: Sequence[PrefillFigure], of: Callable[[Figure], float]) -> PrefillCost:
    """Fits the cost of prefill to ``of`` each figure's time, in seconds."""
    rows = np.array([(1.0, f.new, f.new * (f.cached + f.new / 2)) for f in figures])
    found = fit(rows, np.array([of(f.time) for f in figures]))
    assert found is not None
    return found


def fitted_step(figures: Sequence[StepFigure]) -> tuple[float, float]:
    """Fits a decode step's seconds, and those for each token in front of it, to the medians."""
    found = nonnegative_fit(
        np.array([(1.0, f.cached) for f in figures]), np.array([f.time.median for f in figures])
    )
    assert found is not None
    return float(found[0]), float(found[1])


def _tier_cost(figures: Sequence[LoadFigure]) -> TierCost:
    """Fits a tier's costs: several chunk lengths separate a chunk's fixed cost from that of its
    bytes."""
    rows = np.array([(1.0, f.chunks, f.nbytes) for f in figures], dtype=np.float64)
    found = nonnegative_fit(rows, np.array([f.time.median for f in figures]))
    assert found is not None
    call, fixed, per_byte = map(float, found)
    return TierCost(1 / max(per_byte, _NO_TIME * 1e-9), fixed, call)


def probe_model(flags: ProbeFlags, on_step: Callable[[str], None]) -> EngineProbe:
    """Loads the model (``embedded``: the embedded one) into the engine transformers and measures
    it. The longest prompt is shortened to the model's context. Raises ``UserError``."""
    from lmcache_cli.engines.start import start_engine

    name = None if flags.model == "embedded" else flags.model
    on_step("loading the model")
    engine: Any = start_engine("transformers", name, flags.device, flags.dtype)
    most = min(flags.context_tokens, engine.max_context)
    asked = name or "embedded"
    try:
        return probe_engine(
            engine, flags.disk_path, most, flags.repeat, flags.remote, on_step, asked
        )
    finally:
        engine.close()
