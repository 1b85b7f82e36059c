"""Runs both sides in this process, on one loaded engine: they take turns request by request."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lmcache_cli.bench.cells import BenchPlan, Cell
from lmcache_cli.bench.measure import Measured, measure_cells
from lmcache_cli.bench.plan import make_plan
from lmcache_cli.bench.preflight import check_places
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.bench.requests import engine_requests, make_requests
from lmcache_cli.check.side import LATE, Budget, OutOfTime, with_default_reuse
from lmcache_cli.check.stored_runs import facts_of
from lmcache_cli.engines.engine import Engine
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import UserError
from lmcache_cli.machine import machine
from lmcache_cli.modes.blend import verified
from lmcache_cli.options.bench import BenchOptions
from reports.sample import Sample
from reports.units import seconds_text
from reports.verdict.judge import least_values
from reports.verdict.round import round_of
from reports.verdict.rule import Rule
from reports.verdict.trial import Comparison
from workloads import warming

_SAME_ENGINE = (
    "engine",
    "model",
    "device",
    "dtype",
    "url",
    "vllm_args",
    "probe",
    "hardware",
    "jitter",
)
_SAME_LOAD = ("rate", "concurrency")
_AFTER_FIRST = ("itl.", "tpot.")


def engine_differences(base: BenchOptions, new: BenchOptions) -> list[str]:
    """Returns the flags, with both values, by which one engine can't serve both sides; none where
    only the cache differs."""
    found = []
    for name in _SAME_ENGINE:
        one, other = getattr(base, name), getattr(new, name)
        if one != other:
            shown = " and ".join("the default" if v is None else str(v) for v in (one, other))
            found.append(f"--{name.replace('_', '-')} ({shown})")
    return found


def plan_of(options: BenchOptions, out: Path, needed: Sequence[Rule]) -> BenchPlan:
    """Returns the plan of a side. Raises ``UserError`` for flags that bench refuses, and for a rule
    in ``needed`` that can't be judged."""
    plan = make_plan(with_default_reuse(options), out)
    _refuse_too_few(plan, needed)
    return plan


@dataclass(slots=True)
class InProcess:
    """The cells of ``plans`` (one plan per side), which are measured in pairs."""

    plans: Sequence[BenchPlan]
    seed: int
    out: Path
    measured: Measured = field(default_factory=Measured)
    _pairs: list[tuple[Cell, ...]] = field(default_factory=list)
    _round_began: float = 0.0

    @classmethod
    def of(
        cls, options: Sequence[BenchOptions], seed: int, out: Path, needed: Sequence[Rule] = ()
    ) -> InProcess:
        """Plans the sides and pairs their cells. Raises ``UserError`` for flags that bench refuses,
        for sides that don't serve the same requests to as many cells, and for a rule in ``needed``
        that can't be judged."""
        plans = [plan_of(each, out, needed) for each in options]
        if len(plans) == 2:
            _refuse_unlike(*plans)
        return cls(plans, seed, out, _pairs=_pairs(plans))

    def facts(self) -> dict[str, str]:
        """Returns the facts of the last plan's side that are known before it runs, as those of a
        stored run."""
        plan = self.plans[-1]
        asked = json.loads(json.dumps(plan.config(), default=str))
        meta = {"config": asked, "machine": machine()}
        cells = [
            cell.meta(plan.scenarios[cell.scenario], plan.options.engine, "") for cell in plan.cells
        ]
        found = facts_of(meta, cells)
        # What the engine calls its model is known when it runs.
        del found["model"]
        return found

    def comparisons(self) -> list[Comparison]:
        """Returns one comparison per pair of cells, without rounds."""
        found = []
        for pair in self._pairs:
            scenario = self.plans[0].scenarios[pair[0].scenario]
            length = f" {scenario.settings.context_tokens}" if len(self._pairs) > 1 else ""
            tiers = "+".join(pair[0].spec.tiers)
            found.append(Comparison(f"{scenario.workload}{length} {pair[0].reuse} {tiers}".strip()))
        names = [comparison.cell for comparison in found]
        for i, comparison in enumerate(found):
            if names.count(comparison.cell) > 1:
                comparison.cell += f" #{i + 1}"
        return found

    def run(
        self,
        comparisons: Sequence[Comparison],
        budget: Budget,
        settled: Callable[[Comparison], bool],
        progress: BenchProgress,
    ) -> None:
        """Adds rounds to each comparison until it is settled or the budget is spent. With one plan
        only the candidate's rounds are added."""
        options = self.plans[0].options
        for plan in self.plans:
            check_places(plan)
        progress.phase(f"loading engine {options.engine}")
        engine = start_engine(
            options.engine,
            options.model,
            options.device,
            options.dtype,
            self.plans[0].serving(self.out, progress.phase),
            options.jitter,
            options.probe,
            options.hardware,
        )
        try:
            warn = self.measured.warn
            self.plans = [verified(plan, engine, warn, warn) for plan in self.plans]
            self._pairs = _pairs(self.plans)
            for i, comparison in enumerate(comparisons):
                rounds = self._rounds(
                    self._pairs[i],
                    comparison,
                    settled,
                    partial(budget.spent, cell=i, cells=len(comparisons)),
                )
                late = partial(budget.late, cell=i, cells=len(comparisons))
                try:
                    self._serve(engine, self._pairs[i], comparison.cell, rounds, progress, late)
                except OutOfTime as error:
                    warn(f"{comparison.cell}: {error}")
        finally:
            engine.close()
            for plan in self.plans:
                if plan.scratch is not None:
                    shutil.rmtree(plan.scratch, ignore_errors=True)

    def _serve(
        self,
        engine: Engine,
        pair: Sequence[Cell],
        name: str,
        rounds: Iterator[int],
        progress: BenchProgress,
        late: Callable[[], bool],
    ) -> None:
        plan = self.plans[0]
        scenario = plan.scenarios[pair[0].scenario]
        warn = self.measured.warn
        requests = engine_requests(scenario, plan.corpus, engine, warn, warn)
        progress.phase(f"{name}: warming up")

        served: Counter[int] = Counter()

        def label(cell: Cell, sample: Sample) -> None:
            progress.served(f"{name} round {sample.repeat + 1}", sample)
            served[sample.repeat] += 1
            if late():
                done, total = served[sample.repeat], len(requests) * len(pair)
                took_s = time.monotonic() - self._round_began
                lasts = seconds_text(took_s * total / done)
                raise OutOfTime(
                    f"{LATE}: {done} of its {total} requests took {seconds_text(took_s)}, so a"
                    f" round takes about {lasts}, and even counters need two"
                )

        measure_cells(
            engine,
            scenario,
            requests,
            pair,
            plan.load,
            rounds,
            self.measured,
            label,
            warming(requests) if scenario.warm else [],
            random.Random(self.seed),
        )

    def _rounds(
        self,
        pair: Sequence[Cell],
        comparison: Comparison,
        settled: Callable[[Comparison], bool],
        spent: Callable[[int, float], bool],
    ) -> Iterator[int]:
        """Yields round numbers for :func:`.measure_cells`; between them the last round is
        judged."""
        measured = self.measured
        closed = self.plans[0].load.concurrency is not None  # else arrivals set the pace
        number = 0
        busy = [0.0] * len(pair)
        evicted = [0] * len(pair)
        while True:
            seen = len(measured.samples)
            began = self._round_began = time.monotonic()
            yield number
            number += 1
            sides = [comparison.base, comparison.new][-len(pair) :]
            for i, (cell, side) in enumerate(zip(pair, sides, strict=True)):
                before_s, before = busy[i], evicted[i]
                busy[i] = measured.busy_of(cell.index)
                evicted[i] = sum(
                    counters.evicted_chunks
                    for counters in measured.counters.get(cell.index, {}).values()
                )
                samples = [s for s in measured.samples[seen:] if s.cell == cell.index]
                spent_s = busy[i] - before_s if closed else None
                side.append(round_of(samples, spent_s, evicted[i] - before))
            if settled(comparison) or spent(number, time.monotonic() - began):
                return


