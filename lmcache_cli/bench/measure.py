"""Runs cells side by side and keeps every raw sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from cache_core.plan import TierCounters
from lmcache_cli.bench.cells import Cell, Refusals, Scenario
from lmcache_cli.engines.engine import BlendEngine, Engine, Judging, Load, Session, Sharing
from lmcache_cli.errors import EXIT_FAILED, CellError, UserError
from lmcache_cli.machine import CpuMeter
from lmcache_cli.modes.mode import Oracle
from reports.quality import answer_of, scored
from reports.sample import Sample
from workloads import warming
from workloads.request import Request


class ContaminationError(UserError):
    """A cell that must be cold was not: its numbers mean nothing."""

    exit_code = EXIT_FAILED


@dataclass(slots=True)
class Measured:
    """Everything that a bench has measured so far; it survives an interruption."""

    samples: list[Sample] = field(default_factory=list)
    busy_s: dict[tuple[int, int], float] = field(default_factory=dict)
    """Seconds by cell and repeat in which the cell served or stored. Cells take turns, so wall time
    says nothing about one of them."""
    finished: set[tuple[int, int]] = field(default_factory=set)
    """Cells and repeats of which every request was served."""
    groups: list[list[int]] = field(default_factory=list)
    """The cells that were measured together, as indices."""
    requests: list[str] = field(default_factory=list)
    """A digest of each scenario's requests."""
    any_position: dict[int, float] = field(default_factory=dict)
    """By scenario, the share of tokens in parts that came before, wherever they stood."""
    began_s: float = 0.0
    """Seconds added to all times of samples: what a resumed run had measured ended there."""
    counters: dict[int, dict[str, TierCounters]] = field(default_factory=dict)
    chunk_bytes: dict[int, int] = field(default_factory=dict)
    troubles: dict[int, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    heading: list[str] = field(default_factory=list)
    """Warnings without which the numbers would be misread: they stand above the tables."""
    complete: bool = False
    meter: CpuMeter | None = None
    """Watches the cores, where the clock is real and the server of this machine our child."""
    _failures: dict[tuple[int, str], int] = field(default_factory=dict)

    def busy(self) -> dict[str, float] | None:
        """Returns what the machine had to do beside this run, ready for JSON; None if unknown."""
        others = [s.other_cores for s in self.samples if s.other_cores is not None]
        own = [s.own_cores for s in self.samples if s.own_cores is not None]
        if self.meter is None or not others:
            return None
        return {
            "load": self.meter.load,
            "cores": len(self.meter.cores),
            "own_cores": sum(own) / len(own),
            "other_cores": sum(others) / len(others),
            "other_cores_max": max(others),
        }

    def note_failure(self, cell: int, sample: Sample) -> None:
        """Counts a failed request; the first of a kind becomes a warning."""
        kind = (cell, str(sample.error))
        self._failures[kind] = self._failures.get(kind, 0) + 1
        if self._failures[kind] == 1:
            self.warn(f"cell {cell}: request {sample.request_id} failed: {sample.error}")

    def busy_of(self, cell: int) -> float:
        """Returns the seconds in which the cell served or stored, over all repeats."""
        return sum(spent for (index, _), spent in self.busy_s.items() if index == cell)

    def head(self, text: str) -> None:
        """Notes a warning that stands above the tables."""
        self.warn(text)
        if text not in self.heading:
            self.heading.append(text)

    def warn(self, text: str) -> None:
        """Notes a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)


OnServed = Callable[[Cell, Sample], None]


def measure_cells(
    engine: Engine,
    scenario: Scenario,
    requests: Sequence[Request],
    cells: Sequence[Cell],
    load: Load,
    repeats: Iterable[int],
    into: Measured,
    on_sample: OnServed,
    warm: Sequence[Request] = (),
    order: random.Random | None = None,
    refusals: Refusals | None = None,
    on_warm: OnServed | None = None,
) -> None:
    """Serves the same requests in every cell, once per number in ``repeats``, each time from a cold
    start, into ``into``.

    One client: cells take turns request by request, in an order drawn anew for each, so that a
    drift of the machine hits all alike. Several clients, an arrival rate, or an engine that can't
    have all cells ready at once: cells take turns run by run. Stores are finished before another
    cell's turn, and that time counts as the cell's own. Before each repeat's requests the
    cells that reuse serve ``warm``, outside of all numbers but the tiers' own; with one client over
    a data set, whose requests have passages of their own, before each request its own parts.
    ``on_warm`` is told of each of them, which is no measurement.
    ``repeats`` is asked for the next number when a repeat is done, so it can end the measurement.
    Cells that can't be measured go to ``refusals`` and the others go on; without it the first one's
    error is raised. Raises :class:`ContaminationError` when a cell hits what a cold cache can't
    hold.
    """
    left_out = refusals or Refusals()
    longest = max(len(r.token_ids) + r.max_tokens for r in (*requests, *warm))
    rng = order or random.Random(scenario.settings.seed)
    with ExitStack() as stack:
        name = scenario.workload
        turns: list[_Turn] = []
        for cell in (cell for cell in cells if cell not in left_out):
            with left_out.of(cell):
                turns.append(_Turn(engine, name, cell, longest, load, into, on_sample, on_warm))
                stack.callback(turns[-1].session.close)

        def do(action: Callable[[_Turn], None], among: Sequence[_Turn] = turns) -> None:
            for turn in among:
                if turn.cell not in left_out:
                    with left_out.of(turn.cell):
                        action(turn)

        if engine.interleaves:
            do(_Turn.ready)
        if all(turn.cell in left_out for turn in turns):
            return
        engine.warm_up(max(len(r.token_ids) for r in (*requests, *warm)))
        single = load.concurrency == 1 and engine.interleaves
        each = single and bool(warm) and bool(scenario.examples)
        for repeat in repeats:
            do(partial(_Turn.start_cold, repeat=repeat, warm=[] if each else warm))
            runs = [[r] for r in requests] if single else [list(requests)]
            for run in runs:
                # What no other request shares needs to be held no longer than it takes.
                mine = warming(run) if each else []

                # Several clients: it has served all then, an interruption can't take it back.
                take = partial(_Turn.take, warm=mine, requests=run, last=not single)
                do(take, rng.sample(turns, len(turns)))
            if single:
                do(_Turn.finish)


class _Turn:
    """One cell's session and what it has used up."""

    def __init__(
        self,
        engine: Engine,
        workload: str,
        cell: Cell,
        longest: int,
        load: Load,
        into: Measured,
        on_sample: OnServed,
        on_warm: OnServed | None,
    ) -> None:
        self.engine, self.cell, self.load, self.into = engine, cell, load, into
        self.workload, self.on_sample, self.on_warm = workload, on_sample, on_warm
        self.session: Session = engine.open(cell.spec, longest)
        self.repeat = 0
        self.decode: Callable[[Sequence[int]], str] | None = getattr(engine, "decode", None)
        self.oracle: Oracle | None = None

    def ready(self) -> None:
        """Brings up what serves. A server that doesn't start for a cell is that cell's trouble, but
        for the one without reuse, which is the engine itself."""
        try:
            self.session.ready()
        except UserError as error:
            if not self.cell.spec.reuse:
                raise
            own = CellError(str(error))
            own.exit_code = error.exit_code
            raise own from error

    def start_cold(self, repeat: int, warm: Sequence[Request]) -> None:
        self.repeat = repeat
        if not self.cell.spec.lasting:
            self._empty()
        self.warm(warm)

    def _empty(self) -> None:
        spec = self.cell.spec
        self.session.clear()
        held = self.session.held_chunks()
        if held:
            raise ContaminationError(
                f"cell {self.cell.index} should start cold, but its cache holds {held} chunks"
            )
        capacities = self.session.capacities()
        engine = self.engine
        bos = engine.blend_bos() if isinstance(engine, BlendEngine) else engine.bos
        self.oracle = self.cell.mode.oracle(spec, capacities, bos)

    def warm(self, requests: Sequence[Request]) -> None:
        """Serves ``requests`` to fill the cache, one after the other."""
        if not self.cell.spec.reuse or not requests:
            return
        self.ready()
        capacities = self.session.capacities()
        for request in self.cell.mode.warming(requests, self.cell.spec, capacities):
            self._share([request])
            for sample in self._checked([request]):
                if self.on_warm is not None:
                    self.on_warm(self.cell, sample)
            self.session.settle()

    def take(self, warm: Sequence[Request], requests: list[Request], last: bool) -> None:
        """Takes this cell's turn: serves ``requests`` after ``warm``, and is done if they are the
        ``last``."""
        self.warm(warm)
        self.serve(requests)
        if last:
            self.finish()

    def serve(self, requests: list[Request]) -> None:
        self.ready()
        self._share(requests)
        began = self.engine.now()
        try:
            for sample in self._checked(requests):
                if isinstance(self.session, Judging) and len(requests) == 1:
                    # One client: nobody waits while the answer's quality is looked at.
                    paused = self.engine.now()
                    quality = self.session.judge(requests[0])
                    began += self.engine.now() - paused
                    sample = replace(
                        sample,
                        kl=quality.kl,
                        kl_positions=quality.positions,
                        agreement=quality.agreement,
                    )
                self.into.samples.append(sample)
                self.on_sample(self.cell, sample)
            self.session.settle()
        finally:
            turn = self.cell.index, self.repeat
            spent = self.into.busy_s.get(turn, 0.0)
            self.into.busy_s[turn] = spent + self.engine.now() - began

    def _share(self, requests: list[Request]) -> None:
        """Lets another model serve ``requests`` first, if this cell reuses what that has."""
        if isinstance(self.session, Sharing):
            self.session.share(requests)
            if self.oracle is not None:
                for request in requests:
                    self.oracle.share(request)

    def finish(self) -> None:
        self.into.chunk_bytes[self.cell.index] = self.session.chunk_bytes()
        self.into.troubles[self.cell.index] = self.session.troubles()
        total = self.into.counters.setdefault(self.cell.index, {})
        for name, counters in self.session.counters().items():
            into = total.setdefault(name, TierCounters())
            for attribute in TierCounters.__slots__:
                value = getattr(into, attribute) + getattr(counters, attribute)
                setattr(into, attribute, value)
        self.into.finished.add((self.cell.index, self.repeat))

    def _checked(self, requests: list[Request]) -> Iterator[Sample]:
        served = self.session.serve(requests, self.load)
        for request, sample in zip(requests, served, strict=True):
            expected = self.oracle.expect(request) if self.oracle else None
            if not self.cell.spec.reuse and self.engine.name != "openai":
                expected = 0  # a server may count BOS, which all prompts begin with
            hit = sum(sample.hit_tokens.values())
            if expected is not None and hit > expected:
                raise ContaminationError(
                    f"request {request.id} hit {hit} tokens where a cold cache has {expected}:"
                    f" the cache of cell {self.cell.index} was not cold, so the run is void"
                )
            if expected is not None and hit < expected and sample.error is None:
                self.into.warn(
                    f"cell {self.cell.index}: request {request.id} hit {hit} of {expected}"
                    " expected tokens: chunks were lost or came too late"
                )
            if hit > sample.prompt_tokens:
                self.into.warn(
                    f"cell {self.cell.index}: the server reports more cached tokens than a prompt"
                    f" has ({request.id}: {hit} of {sample.prompt_tokens}): its hit rate is void"
                )
            if request.answers and sample.output_ids and self.decode is not None:
                sample = scored(sample, answer_of(self.decode(sample.output_ids)), request.answers)
            if sample.error is not None:
                self.into.note_failure(self.cell.index, sample)
            own, others = self.into.meter.read() if self.into.meter else (None, None)
            yield replace(
                sample.later(self.into.began_s),
                own_cores=own,
                other_cores=others,
                cell=self.cell.index,
                repeat=self.repeat,
                workload=self.workload,
                expected_hit_tokens=expected,
            )
