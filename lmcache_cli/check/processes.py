"""Each side in processes of its own: two installed versions, or two models. Rounds take turns."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.check.clock import Budget
from lmcache_cli.check.side import Side
from lmcache_cli.compare.stored import StoredRun, read_stored
from lmcache_cli.errors import EXIT_FAILED, MissingError, UserError
from reports.verdict_trial import Comparison


@dataclass(slots=True)
class Processes:
    """Runs ``python -m lmcache_cli.main bench`` once per side and round, in an order drawn anew."""

    sides: Sequence[Side]
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    """Of the side's lmcache-bench."""
    warnings: list[str] = field(default_factory=list)

    def run(
        self,
        comparisons: list[Comparison],
        budget: Budget,
        settled: Callable[[Comparison], bool],
        progress: BenchProgress,
    ) -> None:
        """Adds a comparison per cell, with rounds, until all are settled or the budget is spent."""
        rng = random.Random(self.seed)
        number = 0
        while True:
            runs = {}
            for side in rng.sample(list(self.sides), len(self.sides)):
                progress.phase(f"round {number + 1}: {side.name}")
                runs[side.name] = self._bench(side)
            number += 1
            self._add(comparisons, runs["baseline"], runs["candidate"])
            over = [settled(comparison) for comparison in comparisons]
            if all(over) or budget.spent(number, 0, 1):
                return

    def _bench(self, side: Side) -> StoredRun:
        args = [] if "--reuse" in " ".join(side.args) else ["--reuse", "prefix"]
        with tempfile.TemporaryDirectory(prefix="lmcache-check-") as folder:
            command = [
                # -P: the packages of this environment, not those of the current folder.
                *(str(side.python or sys.executable), "-P", "-m", "lmcache_cli.main", "bench"),
                *(*side.args, *args, "--repeat", "1", "--out", folder, "--json", "-", "--quiet"),
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                raise MissingError(
                    f"--{side.name}-python: {command[0]}: {error.strerror}"
                ) from None
            found = sorted(Path(folder).glob("*.parquet"))
            if done.returncode not in (0, EXIT_FAILED) or not found:
                said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise UserError(f"--{side.name}: bench ended with code {done.returncode}: {said}")
            run = read_stored(found[0])
        self.versions[side.name] = run.facts.get("version", "unknown")
        return run

    def _add(self, comparisons: list[Comparison], base: StoredRun, new: StoredRun) -> None:
        for name in ("requests", "workload"):
            if base.facts.get(name) != new.facts.get(name):
                raise UserError(
                    f"the sides don't serve the same requests ({name} differs); give both the same"
                    " workloads, lengths and --seed"
                )
        if len(base.cells) != len(new.cells):
            raise UserError(
                f"the baseline has {len(base.cells)} cells and the candidate {len(new.cells)};"
                " sweep as many values on both sides, or none"
            )
        if not comparisons:
            comparisons += [Comparison(cell) for cell in base.cells]
        sides = zip(comparisons, base.cells.values(), new.cells.values(), strict=True)
        for comparison, before, after in sides:
            comparison.base += before
            comparison.new += after