def _pairs(plans: Sequence[BenchPlan]) -> list[tuple[Cell, ...]]:
    """Pairs the sides' cells side by side, numbered throughout."""
    sides = [plan.cells for plan in plans]
    count = len(sides[0])
    return [
        tuple(replace(side[i], index=i + number * count) for number, side in enumerate(sides))
        for i in range(count)
    ]


def _refuse_too_few(plan: BenchPlan, rules: Sequence[Rule]) -> None:
    """Raises ``UserError`` for a rule on a percentile, or on gaps between tokens, of which a round
    of the plan has too few values. No engine is needed: how many requests there are, and how long
    their answers may be, does not depend on its tokens."""
    rules = [r for r in rules if least_values(r.metric) > 1 or r.metric.startswith(_AFTER_FIRST)]
    for scenario in plan.scenarios if rules else ():
        if scenario.examples:
            count = len(scenario.examples[: scenario.settings.requests])
            lengths = [scenario.settings.output_tokens] * count
        else:
            requests = make_requests(scenario, plan.corpus, _by_byte, None, lambda text: None)
            lengths = [request.max_tokens for request in requests]
        values = {
            "itl": ("gaps between tokens", sum(length - 1 for length in lengths)),
            "tpot": ("requests of several tokens", sum(length > 1 for length in lengths)),
        }
        for rule in rules:
            what, has = values.get(rule.metric.partition(".")[0], ("requests", len(lengths)))
            if has < (least := least_values(rule.metric)):
                raise UserError(
                    f"--fail-on: {rule} can't be judged: a round of {scenario.workload} has {has}"
                    f" {what}, and it needs {least}; ask for more, or for another statistic"
                )


def _by_byte(text: str) -> list[int]:
    return list(text.encode())


def _refuse_unlike(base: BenchPlan, new: BenchPlan) -> None:
    for name in _SAME_LOAD:
        one, other = getattr(base.options, name), getattr(new.options, name)
        if one != other:
            raise UserError(f"--{name} differs ({one} and {other}): both sides need the same load")
    if base.scenarios != new.scenarios or base.options.corpus != new.options.corpus:
        raise UserError(
            "the sides don't serve the same requests; give both the same workloads, lengths and"
            " --seed, and let only the cache or engine differ"
        )
    if len(base.cells) != len(new.cells):
        raise UserError(
            f"the baseline has {len(base.cells)} cells and the candidate {len(new.cells)}; sweep"
            " as many values on both sides, or none"
        )
