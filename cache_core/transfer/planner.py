"""Copy engines or a kernel? By what each way was measured to cost on this GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Direction = Literal["h2d", "d2h"]
Way = Literal["dma", "kernel"]

SCHEMA = "lmcache.transfer/1"
# Without a measurement: copy engines pay for each run, and runs of this many bytes are long. A
# guess that `lmcache probe --transfer` replaces.
UNMEASURED_RUN_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a move: ``fixed_s + runs * run_s + bytes / bytes_per_s``."""

    fixed_s: float
    run_s: float
    bytes_per_s: float

    def seconds(self, runs: int, nbytes: int) -> float:
        return self.fixed_s + runs * self.run_s + nbytes / self.bytes_per_s

    @classmethod
    def fit(cls, samples: Sequence[tuple[int, int, float]]) -> Cost:
        """From (runs, bytes, seconds) of at least three moves of different shapes: least squares of
        relative errors, no term below zero. Raises ``ValueError`` for fewer."""
        rows = np.array([(1.0, runs, nbytes) for runs, nbytes, _ in samples], dtype=np.float64)
        if len(rows) < 3 or np.linalg.matrix_rank(rows / rows.max(axis=0)) < 3:
            raise ValueError("a cost has three terms: measure three moves of different shapes")
        seconds = np.array([s for *_, s in samples], dtype=np.float64)
        rows /= seconds[:, None]
        # Few terms: every subset of them is tried, as in Lawson and Hanson 1974, chapter 23.
        best, least = np.zeros(3), np.inf
        for kept in ([0, 1, 2], [0, 2], [1, 2], [2]):
            part, *_ = np.linalg.lstsq(rows[:, kept], np.ones(len(rows)), rcond=None)
            if (part < 0).any() or part[-1] <= 0:
                continue
            error = float(((rows[:, kept] @ part - 1) ** 2).sum())
            if error < least:
                best, least = np.zeros(3), error
                best[kept] = part
        return cls(float(best[0]), float(best[1]), float(1 / best[2]))


@dataclass(frozen=True, slots=True)
class Planner:
    """``costs`` of one GPU, by direction and way; without them a fixed run length decides."""

    costs: Mapping[tuple[Direction, Way], Cost] = field(default_factory=dict)

    def choose(self, direction: Direction, runs: int, run_bytes: int) -> Way:
        """The way that is expected to take less time for ``runs`` runs of ``run_bytes``."""
        dma, kernel = self.costs.get((direction, "dma")), self.costs.get((direction, "kernel"))
        if dma is None or kernel is None:
            return "dma" if run_bytes >= UNMEASURED_RUN_BYTES else "kernel"
        nbytes = runs * run_bytes
        return "dma" if dma.seconds(runs, nbytes) <= kernel.seconds(runs, nbytes) else "kernel"


def save_costs(path: Path, gpu: str, planner: Planner) -> None:
    """Writes the costs of ``gpu``, beside those of others that the file has. Raises ``OSError`` and
    ``ValueError`` for a file of another kind."""
    known = _read(path) if path.exists() else {}
    costs: dict[str, dict[str, Any]] = {}
    for (direction, way), cost in planner.costs.items():
        costs.setdefault(direction, {})[way] = asdict(cost)
    known[gpu] = costs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": SCHEMA, "gpus": known}, indent=2) + "\n")


def load_costs(path: Path, gpu: str) -> Planner:
    """The costs of ``gpu``, or a planner without any if the file has none. Raises ``OSError`` and
    ``ValueError`` for a file of another kind."""
    try:
        found = _read(path).get(gpu, {})
        return Planner(
            {
                (direction, way): Cost(**cost)
                for direction, ways in found.items()
                for way, cost in ways.items()
            }
        )
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of lmcache probe --transfer: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no file of lmcache probe --transfer ({SCHEMA})")
    gpus: dict[str, Any] = document["gpus"]
    return gpus
