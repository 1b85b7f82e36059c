"""What is swept: scenarios (the requests), cells (the caches that serve them), the plan, and the
cells that can't be measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

from cache_core.ledger import Placement
from cache_core.tiers.remote.url import redacted
from lmcache_cli.engines.cache_spec import FOREIGN_MODES, CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.http.settings import ServerSettings
from lmcache_cli.errors import EXIT_FAILED, CellError, UserError
from lmcache_cli.options.bench import BenchOptions
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
TIER_ORDER = ("device", "cpu", "disk", "remote")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One list of requests, that every cell of the scenario serves identically."""

    workload: str
    settings: Settings
    warm: bool = False
    """Caches have seen all that the requests share, in other requests."""
    examples: tuple[Example, ...] = ()
    """Of --dataset: what is asked instead of what is generated."""
    replay: Replay | None = None
    """Of the workload `trace`: what is replayed instead of generated."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table: a scenario under one cache."""

    index: int
    scenario: int
    reuse: str
    spec: CacheSpec

    def meta(self, scenario: Scenario, engine: str, model: str) -> CellMeta:
        """What the row is, for the run file and the reports."""
        meta = CellMeta(
            workload=scenario.workload,
            engine=engine,
            model=model,
            reuse=self.reuse,
            chunk_tokens=self.spec.chunk_tokens if self.spec.ours else None,
            tiers=dict(self.spec.tiers),
        )
        if scenario.workload in SWEPT_BY_CONTEXT or scenario.examples:
            meta["context_tokens"] = scenario.settings.context_tokens
        if self.spec.ours:
            meta["policy"] = self.spec.policy
            meta["placement"] = self.spec.placement
            meta["admission"] = self.spec.admission
            if self.spec.codec != "none":
                meta["codec"] = self.spec.codec
            meta["state"] = "lasting" if self.spec.lasting else "cold"
            if scenario.warm:
                meta["state"] = "warm"
        if self.spec.mode == "blend":
            meta["blend"] = {
                "ratio": self.spec.ratio,
                "selection": self.spec.selection,
                "check_layer": self.spec.check_layer,
                "narrow_layers": self.spec.narrow_layers,
                "encoding": self.spec.encoding,
            }
        if self.spec.mode == "shared":
            meta["state"] = "base"
            meta["shared"] = {
                "base": self.spec.shared_from,
                "recompute_layers": self.spec.recompute_layers,
            }
        return meta


@dataclass(frozen=True, slots=True)
class Sweep:
    """The lists that are crossed. Sizes are in bytes; 0 leaves a tier out."""

    reuse: Sequence[str]
    chunk_tokens: Sequence[int]
    tier_sizes: Mapping[str, Sequence[int]]
    policy: str
    placement: Placement
    salt: str
    disk_path: Path | None = None
    remote: str = ""
    admission: str = "none"
    bytes_per_day: int = 0
    lasting: bool = False
    latency_s: float = 0.0
    variants: Mapping[str, Sequence[CacheSpec]] = field(default_factory=dict)
    """For the modes ``blend`` and ``shared``: specs whose own settings are to be crossed."""
    codec: str = "none"

    def specs(self) -> list[tuple[str, CacheSpec]]:
        """Every (reuse mode, cache), the mode without a cache first. Raises ``UserError`` if a
        mode that reuses has no tier to reuse from."""
        specs: list[tuple[str, CacheSpec]] = []
        if "off" in self.reuse:
            specs.append(("off", self._foreign("off", {})))
        specs += [(m, self._foreign(m, {})) for m in self.reuse if m in ("server", "vllm")]
        names = [name for name in TIER_ORDER if self.tier_sizes.get(name)]
        for mode in (mode for mode in self.reuse if mode in ("offload", "lmcache")):
            for size in filter(None, self.tier_sizes["cpu"]):
                specs.append((mode, self._foreign(mode, {"cpu": size})))
        for mode in (mode for mode in self.reuse if mode not in ("off", *FOREIGN_MODES)):
            for sizes in product(*(self.tier_sizes[name] for name in names)):
                tiers = {n: s for n, s in zip(names, sizes, strict=True) if s}
                if self.remote:
                    tiers["remote"] = 0
                if not tiers:
                    raise UserError(
                        f"--reuse {mode} needs a tier; give --cpu-size, --device-size or"
                        " --disk-size above 0, or --remote"
                    )
                for spec in (self._spec(chunk, tiers) for chunk in self.chunk_tokens):
                    specs += [(mode, each) for each in self._variants(mode, spec)]
        return specs

    def _variants(self, mode: str, spec: CacheSpec) -> list[CacheSpec]:
        if mode not in self.variants:
            return [spec]
        return [
            replace(
                spec,
                mode=mode,
                ratio=like.ratio,
                selection=like.selection,
                check_layer=like.check_layer,
                narrow_layers=like.narrow_layers,
                encoding=like.encoding,
                shared_from=like.shared_from,
                recompute_layers=like.recompute_layers,
                folder=spec.folder and spec.folder.with_name(f"{spec.folder.name}_{mode}-{number}"),
            )
            for number, like in enumerate(self.variants[mode])
        ]

    def _foreign(self, mode: str, tiers: Mapping[str, int]) -> CacheSpec:
        return CacheSpec(self.chunk_tokens[0], tiers, salt=self.salt, mode=mode)

    def _spec(self, chunk: int, tiers: Mapping[str, int]) -> CacheSpec:
        # One process owns a disk tier's folder, and a cell is one cache: a folder for each.
        name = "_".join([f"chunk-{chunk}", *(f"{tier}-{size}" for tier, size in tiers.items())])
        return CacheSpec(
            chunk,
            tiers,
            self.policy,
            self.placement,
            self.salt,
            self.disk_path / name if self.disk_path else None,
            self.remote,
            self.admission,
            self.bytes_per_day,
            self.lasting,
            latency_s=self.latency_s,
            codec=self.codec,
        )


def cross(scenarios: Sequence[Scenario], sweep: Sweep) -> list[Cell]:
    """Every scenario under every cache, in table order."""
    specs = sweep.specs()
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


@dataclass(frozen=True, slots=True)
class BenchPlan:
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

    def serving(self, out: Path, say: Callable[[str], None]) -> ServerSettings:
        """What an engine with a server needs to know. Logs go into ``out``."""
        options = self.options
        return ServerSettings(
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
        """One line."""
        text = (str(self.error).strip() or "no reason given").splitlines()[0]
        named = isinstance(self.error, UserError)
        return text if named else f"{type(self.error).__name__}: {text}"


class Refusals:
    """Notes the cells that are left out. ``say`` is told of each reason at once; without it the
    first one ends the measurement, as any error does."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.found: dict[int, Refused] = {}
        self._say = say

    @property
    def exit_code(self) -> int:
        """0 without refusals; else the first one's."""
        for refused in self.found.values():
            return refused.error.exit_code if isinstance(refused.error, UserError) else EXIT_FAILED
        return 0

    def __contains__(self, cell: Cell) -> bool:
        return cell.index in self.found

    def add(self, cell: Cell, error: Exception) -> None:
        """Leaves the cell out from here on. Raises the error where none may be."""
        if self._say is None:
            raise error
        self.found[cell.index] = Refused(cell, error)
        self._say(f"{cell.reuse} can't be measured: {self.found[cell.index].reason}")

    @contextmanager
    def of(self, cell: Cell) -> Iterator[None]:
        """What is done for a cell alone. Its own errors end it, and so do torch's (a GPU's memory
        that is full, a kernel that doesn't start)."""
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
