"""Fits a bench into a time: measures how fast the engine is, foretells how long a plan takes, and
makes it smaller, or repeats it, until that is the time that there is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from cache_core.sizing.prefill_cost import PrefillCost, fit
from lmcache_cli.bench.cells import SWEPT_BY_CONTEXT, BenchPlan, Cell, Scenario
from lmcache_cli.bench.plan import make_plan
from lmcache_cli.bench.requests import engine_requests
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Engine, Load
from lmcache_cli.errors import UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.options.flags import flag_name
from lmcache_cli.sizes import parse_count, parse_duration, parse_list
from reports.sample import Sample
from reports.units import seconds_text
from workloads import GeneratedCorpus, warming
from workloads.documents import NATURAL_REQUESTS
from workloads.request import Part, Prompt, Request
from workloads.tokens import TokenReader

MOST_REPEATS = 20
"""Repeats beyond which an interval hardly gets narrower."""
_FIRST_TOKENS, _FEWEST_POINTS = 128, 3
_OUTPUT_TOKENS = 8
_PROBE_S = 1.0
"""A prefill that takes as long is the last one of a probe."""
_LEAST_TOKENS, _LEAST_REQUESTS, _LEAST_SESSIONS = 100, 8, 2
_STEP = 100
_HALVINGS = 6
# What a probe does not see: stores, loads, the requests' making, a machine that heats up.
_BESIDE = 1.1


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an engine serves: ``prefill`` is the formula for the first token, ``decode_s`` the
    seconds of each further one. The defaults weigh parts of a bench where nothing was measured."""

    prefill: PrefillCost = field(default_factory=lambda: PrefillCost(0.03, 1.5e-3, 2.7e-7))
    decode_s: float = 0.06
    points: tuple[tuple[int, float], ...] = ()
    """What was measured: prompt tokens, seconds to the first token."""

    def seconds(self, prompt: int, hit: int, output: int) -> float:
        """Returns the seconds of a request, of whose ``prompt`` tokens a cache has ``hit``."""
        return self.prefill.seconds(prompt - hit, hit) + self.decode_s * max(0, output - 1)

    def of(self, cell: Cell, prompt: int, hit: int, output: int) -> float:
        """Returns the seconds of a cell's request with what is done for it behind its answer: for
        blend that is a full prefill to learn from, or to compare with."""
        beside = self.seconds(prompt, 0, output) if cell.spec.blend else 0.0
        return self.seconds(prompt, hit, output) + beside

    def took(self, cell: Cell, sample: Sample) -> float:
        """Returns the seconds that a request which was served takes by this pace."""
        hit = sum(sample.hit_tokens.values())
        return self.of(cell, sample.prompt_tokens, hit, sample.output_tokens)


def measure_pace(engine: Engine, longest: int) -> Pace:
    """Serves prompts of doubling length without reuse, until one is as long as the ``longest`` to
    come or takes a second: a few seconds in all. Raises ``UserError`` if one fails."""
    length = min(_FIRST_TOKENS, longest)
    output = max(1, min(_OUTPUT_TOKENS, engine.max_context - longest))
    reader = TokenReader(GeneratedCorpus(1), engine.encode, engine.bos)
    # A running server may have what an earlier probe has sent it.
    spec = CacheSpec(64, salt=f"pace {time.time_ns()}", mode="off")
    session = engine.open(spec, longest + output)
    points: list[tuple[int, float]] = []
    steps: list[float] = []
    try:
        session.ready()
        engine.warm_up(length)
        while True:
            prompt = Prompt("pace", "pace", (Part("document", reader.read(length, first=True)),))
            for sample in session.serve([prompt.request(0.0, output)], Load()):
                if sample.error is not None:
                    raise UserError(f"--time-budget: the probe's request failed: {sample.error}")
                points.append((length, sample.first_token_s - sample.sent_s))
                rest = sample.finished_s - sample.first_token_s
                steps.append(rest / max(1, sample.output_tokens - 1))
            slow = points[-1][1] >= _PROBE_S and len(points) >= _FEWEST_POINTS
            if length >= longest or slow:
                break
            length = min(longest, 2 * length)
    finally:
        session.close()
    lengths = np.array([float(n) for n, _ in points])
    # Few points settle no constant beside the slope: all of it is taken to be the tokens'.
    ones = np.ones_like(lengths) * (len(points) > _FEWEST_POINTS)
    features = np.stack([ones, lengths, lengths**2 / 2], axis=1)
    found = fit(features, np.array([seconds for _, seconds in points]))
    assert found is not None, "a clock that stands still"
    return Pace(found, float(np.median(steps)), tuple(points))


