"""Chooses copy engines or a kernel, by what each way was measured to cost on this GPU."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

Direction = Literal["h2d", "d2h"]
Way = Literal["dma", "kernel"]

COPY_COSTS_SCHEMA = "lmcache.transfer/2"
# Without a measurement: copy engines pay for each run, and are said to need runs of about this many
# bytes to fill PCIe 5. A guess that `lmcache probe --transfer` replaces.
UNMEASURED_RUN_BYTES = 28 << 10


@dataclass(frozen=True, slots=True)
class RunCost:
    """The seconds of a move of runs of ``run_bytes``: ``fixed_s + runs * run_s``."""

    run_bytes: int
    fixed_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class CopyCost:
    """The cost of a way, by the length of runs: ``sizes`` rise in ``run_bytes``.

    One line through all lengths would hide that copy engines have a rate of their own for each.
    Raises ``ValueError`` for none, and for sizes that don't rise.
    """

    sizes: tuple[RunCost, ...]

    def __post_init__(self) -> None:
        if not self.sizes or any(a.run_bytes >= b.run_bytes for a, b in pairwise(self.sizes)):
            raise ValueError("a cost needs run lengths, each longer than the one before")

    def seconds(self, runs: int, run_bytes: int) -> float:
        """Returns the seconds of a move: between two lengths that were measured, on the line
        between them. A shorter run than any costs what the shortest one does, a longer one has the
        longest one's rate."""
        at = bisect_left(self.sizes, run_bytes, key=lambda size: size.run_bytes)
        if at == len(self.sizes):
            last = self.sizes[-1]
            return last.fixed_s + runs * last.run_s * run_bytes / last.run_bytes
        above = self.sizes[at]
        below = self.sizes[at - 1] if at > 0 else above
        width = above.run_bytes - below.run_bytes
        share = (run_bytes - below.run_bytes) / width if width else 0.0
        fixed = below.fixed_s + share * (above.fixed_s - below.fixed_s)
        return fixed + runs * (below.run_s + share * (above.run_s - below.run_s))

    @classmethod
    def fit(cls, samples: Sequence[tuple[int, int, float]]) -> CopyCost:
        """Fits the cost to (runs, run_bytes, seconds) of moves of two or more numbers of runs of
        each length: least squares of relative errors, no term below zero. Raises ``ValueError`` for
        fewer."""
        lengths: dict[int, list[tuple[int, float]]] = {}
        for runs, run_bytes, seconds in samples:
            lengths.setdefault(run_bytes, []).append((runs, seconds))
        return cls(tuple(_fit(size, lengths[size]) for size in sorted(lengths)))


def _fit(run_bytes: int, samples: Sequence[tuple[int, float]]) -> RunCost:
    if len({runs for runs, _ in samples}) < 2:
        raise ValueError(f"measure two numbers of runs of {run_bytes} bytes: a cost has two terms")
    rows = np.array([(1.0, runs) for runs, _ in samples])
    rows /= np.array([seconds for _, seconds in samples])[:, None]
    (fixed, each), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    if fixed < 0:
        fixed, each = 0.0, rows[:, 1].sum() / (rows[:, 1] ** 2).sum()
    elif each < 0:
        fixed, each = rows[:, 0].sum() / (rows[:, 0] ** 2).sum(), 0.0
    return RunCost(run_bytes, float(fixed), float(each))


@dataclass(frozen=True, slots=True)
class Planner:
    """Chooses a way by the ``costs`` of one GPU, by direction and way, or else by a fixed run
    length."""

    costs: Mapping[tuple[Direction, Way], CopyCost] = field(default_factory=dict)

    def choose(self, direction: Direction, runs: int, run_bytes: int) -> Way:
        """Returns the way that is expected to be faster for ``runs`` runs of ``run_bytes``."""
        dma, kernel = self.costs.get((direction, "dma")), self.costs.get((direction, "kernel"))
        if dma is None or kernel is None:
            return "dma" if run_bytes >= UNMEASURED_RUN_BYTES else "kernel"
        faster = dma.seconds(runs, run_bytes) <= kernel.seconds(runs, run_bytes)
        return "dma" if faster else "kernel"


def save_costs(path: Path, gpu: str, planner: Planner) -> None:
    """Writes the costs of ``gpu``, beside those of others that the file has. Raises ``OSError`` and
    ``ValueError`` for a file of another kind."""
    known = _read(path) if path.exists() else {}
    costs: dict[str, dict[str, Any]] = {}
    for (direction, way), cost in planner.costs.items():
        costs.setdefault(direction, {})[way] = [asdict(size) for size in cost.sizes]
    known[gpu] = costs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": COPY_COSTS_SCHEMA, "gpus": known}, indent=2) + "\n")


def load_costs(path: Path, gpu: str) -> Planner:
    """Reads the costs of ``gpu``, or a planner without any if the file has none. Raises ``OSError``
    and ``ValueError`` for a file of another kind."""
    try:
        found = _read(path).get(gpu, {})
        return Planner(
            {
                (direction, way): CopyCost(tuple(RunCost(**size) for size in sizes))
                for direction, ways in found.items()
                for way, sizes in ways.items()
            }
        )
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is no file of lmcache probe --transfer: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == "lmcache.transfer/1":
        raise ValueError(f"{path} is of an older lmcache; measure again: lmcache probe --transfer")
    if schema != COPY_COSTS_SCHEMA:
        raise ValueError(f"{path} is no file of lmcache probe --transfer ({COPY_COSTS_SCHEMA})")
    gpus: dict[str, Any] = document["gpus"]
    return gpus
