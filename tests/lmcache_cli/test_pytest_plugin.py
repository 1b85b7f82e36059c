"""The fixture ``lmcache_benchmark``, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
BENCH = "long-context --engine simulated --documents 2 --questions 4 --context-tokens 400"


def test_equal(lmcache_benchmark):
    found = lmcache_benchmark(bench=BENCH + " --jitter 0.02", candidate="--policy gdsf")
    assert {v.outcome for v in found} == {"PASS"}


def test_moved(lmcache_benchmark):
    lmcache_benchmark(bench=BENCH, candidate="--chunk-tokens 48")


def test_undecided(lmcache_benchmark):
    lmcache_benchmark(bench=BENCH, candidate="--policy gdsf", max_rounds=1)


def test_undecided_is_accepted(lmcache_benchmark):
    lmcache_benchmark(
        bench=BENCH, candidate="--policy gdsf", max_rounds=2, accept_inconclusive=True
    )


def test_too_short_for_counters_is_not(lmcache_benchmark):
    lmcache_benchmark(
        bench=BENCH, candidate="--policy gdsf", max_rounds=1, accept_inconclusive=True
    )
"""


def test_verdicts_become_results(tmp_path: Path) -> None:
    (tmp_path / "test_cache.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "lmcache_cli.pytest_plugin", "-rA", "-q"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        timeout=120,
    )
    assert "3 failed, 2 passed" in done.stdout, done.stdout
    assert "PASSED test_cache.py::test_equal" in done.stdout
    assert "### FAIL: lmcache check" in done.stdout and "bytes_stored" in done.stdout
    assert "### INCONCLUSIVE: lmcache check" in done.stdout
    assert "PASSED test_cache.py::test_undecided_is_accepted" in done.stdout
    assert "FAILED test_cache.py::test_too_short_for_counters_is_not" in done.stdout
    assert "the baseline ran 1 of the 2 rounds" in done.stdout
