"""The parts of a bench: scenarios (the requests), cells (the caches that serve them), the plan, and
the cells that can't be measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from cache_core.tiers.remote.url import redacted
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.http.settings import ServerSettings
from lmcache_cli.errors import EXIT_FAILED, CellError, UserError
from lmcache_cli.modes.mode import Mode, Sweep
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.options.flags import flag_fields, flag_name
from reports.summary import CellMeta
from workloads import (
    Corpus,
    Example,
    Replay,
    Settings,
)

logger = logging.getLogger("lmcache")

# Workloads whose context length is swept; the others are built from parts of fixed length.
SWEPT_BY_CONTEXT = ("long-context", "random")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One list of requests, that every cell of the scenario serves identically."""

    workload: str
    settings: Settings
    warm: bool = False
    """Whether caches have seen all that the requests share, in other requests."""
    examples: tuple[Example, ...] = ()
    """The examples of ``--dataset``, which are asked instead of what is generated."""
    replay: Replay | None = None
    """The trace of the workload ``trace``, which is replayed instead of what is generated."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table: a scenario under one cache."""

    index: int
    scenario: int
    mode: Mode
    spec: CacheSpec

    @property
    def reuse(self) -> str:
        """Returns the name of the cell's reuse mode."""
        return self.mode.name

    def meta(self, scenario: Scenario, engine: str, model: str) -> CellMeta:
        """Describes the cell's row, for the run file and the reports."""
        spec = self.spec
        meta = CellMeta(
            workload=scenario.workload,
            engine=engine,
            model=model,
            reuse=self.reuse,
            chunk_tokens=spec.chunk_tokens if spec.ours else None,
            tiers=dict(spec.tiers),
        )
        if scenario.workload in SWEPT_BY_CONTEXT or scenario.examples:
            meta["context_tokens"] = scenario.settings.context_tokens
        if spec.ours:
            meta["policy"] = spec.policy
            meta["placement"] = spec.placement
            meta["admission"] = spec.admission
            if spec.codec != "none":
                meta["codec"] = spec.codec
            meta["state"] = "lasting" if spec.lasting else "cold"
            if scenario.warm:
                meta["state"] = "warm"
        return cast(CellMeta, {**meta, **self.mode.facts(spec)})


def cross(scenarios: Sequence[Scenario], modes: Sequence[Mode], sweep: Sweep) -> list[Cell]:
    """Crosses every scenario with every cache, in table order. Raises ``UserError`` if a mode that
    reuses has no tier to reuse from."""
    ordered = sorted(modes, key=lambda mode: mode.order)
    specs = [(mode, spec) for mode in ordered for spec in mode.specs(sweep)]
    pairs = [(s, mode, spec) for s in range(len(scenarios)) for mode, spec in specs]
    return [Cell(index, s, mode, spec) for index, (s, mode, spec) in enumerate(pairs)]


def groups_that_fit(cells: Sequence[Cell], room: int, each: int = 0) -> list[list[Cell]]:
    """Splits one scenario's cells so that each group's tiers, and ``each`` bytes a cell, fit
    ``room`` bytes of memory at once.

    Cells of one group are interleaved request by request. The cell without reuse, the base of the
    speed-up, is measured again in every group, so that each ratio comes from one run. Raises
    ``UserError`` for a cell that alone needs more.
    """
    base = [cell for cell in cells if not cell.spec.reuse]
    room -= each * len(base)
    groups: list[list[Cell]] = []
    used = room + 1
    for cell in (cell for cell in cells if cell.spec.reuse):
        tiers = cell.spec.tiers.items()
        need = each + sum(size for tier, size in tiers if tier in ("device", "cpu"))
        if need > room:
            raise UserError(
                f"a cell of {need / 2**30:.1f} GiB doesn't fit the {room / 2**30:.1f} GiB of memory"
                " that this machine has free for them; lower --cpu-size or --device-size"
            )
        if used + need > room:
            groups.append(list(base))
            used = 0
        groups[-1].append(cell)
        used += need
    return groups or [list(base)]


