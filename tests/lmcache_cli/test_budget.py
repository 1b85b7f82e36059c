"""A bench that is fitted into a time: ``--time-budget``."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console

from lmcache_cli.bench.budget import MOST_REPEATS, Fitted, fit_plan, measure_pace
from lmcache_cli.bench.plan import make_plan
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.measured_costs import CostModel
from lmcache_cli.engines.simulated import SimulatedEngine, SimulatedSession
from lmcache_cli.errors import UserError
from lmcache_cli.options.bench import BenchOptions
from reports.run_file import read_run
from tests.lmcache_cli.command_line import lmcache

FAST = CostModel(a=0.0, b=1e-4, c=2e-8, decode_s=1e-3)
"""A prompt of 6,000 tokens takes 0.96 s."""
SLOW = CostModel(a=0.0, b=1e-2, c=2e-6, decode_s=0.1)
LONG = BenchOptions(
    workloads=("long-context",), context_tokens="2000,6000", documents=2, questions=4
)


def fit(options: BenchOptions, costs: CostModel, budget: str, tmp_path: Path) -> Fitted:
    """Fits it as if nothing had been spent."""
    plan = make_plan(replace(options, time_budget=budget), tmp_path)
    return fit_plan(plan, SimulatedEngine(costs), tmp_path, time.monotonic() + 1.0)


@pytest.mark.parametrize(("costs", "longest"), [(FAST, 6000), (SLOW, 512)])
def test_the_probe_finds_the_engines_costs(costs: CostModel, longest: int) -> None:
    pace = measure_pace(SimulatedEngine(costs), 6000)
    assert pace.points[-1][0] == longest, "it ends with a prompt that takes a second"
    for length in (300, 2000, 6000) if longest == 6000 else (130, 500):
        assert pace.seconds(length, 0, 1) == pytest.approx(costs.prefill_s(length, 0), rel=0.01)
    assert pace.decode_s == pytest.approx(costs.decode_s, rel=0.01)
    hit = pace.seconds(longest, longest - 64, 1)
    assert hit < pace.seconds(longest, 0, 1) / 2


def test_what_fits_is_repeated(tmp_path: Path) -> None:
    found = fit(LONG, FAST, "2m", tmp_path)
    assert found.chosen == {"repeat": found.plan.options.repeat}
    assert 120 / 2 < found.expected_s <= 121 and found.plan.options.repeat > 3
    assert found.plan.options.time_budget is None, "the run can be repeated as it was"
    assert "--repeat" in found.text() and "least that there is" not in found.text()
    assert fit(LONG, FAST, "2h", tmp_path).plan.options.repeat == MOST_REPEATS


def test_what_does_not_fit_is_made_smaller(tmp_path: Path) -> None:
    found = fit(LONG, SLOW, "5m", tmp_path)
    lengths = [int(n) for n in found.plan.options.context_tokens.split(",")]
    assert lengths == sorted(lengths) and 200 <= lengths[0] < 2000 and lengths[1] < 6000
    assert [s.settings.context_tokens for s in found.plan.scenarios] == lengths
    assert 300 * 0.6 < found.expected_s <= 301 and found.plan.options.repeat == 1
    assert found.asked == {"context_tokens": "2000,6000"}
    assert (
        f"--context-tokens {found.plan.options.context_tokens} (asked: 2000,6000)" in found.text()
    )
    least = fit(LONG, SLOW, "1s", tmp_path)
    assert least.plan.options.context_tokens == "200" and "least that there is" in least.text()


@pytest.mark.parametrize(
    ("options", "smaller"),
    [
        (BenchOptions(workloads=("rag",)), {"passage_tokens", "requests"}),
        (BenchOptions(workloads=("rag",), requests=40), {"passage_tokens", "requests"}),
        (BenchOptions(workloads=("chat",), sessions=9), {"sessions"}),
        (
            BenchOptions(workloads=("random", "rag")),
            {"context_tokens", "passage_tokens", "requests"},
        ),
    ],
)
def test_each_workload_has_something_to_make_smaller(
    options: BenchOptions, smaller: set[str], tmp_path: Path
) -> None:
    whole = fit(options, SLOW, "20h", tmp_path).expected_s / MOST_REPEATS
    found = fit(options, SLOW, f"{whole / 2:.0f}s", tmp_path)
    assert set(found.chosen) == smaller
    assert found.expected_s <= whole / 2 + 1


def test_what_can_not_fit_says_at_once_how_long_it_takes(tmp_path: Path) -> None:
    found = fit(BenchOptions(workloads=("rag",)), SLOW, "1m", tmp_path)
    assert found.plan.options.requests == 8 and "--requests 8 (else the workload" in found.text()
    minutes = int(found.text().partition("--time-budget ")[2].partition("m")[0])
    assert found.expected_s < 60 * minutes < found.expected_s + 120
    assert (
        fit(BenchOptions(workloads=("rag", "chat")), SLOW, "1s", tmp_path).chosen["requests"] == 8
    )


def test_a_terminal_keeps_the_line_above_the_bar() -> None:
    file = io.StringIO()
    with BenchProgress(Console(file=file, force_terminal=True, width=200), quiet=False) as progress:
        progress.tell("sized to 1 min by a probe")
        progress.phase("measuring")
    assert "sized to 1 min by a probe\n" in file.getvalue().replace("\x1b[2K", "")


def test_a_probe_that_fails_is_said(tmp_path: Path) -> None:
    real = SimulatedSession.serve

    def failing(self: Any, *args: Any) -> Any:
        return (replace(sample, error="HTTP 500") for sample in real(self, *args))

    with (
        patch.object(SimulatedSession, "serve", failing),
        pytest.raises(UserError, match="probe's request failed: HTTP 500"),
    ):
        fit(LONG, FAST, "5m", tmp_path)


def test_what_is_served_first_takes_time_too(tmp_path: Path) -> None:
    options = BenchOptions(workloads=("rag",), reuse="prefix", requests=8)
    cold, warm = (fit(replace(options, warm=w), SLOW, "1s", tmp_path) for w in (False, True))
    assert warm.expected_s > 1.3 * cold.expected_s


def test_a_prompt_that_fills_the_context_can_be_probed() -> None:
    engine = SimulatedEngine(FAST)
    engine.max_context = 6001
    assert measure_pace(engine, 6000).points[-1][0] == 6000


def test_cells_that_will_all_be_refused_take_no_time(tmp_path: Path) -> None:
    found = fit(replace(LONG, reuse="prefix", cpu_size="1KiB"), FAST, "1m", tmp_path)
    assert (found.expected_s, found.plan.options.repeat) == (0.0, 1)


def test_a_run_that_is_finished_later_keeps_what_was_chosen(tmp_path: Path) -> None:
    real, served = SimulatedSession.serve, 0

    def interrupted(self: Any, *args: Any) -> Any:
        nonlocal served
        for sample in real(self, *args):
            served += 1
            if served == 20:
                raise KeyboardInterrupt
            yield sample

    words = ("bench", "long-context", "--context-tokens", "500", "--documents", "1")
    with patch("lmcache_cli.bench.report.start_engine", return_value=SimulatedEngine(FAST)):
        with patch.object(SimulatedSession, "serve", interrupted):
            done = lmcache(*words, "--time-budget", "9s", cwd=tmp_path)
        assert done.returncode == 130 and "sized to 9 s" in done.stdout, done.stderr
        [path] = (tmp_path / "runs").glob("*.parquet")
        budget = read_run(path)[1]["time_budget"]
        done = lmcache("bench", "--resume", str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert budget["asked_s"] == 9 and read_run(path)[1]["time_budget"] == budget


def test_the_table_and_the_json_say_what_was_chosen(tmp_path: Path) -> None:
    words = ("bench", "long-context", "--context-tokens", "500", "--documents", "1")
    with patch("lmcache_cli.bench.report.start_engine", return_value=SimulatedEngine(FAST)):
        done = lmcache(*words, "--time-budget", "9s", "--json", "run.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "run.json").read_text())
    budget, config = document["time_budget"], document["config"]
    repeats = config["repeat"]
    assert budget["asked_s"] == 9 and budget["chosen"] == {"repeat": repeats} and repeats > 1
    assert budget["probe"][-1]["tokens"] == 564 and config["time_budget"] is None
    assert document["cells"][0]["n"] == 3 * repeats
    said = "sized to 9 s by a probe"
    assert said in done.stdout.partition("TTFT")[0] and said in done.stderr
    [path] = (tmp_path / "runs").glob("*.parquet")
    stored = lmcache("report", path, "--format", "json", cwd=tmp_path)
    assert json.loads(stored.stdout)["time_budget"] == budget


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--time-budget", "soon"), "--time-budget: 'soon' is no duration"),
        (("--time-budget", "5m", "--rate", "2"), "--time-budget and --rate exclude each other"),
        (("--time-budget", "5m", "--repeat", "2"), "--repeat exclude"),
        (("--time-budget", "5m", "--engine", "simulated"), "transformers, openai would"),
        (
            ("--time-budget", "5m", "--cache-name", "a", "--disk-path", "d", "--disk-size", "1GiB"),
            "--cache-name exclude",
        ),
    ],
)
def test_times_that_cannot_be_kept(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = lmcache("bench", "rag", *words, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_check_has_a_time_of_its_own(tmp_path: Path) -> None:
    done = lmcache(
        "check", "--bench", "rag --time-budget 5m", "--candidate", "--policy gdsf", cwd=tmp_path
    )
    assert done.returncode == 2 and "--max-time is a check's" in done.stderr, done.stderr
