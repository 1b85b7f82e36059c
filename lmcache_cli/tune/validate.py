"""Compares predictions with measurements: the bench, on what was recommended and its neighbours."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from lmcache_cli.bench.cells import Cell
from lmcache_cli.bench.measure import Measured, measure_cells
from lmcache_cli.bench.plan import MODES
from lmcache_cli.bench.requests import refuse_too_long
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Engine
from lmcache_cli.engines.vllm.flags import POLL_S
from lmcache_cli.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, UserError
from lmcache_cli.tune.candidates import TierConfiguration
from lmcache_cli.tune.queueing import PERCENTILES, percentiles
from lmcache_cli.tune.source import RequestSource
from lmcache_cli.tune.study import Study
from reports.sample import Sample

Validity = Literal["confirmed", "refuted", "inconclusive"]
MOST_DRIFT = 0.1
"""The greatest drift of the machine's speed since the probe; beyond it times prove nothing."""
_REFERENCE_TOKENS = 128
REFERENCE_TOKENS_SERVED = 512
"""The tokens of a reference prefill of a server: of fewer, most of the time is HTTP's."""
SERVED_HITS = 0.01
"""The share of all prompt tokens by which a server's hits may differ from those predicted."""
Prefill = Callable[[int], float]
"""A function that computes a prompt of so many tokens that nothing has; returns the seconds."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The greatest relative errors of TTFT that are allowed, and of hits, as a share of all prompt
    tokens, tier by tier; 0: every request has to hit what was predicted."""

    p50: float = 0.15
    p90: float = 0.25
    hits: float = 0.0


@dataclass(frozen=True, slots=True)
class ValidationPoint:
    """One stack, predicted and measured. ``ttft`` in seconds by percentile; hits in tokens by tier,
    of all repeats. ``wrong`` requests hit other tokens than predicted; ``failed`` did not answer.
    """

    stack: TierConfiguration
    role: str
    requests: int
    predicted_hits: dict[str, int]
    measured_hits: dict[str, int]
    predicted_rate: float
    measured_rate: float
    predicted: dict[str, float]
    measured: dict[str, float]
    wrong: int
    failed: int
    tokens: int = 1
    """Tokens of all prompts, of all repeats."""

    def error(self, name: str) -> float:
        """Returns the relative error of a TTFT percentile: predicted over measured less 1."""
        return self.predicted[name] / self.measured[name] - 1

    @property
    def hits_exact(self) -> bool:
        """Returns whether every request hit what was predicted, tier by tier."""
        return self.wrong == 0 and self.failed == 0 and self.predicted_hits == self.measured_hits

    def hits_within(self, tolerance: Tolerance) -> bool:
        """Returns whether the hits of each tier, and of all together, are within the tolerance."""
        if not tolerance.hits or self.failed:
            return self.hits_exact
        apart = [self.predicted_rate - self.measured_rate]
        apart += [(n - self.measured_hits[t]) / self.tokens for t, n in self.predicted_hits.items()]
        return max(map(abs, apart)) <= tolerance.hits

    def times_within(self, tolerance: Tolerance) -> bool:
        """Returns whether TTFT p50 and p90 are within the tolerance."""
        return abs(self.error("p50")) <= tolerance.p50 and abs(self.error("p90")) <= tolerance.p90


@dataclass(frozen=True, slots=True)
class Validation:
    """The predictions and measurements of all stacks. ``drift``: how long a reference prefill took
    while it was measured, over what it took in the probe; None where none was run."""

    points: tuple[ValidationPoint, ...]
    tolerance: Tolerance
    engine: str
    model: str
    drift: float | None
    warnings: tuple[str, ...] = ()

    @property
    def drifted(self) -> bool:
        """Returns whether the machine was faster or slower than when it was probed."""
        return self.drift is not None and abs(self.drift - 1) > MOST_DRIFT

    @property
    def verdict(self) -> Validity:
        """Judges all points: hits have no excuse; times have one if the machine's speed changed."""
        if not all(point.hits_within(self.tolerance) for point in self.points):
            return "refuted"
        if all(point.times_within(self.tolerance) for point in self.points):
            return "confirmed"
        return "inconclusive" if self.drifted else "refuted"

    @property
    def exit_code(self) -> int:
        """Returns the exit code of the verdict: 0, 1 or 3."""
        codes = {"confirmed": 0, "refuted": EXIT_FAILED, "inconclusive": EXIT_INCONCLUSIVE}
        return codes[self.verdict]


def neighbours(stack: TierConfiguration) -> list[tuple[str, TierConfiguration]]:
    """Returns the stack and its neighbours, with half and twice of every tier that is bought."""
    if not stack.bought:
        return [("recommended", stack)]

    def times(factor: float) -> TierConfiguration:
        sizes = {n: s if n == "device" else int(s * factor) for n, s in stack.tiers}
        return replace(stack, tiers=tuple(sizes.items()))

    return [("smaller", times(0.5)), ("recommended", stack), ("larger", times(2))]


@dataclass
class _Drift:
    """Runs a reference prefill between requests, as long as that of ``points`` which has nearly so
    many ``tokens``, and waits for ``rest_s`` seconds, in which its server comes to rest."""

    prefill: Prefill
    points: Sequence[tuple[int, int, float]]
    tokens: int
    rest_s: float = 0.0
    ratios: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        alone = [point for point in self.points if point[1] == 0]
        self.new, _, self.usual = min(alone, key=lambda p: abs(p[0] - self.tokens))

    def run(self) -> None:
        self.ratios.append(self.prefill(self.new) / self.usual)
        time.sleep(self.rest_s)


