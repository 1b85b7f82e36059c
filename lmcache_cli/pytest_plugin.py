"""A pytest plugin: the fixture ``lmcache_benchmark`` runs a check inside a test.

def test_the_new_policy_is_no_slower(lmcache_benchmark):
    lmcache_benchmark(bench="rag --cpu-size 64MiB", candidate="--policy gdsf")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from reports.verdict.judge import Verdict


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The fixture ``lmcache_benchmark``: a call runs ``lmcache check``. A disk tier's folder, if
    there is one, is made in ``folder``."""

    folder: Path

    def __call__(
        self,
        *,
        bench: str = "",
        baseline: str = "",
        candidate: str = "",
        fail_on: Sequence[str] = (),
        counters: Literal["exact", "worse", "ignore"] = "exact",
        max_rounds: int = 60,
        max_time_s: float = 600.0,
        seed: int = 0,
        accept_inconclusive: bool = False,
    ) -> list[Verdict]:
        """Runs ``lmcache check`` with these flags and returns its verdicts. Fails the test on FAIL,
        and on INCONCLUSIVE unless that is accepted and something was measured. Raises ``UserError``
        for bad flags."""
        # Slow to import, and the plugin is loaded by every run of pytest.
        from rich.console import Console

        from lmcache_cli.bench.progress import BenchProgress
        from lmcache_cli.check.run import CheckResult
        from lmcache_cli.check.side import Budget, Judgement, Side, parse_side, shared_flags
        from lmcache_cli.options.verdict import JudgementFlags
        from reports.verdict.formats import verdict_markdown

        shared = shared_flags(bench)
        base, new = (
            Side(name, (*shared, *parse_side(name, text, None).args))
            for name, text in (("baseline", baseline), ("candidate", candidate))
        )
        check = CheckResult(
            base,
            new,
            Judgement.of(JudgementFlags(list(fail_on), counters)),
            Budget(max_rounds, max_time_s),
            seed,
            self.folder,
            [],
            [],
        )
        with BenchProgress(Console(stderr=True), quiet=True) as progress:
            check.measure(progress)
        trial = check.trial()
        outcome = trial.outcome()
        void = trial.unjudged()
        accepted = accept_inconclusive and not void
        if outcome == "FAIL" or (outcome == "INCONCLUSIVE" and not accepted):
            notes = [*check.warnings, *filter(None, [void])]
            text = verdict_markdown(trial.verdicts(), outcome, "lmcache check", notes)
            pytest.fail(text, pytrace=False)
        return trial.verdicts()


@pytest.fixture
def lmcache_benchmark(tmp_path: Path) -> Benchmark:
    """Judges a candidate against a baseline; see :class:`Benchmark`."""
    return Benchmark(tmp_path)