def cell_seconds(
    engine: Engine,
    cell: Cell,
    requests: Sequence[Request],
    pace: Pace,
    first: Sequence[Request] = (),
) -> float:
    """Returns how long one repeat of a cell takes, from a cold start, with what is served ``first``
    to warm it; hits that can't be foretold are none."""
    try:
        room = engine.tier_capacity(cell.spec)
    except UserError:
        return 0.0  # it will be refused, and the others go on
    oracle = cell.mode.oracle(cell.spec, room, engine.bos) if cell.spec.reuse else None
    warm = cell.mode.warming(first, cell.spec, room) if cell.spec.reuse and first else ()
    served = [*warm, *requests]
    hits = [oracle.expect(request) if oracle else 0 for request in served]
    return sum(
        pace.of(cell, len(request.token_ids), hit, request.max_tokens)
        for request, hit in zip(served, hits, strict=True)
    )


def _asked_text(value: Any) -> str:
    return "else the workload's own" if value is None else f"asked: {value}"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A plan that fits a time. ``asked`` and ``chosen`` are the flags that differ, by name."""

    plan: BenchPlan
    seconds: float
    expected_s: float
    pace: Pace
    asked: Mapping[str, Any]
    chosen: Mapping[str, Any]

    def text(self) -> str:
        """Returns what was chosen and why, on one line."""
        length, slowest = self.pace.points[-1]
        changes = [
            f"{flag_name(name)} {value} ({_asked_text(self.asked[name])})"
            for name, value in self.chosen.items()
        ]
        return (
            f"sized to {seconds_text(self.seconds)} by a probe (a prompt of {length:,} tokens took"
            f" {seconds_text(slowest)}): {', '.join(changes) or 'as asked'}; about"
            f" {seconds_text(self.expected_s)}"
            + (self._too_long() if self.expected_s > 1.2 * self.seconds else "")
        )

    def _too_long(self) -> str:
        minutes = ceil(self.expected_s / 60) + 1  # and its start
        return (
            f", which is the least that there is: --time-budget {minutes}m would be kept, or give a"
            " smaller --model"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what was measured and chosen, ready for JSON."""
        return {
            "asked_s": self.seconds,
            "expected_s": self.expected_s,
            "probe": [{"tokens": n, "ttft_ms": 1e3 * s} for n, s in self.pace.points],
            "asked": dict(self.asked),
            "chosen": dict(self.chosen),
        }