_ONCE = ("time_budget", "tier_latency", "jitter")
"""Options that a repeat with another cache should not have: it would be sized anew, or worse."""


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The plan of a bench: what will run."""

    options: BenchOptions
    scenarios: tuple[Scenario, ...]
    cells: tuple[Cell, ...]
    load: Load
    corpus: Corpus
    salt: str
    scratch: Path | None
    """A disk tier's folder that is made for this run and removed after it."""
    vllm_args: tuple[str, ...] = ()

    def serving(self, out: Path, say: Callable[[str], None]) -> ServerSettings:
        """Returns what an engine with a server needs to know. Logs go into ``out``."""
        options = self.options
        return ServerSettings(
            url=options.url or "",
            base_url=options.base_url or "",
            args=self.vllm_args,
            silence_s=options.request_timeout,
            folder=out,
            start_s=options.start_timeout,
            say=say,
        )

    def command(self, workload: str) -> list[str]:
        """Returns the words of the command that measures one workload with these options."""
        given, usual, words = self.config(), asdict(BenchOptions()), ["lmcache", "bench", workload]
        for field, _ in flag_fields(BenchOptions):
            value = given[field.name]
            if field.name not in _ONCE and value != usual[field.name]:
                flag = flag_name(field.name)
                words += [flag] if value is True else [flag, str(value)]
        return words

    def config(self) -> dict[str, object]:
        """Returns the options as plain values, for the run file: with them the run can be
        repeated."""
        values = asdict(self.options)
        values["workloads"] = list(self.options.workloads)
        values["disk_path"] = str(self.options.disk_path) if self.options.disk_path else None
        certificate = self.options.blend_certificate
        values["blend_certificate"] = str(certificate) if certificate else None
        values["trace"] = str(self.options.trace) if self.options.trace else None
        values["remote"] = redacted(self.options.remote) if self.options.remote else None
        values["dataset"] = str(self.options.dataset) if self.options.dataset else None
        values["probe"] = str(self.options.probe) if self.options.probe else None
        values["corpus"] = str(self.options.corpus) if self.options.corpus else None
        return values


@dataclass(frozen=True, slots=True)
class Refused:
    """A cell and the error that ended it, or kept it from being opened."""

    cell: Cell
    error: Exception

    @property
    def reason(self) -> str:
        """Returns the reason of the refusal, on one line."""
        text = (str(self.error).strip() or "no reason given").splitlines()[0]
        named = isinstance(self.error, UserError)
        return text if named else f"{type(self.error).__name__}: {text}"


class Refusals:
    """The cells that are left out. ``say`` is given each reason at once; without it the first error
    ends the measurement, as any error does."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.found: dict[int, Refused] = {}
        self._say = say

    @property
    def exit_code(self) -> int:
        """Returns 0 without refusals; else the exit code of the first one."""
        for refused in self.found.values():
            return refused.error.exit_code if isinstance(refused.error, UserError) else EXIT_FAILED
        return 0

    def __contains__(self, cell: Cell) -> bool:
        return cell.index in self.found

    def add(self, cell: Cell, error: Exception) -> None:
        """Leaves the cell out from here on. Raises the error where no cell may be left out."""
        if self._say is None:
            raise error
        self.found[cell.index] = Refused(cell, error)
        self._say(f"{cell.reuse} can't be measured: {self.found[cell.index].reason}")

    @contextmanager
    def of(self, cell: Cell) -> Iterator[None]:
        """Guards what is done for a cell alone. Its own errors end the cell, and so do torch's (a
        GPU's memory that is full, a kernel that doesn't start)."""
        try:
            yield
        except CellError as error:
            self.add(cell, error)
        except (RuntimeError, MemoryError) as error:
            if self._say is not None:
                logger.warning("in a cell of reuse %s", cell.reuse, exc_info=True)
            self.add(cell, error)

    def raise_first(self) -> None:
        """Raises the first refusal's error, where nothing else was measured."""
        for refused in self.found.values():
            raise refused.error