def _embedded_prefill(engine: Any) -> Prefill:
    def run(tokens: int) -> float:
        ids: NDArray[np.int32] = np.arange(1, tokens + 1, dtype=np.int32)
        engine.kv_buffer()  # waits for what is still being stored from it
        buffer = engine.kv_buffer()
        began = time.perf_counter()
        int(engine.forward(buffer, ids, 0).argmax())
        return time.perf_counter() - began

    return run


def validate(
    study: Study,
    source: RequestSource,
    engine: Engine,
    stacks: Sequence[tuple[str, TierConfiguration]],
    *,
    tolerance: Tolerance,
    folder: Path,
    repeats: int = 1,
    prefill_points: Sequence[tuple[int, int, float]] = (),
    reference: Prefill | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Validation:
    """Serves the very requests of ``source`` from a cold start under every stack, side by side.
    One client: stacks take turns request by request, and the machine is timed with a prefill of
    ``prefill_points`` between them, the engine transformers' own or, for a server, ``reference``.
    Disk tiers are made in ``folder`` and removed. Raises ``UserError`` if a stack can't be opened
    or is not cold."""
    if source.scenario is None:
        raise UserError("--validate: these requests have no tokens that could be served")
    requests = list(source.requests)
    refuse_too_long(engine, requests)
    usable = [(role, s) for role, s in stacks if all(room > 0 for room in study.rooms(s))]
    scratch = folder / f"validate-{uuid4().hex[:8]}"
    cells = [
        Cell(i, 0, MODES[_mode(stack)], _spec(stack, scratch / str(i), study))
        for i, (_, stack) in enumerate(usable)
    ]
    for cell in cells:
        engine.tier_capacity(cell.spec)
    drift = None
    if prefill_points and source.load.concurrency == 1:
        if engine.name == "transformers":
            drift = _Drift(_embedded_prefill(engine), prefill_points, _REFERENCE_TOKENS)
        elif reference is not None:
            drift = _Drift(reference, prefill_points, REFERENCE_TOKENS_SERVED, POLL_S)
    measured = Measured()
    total = len(requests) * len(cells) * repeats
    order = random.Random(0)

    seen: set[tuple[int, int]] = set()
    driven: Any = engine if reference is None else _RunByRun(engine)

    def served(cell: Cell, sample: Sample) -> None:
        on_step(f"serving {len(measured.samples)} of {total}")
        run = cell.index, sample.repeat
        often = order.random() < 0.5 if reference is None else run not in seen
        seen.add(run)
        if drift is not None and often:
            drift.run()

    try:
        measure_cells(
            driven, source.scenario, requests, cells, source.load, range(repeats), measured, served
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    points = [
        _point(study, stack, role, [s for s in measured.samples if s.cell == i], repeats)
        for i, (role, stack) in enumerate(usable)
    ]
    return Validation(
        tuple(points),
        tolerance,
        engine.name,
        engine.model,
        median(drift.ratios) if drift is not None and drift.ratios else None,
        tuple(measured.warnings),
    )


class _RunByRun:
    """An engine of servers that take turns run by run, as clients have them: a server that has just
    answered is faster than one that was at rest."""

    interleaves = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _mode(stack: TierConfiguration) -> str:
    """Returns the reuse mode of a stack: ours, the engine's own alone, or none."""
    return "prefix" if stack.bought else "vllm" if stack.tiers else "off"


def _spec(stack: TierConfiguration, folder: Path, study: Study) -> CacheSpec:
    if not stack.bought:
        mode = _mode(stack)
        return CacheSpec(
            stack.chunk_tokens,
            stack.sizes,
            salt=f"validate {uuid4().hex}",
            mode=mode,
            foreign=mode == "vllm",
        )
    return CacheSpec(
        stack.chunk_tokens,
        stack.sizes,
        stack.policy,
        stack.placement,
        f"validate {uuid4().hex}",
        folder,
        "",
        stack.admission,
        int(study.goal.disk_writes(stack.sizes.get("disk", 0)))
        if stack.admission == "bytes-per-day"
        else 0,
    )


def _point(
    study: Study, stack: TierConfiguration, role: str, samples: Sequence[Sample], repeats: int
) -> ValidationPoint:
    hits = study.hits(stack)
    names = [name for name, _ in stack.tiers]
    whole = [s for s in samples if s.error is None]
    if not whole:
        raise UserError(f"--validate: every request failed: {samples[0].error}")
    wrong = 0
    for i, sample in enumerate(samples):
        row = hits[i % len(hits)].tolist()
        found = [sample.hit_tokens.get(name, 0) for name in names]
        wrong += sample.error is None and row != found
    predicted = {name: repeats * int(hits[:, i].sum()) for i, name in enumerate(names)}
    found_hits = {name: sum(s.hit_tokens.get(name, 0) for s in samples) for name in names}
    return ValidationPoint(
        stack,
        role,
        len(samples),
        predicted,
        found_hits,
        sum(predicted.values()) / (repeats * study.tokens),
        sum(found_hits.values()) / sum(s.prompt_tokens for s in samples),
        percentiles(study.run(stack).ttft, PERCENTILES),
        percentiles(np.array([s.ttft_s for s in whole]), PERCENTILES),
        wrong,
        len(samples) - len(whole),
        sum(s.prompt_tokens for s in samples),
    )