def fit_plan(plan: BenchPlan, engine: Engine, out: Path, began: float) -> Fitted:
    """Measures the engine and fits the plan into what is left of its ``--time-budget``, which began
    at ``began`` of ``time.monotonic``: the plan is repeated where it takes less, and where it takes
    more, contexts become shorter and requests fewer. Raises ``UserError`` as a plan does."""
    options = plan.options
    assert options.time_budget is not None
    seconds = parse_duration(options.time_budget, "--time-budget")
    plan = replace(plan, options=replace(options, time_budget=None))
    first = [_requests(plan, scenario, engine) for scenario in plan.scenarios]
    pace = measure_pace(engine, max(len(r.token_ids) for requests in first for r in requests))
    left = max(0.0, seconds - (time.monotonic() - began))
    once = _BESIDE * _plan_seconds(plan, engine, pace, first)
    if once > left:
        examples = max(len(scenario.examples) for scenario in plan.scenarios)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            share = (low + high) / 2
            tried = make_plan(_smaller(plan.options, share, examples), out)
            took = _BESIDE * _plan_seconds(tried, engine, pace)
            low, high = (share, high) if took <= left else (low, share)
        plan = make_plan(_smaller(plan.options, low, examples), out)
        once = _BESIDE * _plan_seconds(plan, engine, pace)
    # Where all cells will be refused there is nothing to repeat.
    repeats = max(1, min(MOST_REPEATS, int(left / once))) if once else 1
    plan = replace(plan, options=replace(plan.options, repeat=repeats))
    names = ("context_tokens", "passage_tokens", "sessions", "requests", "repeat")
    changed = [n for n in names if getattr(options, n) != getattr(plan.options, n)]
    asked = {name: getattr(options, name) for name in changed}
    chosen = {name: getattr(plan.options, name) for name in changed}
    return Fitted(plan, seconds, once * repeats, pace, asked, chosen)


def _requests(plan: BenchPlan, scenario: Scenario, engine: Engine) -> list[Request]:
    def nobody(text: str) -> None:
        """What the requests' making tells is told when they are made for the run."""

    return engine_requests(scenario, plan.corpus, engine, nobody, nobody)


def _plan_seconds(
    plan: BenchPlan, engine: Engine, pace: Pace, known: Sequence[Sequence[Request]] = ()
) -> float:
    """Returns how long one repeat of all cells takes."""
    total = 0.0
    for number, scenario in enumerate(plan.scenarios):
        requests = known[number] if known else _requests(plan, scenario, engine)
        first = warming(requests) if scenario.warm else []
        for cell in (cell for cell in plan.cells if cell.scenario == number):
            total += cell_seconds(engine, cell, requests, pace, first)
    return total / (plan.load.concurrency or 1 if engine.name == "openai" else 1)


def _requests_each(options: BenchOptions, examples: int) -> int | None:
    """Returns how many requests a workload has, the fewest of several, since ``--requests`` is for
    all of them; None where sessions alone make them, which are fewer instead."""
    if options.requests is not None:
        return options.requests
    if not set(options.workloads) - {"chat", "agent"}:
        return None
    own = {
        "rag": examples or NATURAL_REQUESTS,
        "chat": options.sessions * options.rounds,
        "agent": options.sessions * options.rounds,
    }
    asked = options.documents * options.questions
    return min(own.get(name, asked) for name in options.workloads)


def _smaller(options: BenchOptions, share: float, examples: int) -> BenchOptions:
    """Returns the options with that share of what makes each workload long."""
    workloads = set(options.workloads)
    changes: dict[str, Any] = {}
    if workloads & set(SWEPT_BY_CONTEXT) or options.dataset is not None:
        lengths = parse_list(options.context_tokens, "--context-tokens", parse_count)
        chunks = parse_list(options.chunk_tokens, "--chunk-tokens", parse_count)
        least = max(2 * _LEAST_TOKENS, 2 * max(chunks))
        shorter = [max(min(least, n), int(share * n) // _STEP * _STEP) for n in lengths]
        changes["context_tokens"] = ",".join(str(n) for n in dict.fromkeys(shorter))
    if "rag" in workloads and options.dataset is None:
        least = min(_LEAST_TOKENS, options.passage_tokens)
        changes["passage_tokens"] = max(least, int(share * options.passage_tokens))
    count = _requests_each(options, examples)
    if count is not None:
        fewer = max(min(_LEAST_REQUESTS, count), int(share * count))
        changes["requests"] = fewer if fewer < count else options.requests
    if workloads & {"chat", "agent"}:
        least = min(_LEAST_SESSIONS, options.sessions)
        changes["sessions"] = max(least, int(share * options.sessions))
    return replace(options, **changes)
