"""``lmcache check`` from the outside. The simulated engine's clock is virtual, and its noise is
asked for, so nothing here depends on how fast this machine is."""

from __future__ import annotations

import json
import math
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import numpy as np
import psutil
import pytest
from junitparser import Error, Failure, JUnitXml

from lmcache_cli.check.in_process import engine_differences
from lmcache_cli.check.noise import rounds_needed
from lmcache_cli.options.bench import BenchOptions
from reports.run_file import read_run
from reports.verdict.judge import Terms
from reports.verdict.looks import SURE_ROUNDS, Looks, decide
from reports.verdict.rule import parse_rule
from tests.lmcache_cli.command_line import ROOT, lmcache, lmcache_process, running, until_said
from tests.lmcache_cli.small_model import save_model

pytestmark = pytest.mark.engine

QUIET = "long-context --engine simulated --documents 3 --questions 4 --context-tokens 400"
NOISY = f"{QUIET} --jitter 0.05"
P50 = ["--fail-on", "ttft.p50>5%"]
# A hit reads its chunks in two calls of 5 ms: 10 ms more than about 170 ms is 6 %; see SLOWER.
SLOWER = "--tier-latency 0.01"


def check(*args: str, cwd: Path, **env: str) -> CompletedProcess[str]:
    return lmcache("check", *args, cwd=cwd, **env)


def document(*args: str, cwd: Path) -> tuple[dict[str, Any], int]:
    done = check(*args, "--json", "-", "--quiet", cwd=cwd)
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


def metric(found: dict[str, Any], name: str) -> dict[str, Any]:
    [one] = [m for m in found["metrics"] if m["metric"] == name]
    return dict(one)


def test_a_delay_of_ten_percent_fails(tmp_path: Path) -> None:
    found, code = document("--bench", NOISY, "--candidate", SLOWER, cwd=tmp_path)
    ttft = metric(found, "ttft.p50")
    assert (code, found["verdict"], ttft["verdict"]) == (1, "FAIL", "FAIL")
    assert ttft["interval"]["low"] > 0.05 and 0.07 < ttft["change"] < 0.15
    assert found["schema"] == "lmcache.check/1" and found["complete"] is True
    assert all(m["verdict"] == "PASS" for m in found["metrics"] if m["exact"])


def test_no_change_passes_before_the_budget_is_spent(tmp_path: Path) -> None:
    # Another policy, but nothing is ever evicted.
    flags = ["--bench", NOISY, "--candidate", "--policy gdsf", "--max-rounds", "90"]
    found, code = document(*flags, cwd=tmp_path)
    ttft = metric(found, "ttft.p50")
    assert (code, found["verdict"]) == (0, "PASS")
    assert ttft["interval"]["high"] < 0.05 and ttft["rounds"] == 60
    assert metric(found, "hit_tokens.cpu")["baseline"] > 0


def test_the_rehearsal_of_the_docs_fails_as_they_say(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "check.md").read_text()
    [line] = [one for one in page.splitlines() if one.startswith("$") and "--jitter" in one]
    words = shlex.split(line.removeprefix("$ lmcache check "))
    found, code = document(*words, cwd=tmp_path)
    assert (code, metric(found, "ttft.p50")["verdict"]) == (1, "FAIL")


def test_a_moved_counter_fails_at_once(tmp_path: Path) -> None:
    flags = ["--bench", NOISY, "--candidate", "--chunk-tokens 48", "--quiet"]
    done = lmcache_process("check", *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "bytes_stored" in done.stdout and "2 rounds" in done.stdout
    assert "FAIL" in done.stdout.splitlines()[-1]


def test_an_exact_clock_is_no_proof(tmp_path: Path) -> None:
    """Without jitter the simulator gives the same times again and again."""
    found, code = document("--bench", QUIET, "--candidate", "--policy gdsf", cwd=tmp_path)
    ttft = metric(found, "ttft.p50")
    assert (code, ttft["verdict"]) == (3, "INCONCLUSIVE")
    assert "all equal" in ttft["reason"] and ttft["rounds"] < 10, "it saw that it is hopeless"


def test_too_short_is_inconclusive(tmp_path: Path) -> None:
    args = ["--bench", NOISY, "--candidate", "--policy gdsf", "--fail-on", "ttft.p50>0.1%"]
    found, code = document(*args, "--max-rounds", "11", cwd=tmp_path)
    ttft = metric(found, "ttft.p50")
    assert (code, ttft["verdict"], ttft["rounds"]) == (3, "INCONCLUSIVE", 11)
    assert "11 of at least 12 rounds" in ttft["reason"]
    assert ttft["smallest_visible"] > 0.001


@pytest.mark.parametrize(
    ("rule", "flags", "words"),
    [
        ("ttft.p99>5%", "", "has 12 requests, and it needs 100"),
        ("itl.p50>5%", "--output-tokens 1", "has 0 gaps between tokens, and it needs 2"),
        ("tpot.mean>5%", "--output-tokens 1", "has 0 requests of several tokens, and it needs 1"),
    ],
)
@pytest.mark.parametrize("sides", [["--policy gdsf"], ["--jitter 0.1"]])
def test_what_a_round_has_too_little_of_is_refused_before_an_engine_starts(
    rule: str,
    flags: str,
    words: str,
    sides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("in_process.start_engine", "side._run"):
        monkeypatch.setattr(f"lmcache_cli.check.{name}", lambda *args: pytest.fail("it ran"))
    args = ["--bench", f"{NOISY} {flags}", "--candidate", *sides, "--fail-on", rule]
    done = lmcache("check", *args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{rule} can't be judged: a round of long-context {words}" in done.stderr


def test_gaps_between_tokens_are_counted_not_requests(tmp_path: Path) -> None:
    bench = f"{NOISY} --output-tokens 12"
    args = ["--bench", bench, "--candidate", "--policy gdsf", "--fail-on", "itl.p99>5%"]
    found, _ = document(*args, "--max-rounds", "2", cwd=tmp_path)
    assert metric(found, "itl.p99")["rounds"] == 2


def test_hit_rate_rules(tmp_path: Path) -> None:
    """Half of the chunks fit, so hits are lost."""
    args = ["--bench", QUIET, "--candidate", "--cpu-size 20MiB", "--counters", "ignore"]
    found, code = document(*args, "--fail-on", "hit_rate<-0.5pp", cwd=tmp_path)
    assert (code, metric(found, "hit_rate")["verdict"]) == (1, "FAIL")
    assert metric(found, "hit_rate")["unit"] == "points" and metric(found, "n")["rounds"] == 2
    assert metric(found, "n")["verdict"] == "PASS", "other counters are decided by then"
    found, code = document(*args, "--fail-on", "hit_rate<-99pp", cwd=tmp_path)
    assert (code, found["verdict"]) == (0, "PASS")


def test_all_outputs(tmp_path: Path) -> None:
    done = check(
        *["--bench", NOISY, "--candidate", "--chunk-tokens 48", "--quiet", "--github"],
        *["--markdown", "out.md", "--junit", "out.xml", "--json", "out.json"],
        cwd=tmp_path,
        GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"),
    )
    assert done.returncode == 1, done.stderr
    markdown = (tmp_path / "out.md").read_text()
    assert markdown.startswith("### FAIL: lmcache check")
    assert (tmp_path / "summary.md").read_text() == markdown
    header, ruler, *rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in (header, ruler, *rows)} == {9}
    assert any("bytes_stored" in row and "**FAIL**" in row for row in rows)
    [suite] = JUnitXml.fromfile(str(tmp_path / "out.xml"))
    results = {case.name: case.result for case in suite}
    assert isinstance(results["bytes_stored"][0], Failure)
    assert isinstance(results["ttft.p50"][0], Error), "undecided is no success"
    assert results["hit_tokens.cpu"] == []
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "FAIL"


def test_every_sample_is_kept(tmp_path: Path) -> None:
    found, _ = document("--bench", NOISY, "--candidate", "--policy gdsf", cwd=tmp_path)
    [path] = (tmp_path / "runs").glob("check-*.parquet")
    samples, meta = read_run(path)
    assert len(samples) == 2 * 12 * metric(found, "ttft.p50")["rounds"]
    assert meta["kind"] == "check" and meta["sides"]["candidate"]["args"][-1] == "gdsf"


def test_two_pythons(tmp_path: Path) -> None:
    """Both sides in processes of their own; here it is the same version twice."""
    args = ["--baseline-python", sys.executable, "--candidate-python", sys.executable]
    bench = f"{QUIET} --chunk-tokens"
    found, code = document(
        "--baseline", f"{bench} 64", "--candidate", f"{bench} 48", *args, cwd=tmp_path
    )
    assert (code, metric(found, "bytes_stored")["verdict"]) == (1, "FAIL")
    assert metric(found, "bytes_stored")["rounds"] == 2
    assert found["sides"]["baseline"]["python"] == sys.executable
    assert found["sides"]["baseline"]["version"]


def test_sides_of_different_engines_run_in_processes(tmp_path: Path) -> None:
    done = check(
        "--bench", QUIET, "--candidate", "--jitter 0.01", "--max-rounds", "1", cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert "the sides differ in --jitter (0.0 and 0.01): one engine can't" in done.stderr
    assert "processes of its own" in done.stderr


def test_what_one_engine_cannot_serve_is_named() -> None:
    base = BenchOptions(engine="simulated")
    assert engine_differences(base, replace(base, policy="gdsf", cpu_size="1GiB")) == []
    other = replace(base, probe=Path("p.json"), dtype="float16", tier_latency=0.1)
    found = engine_differences(base, other)
    assert found == ["--dtype (auto and float16)", "--probe (the default and p.json)"]


def test_a_stored_baseline_warns_of_drift(tmp_path: Path) -> None:
    flags = ["--quiet", "--repeat", "8", "--reuse", "prefix"]
    assert lmcache("bench", *NOISY.split(), *flags, cwd=tmp_path).returncode == 0
    [path] = (tmp_path / "runs").glob("bench-*.parquet")
    done = check("--baseline", str(path), "--candidate", NOISY, "--json", "-", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert "measured at another time" in done.stderr
    assert metric(found, "ttft.p50")["verdict"] == "INCONCLUSIVE", "one day is one sample"
    assert metric(found, "n")["verdict"] == "PASS" and metric(found, "n")["rounds"] == 8
    flags = ["--json", "-", "--noise", "0.01"]
    done = check("--baseline", str(path), "--candidate", NOISY, *flags, cwd=tmp_path)
    known = metric(json.loads(done.stdout), "ttft.p50")
    assert known["verdict"] != "FAIL" and known["interval"]["high"] is not None
    done = check(
        *["--baseline", str(path), "--candidate", f"{NOISY} {SLOWER}0 --reuse prefix"],
        *["--json", "-", "--fail-on", "ttft.p50>1%"],
        cwd=tmp_path,
    )
    assert done.returncode in (1, 3), done.stderr


def test_a_stored_baseline_of_other_hardware_is_for_counters_only(tmp_path: Path) -> None:
    flags = ["--quiet", "--reuse", "prefix", "--json", "base.json"]
    assert lmcache("bench", *QUIET.split(), *flags, cwd=tmp_path).returncode == 0
    path = tmp_path / "base.json"
    stored = json.loads(path.read_text())
    stored["machine"]["fingerprint"] = "elsewhere"
    path.write_text(json.dumps(stored))
    sides = ["--baseline", "base.json", "--candidate", QUIET]
    done = check(*sides, cwd=tmp_path)
    assert done.returncode == 2 and "other hardware" in done.stderr
    found, code = document(*sides, "--fail-on", "hit_rate<0pp", cwd=tmp_path)
    assert (code, found["verdict"]) == (0, "PASS"), found
    assert found["warnings"] == [], "no clock, no drift"
    sides[-1] += " --chunk-tokens 48"
    rule = ["--fail-on", "hit_rate<0pp"]
    files = ["--junit", "x.xml", "--markdown", "x.md", "--github"]
    done = check(*sides, *rule, *files, cwd=tmp_path, GITHUB_STEP_SUMMARY="summary")
    assert done.returncode == 2 and "chunk-tokens: 64 and 48" in done.stderr
    [case] = next(iter(JUnitXml.fromfile(str(tmp_path / "x.xml"))))
    assert isinstance(case.result[0], Error) and "64 and 48" in case.result[0].message
    texts = [(tmp_path / name).read_text() for name in ("x.md", "summary")]
    assert all(t.startswith("### refused: lmcache check") and "64 and 48" in t for t in texts)
    assert document(*sides, *rule, "--allow-different", "chunk-tokens", cwd=tmp_path)[1] == 1
    sides[-1] = f"{QUIET} --seed 3"
    done = check(*sides, *rule, cwd=tmp_path)
    assert done.returncode == 2 and "seed: 0 and 3" in done.stderr
    sides[-1] = "chat --engine simulated"
    done = check(*sides, *rule, cwd=tmp_path)
    assert done.returncode == 2 and "workload: long-context and chat" in done.stderr


def test_calibrate_tells_the_noise(tmp_path: Path) -> None:
    found, code = document(
        "--bench", NOISY, "--calibrate", "--max-rounds", "40", *P50, cwd=tmp_path
    )
    [noise] = found["metrics"]
    assert code == 0 and found["schema"] == "lmcache.calibrate/1"
    # 5 % a request, and the p50 of the nine that hit.
    assert noise["rounds"] == 40 and 0.01 < noise["cv"] < 0.04
    # Fewer would do against this noise, but a check of fewer is deceived by noise that sticks.
    assert noise["false_alarms"] <= 0.05 and noise["rounds_needed"] == SURE_ROUNDS


def test_more_noise_and_more_metrics_need_more_rounds() -> None:
    """By the decision itself: with as many rounds, nine of ten changes of twice the limit FAIL."""
    rule = parse_rule("ttft.p50>5%")
    rng = np.random.default_rng(0)
    needed = {}
    for metrics in (1, 12):
        level = Terms(metrics=metrics).levels[0]
        found = rounds_needed(0.15, rule, level)
        assert found is not None
        needed[metrics] = found
        slower = rng.normal(math.log1p(0.1), 0.15, (500, found))
        looks = Looks.of(np.zeros_like(slower), slower)
        failed = (decide(looks, rule.bound, False, level, 0.05, True).outcome == 1).mean()
        assert 0.85 < failed < 0.97, metrics
    assert SURE_ROUNDS < needed[1] < needed[12]
    assert rounds_needed(0.02, rule, 0.05) == SURE_ROUNDS
    assert rounds_needed(5.0, rule, 0.05) is None


def test_calibrate_says_why_it_can_tell_nothing(tmp_path: Path) -> None:
    for flags, words in (
        ([QUIET], "ttft.p50: all 6 rounds took equally long, so no clock measured them"),
        ([NOISY, "--max-rounds", "3"], "ttft.p50: 3 of 3 rounds measured it, 5 are needed"),
        ([NOISY, "--fail-on", "hit_rate<-1pp"], "hit_rate: a counter is judged exactly"),
    ):
        rounds = [] if "--max-rounds" in flags else ["--max-rounds", "6"]
        rule = [] if "--fail-on" in flags else P50
        done = check("--calibrate", "--quiet", *rounds, *rule, "--bench", *flags, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (3, ""), done.stderr
        [line] = done.stderr.splitlines()
        assert line.startswith("lmcache: no noise to tell of: long-context prefix cpu, ")
        assert words in line


def cpu_seconds(process: Popen[str]) -> float:
    return sum(psutil.Process(process.pid).cpu_times()[:2])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interruption_keeps_what_was_measured(stop: signal.Signals, tmp_path: Path) -> None:
    # Both sides are equal, and so the limit is where the truth is: whatever its level, an interval
    # excludes it by chance only. Rules that share the level with it make that one check in 1,600.
    rules = ["ttft.p50>0.0001%", *(f"e2e.p{share}>900%" for share in range(10, 91))]
    flags = ["--bench", NOISY, "--candidate", "--policy gdsf", "--max-rounds", "100000"]
    flags += [word for rule in rules for word in ("--fail-on", rule)]
    flags += ["--json", "out.json", "--junit", "out.xml"]
    with running("check", *flags, cwd=tmp_path) as process:
        until_said(process, "warming up")
        # Several rounds' worth of work, however long a busy machine takes for it.
        started = cpu_seconds(process)
        while cpu_seconds(process) < started + 4:
            assert process.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.05)
        process.send_signal(stop)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "INCONCLUSIVE" in out and "interrupted" in err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["complete"] is False and metric(found, "ttft.p50")["rounds"] > 5
    assert (tmp_path / "out.xml").exists()
    [path] = (tmp_path / "runs").glob("check-*.parquet")
    assert read_run(path)[1]["complete"] is False


BAD = [
    ([], "nothing to compare"),
    (["--bench", QUIET], "both sides are the same"),
    (["--bench", QUIET, "--candidate", "--no-such 3"], "--candidate: No such option"),
    (["--bench", QUIET, "--candidate", "--cpu-size 3XB"], "3XB"),
    (["--bench", QUIET, "--candidate", "--seed 4"], "same requests"),
    (["--bench", QUIET, "--candidate", "--cpu-size 1GiB,2GiB"], "1 cells and the candidate 2"),
    (["--bench", QUIET, "--candidate", "--concurrency 2"], "--concurrency differs"),
    (["--bench", QUIET, "--candidate", "'"], "quote"),
    (["--bench", QUIET, "--candidate", "--policy gdsf", "--fail-on", "ttft.p50>5"], "--fail-on"),
    (["--bench", QUIET, "--candidate", "--policy gdsf", "--counters", "some"], "'exact', 'worse'"),
    (["--bench", QUIET, "--candidate", "--policy gdsf", "--max-time", "soon"], "--max-time"),
    (["--bench", QUIET, "--candidate", "--policy gdsf", "--max-rounds", "0"], "--max-rounds"),
    (["--bench", QUIET, "--candidate", "--policy gdsf", "--github"], "GITHUB_STEP_SUMMARY"),
    (["--bench", QUIET, "--candidate", "--policy gdsf", "--junit", "no/such.xml"], "--junit"),
    (["--bench", QUIET, "--candidate", "--policy gdsf", "--noise", "0.1"], "about stored runs"),
    (["--bench", QUIET, "--bisect", "a", "b", "--json", "x.json"], "--bisect: prints a commit"),
    (["--baseline", "gone.parquet", "--candidate", QUIET], "gone.parquet does not exist"),
    (["--baseline", QUIET, "--candidate", "x.json"], "use lmcache compare"),
    (["--baseline", "gone.yaml", "--candidate", QUIET], "gone.yaml"),
]


@pytest.mark.parametrize(("args", "words"), BAD, ids=[" ".join(a[2:]) or "none" for a, _ in BAD])
def test_bad_input_is_one_clear_line_and_exit_2(
    args: list[str], words: str, tmp_path: Path
) -> None:
    done = check(*args, "--quiet", cwd=tmp_path, GITHUB_STEP_SUMMARY="")
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert words in done.stderr and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_yaml_file_is_a_side(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "workloads: [long-context]\nengine: simulated\ncontext-tokens: 400\ndocuments: 3\n"
        "questions: 4\n"
    )
    found, code = document(
        "--baseline", "base.yaml", "--candidate", f"{QUIET} --chunk-tokens 48", cwd=tmp_path
    )
    assert (code, metric(found, "bytes_stored")["verdict"]) == (1, "FAIL")
    (tmp_path / "base.yaml").write_text("colour: red\n")
    done = check("--baseline", "base.yaml", "--candidate", QUIET, cwd=tmp_path)
    assert done.returncode == 2 and "'colour' is no flag; these are: admission" in done.stderr
    assert "completion" not in done.stderr, "no flag of bench"


REAL = "long-context --documents 2 --questions 3 --context-tokens 100 --question-tokens 12"


def test_a_real_engine(tmp_path: Path) -> None:
    """A delay far beyond any noise here, and a change of chunk length that moves a counter."""
    model = save_model(tmp_path / "model", "llama")
    bench = f"{REAL} --output-tokens 2 --chunk-tokens 16 --model {model}"
    slower = ["--candidate", "--tier-latency 0.2", "--max-rounds", "12"]
    found, code = document("--bench", bench, *slower, cwd=tmp_path)
    assert (code, metric(found, "ttft.p50")["verdict"]) == (1, "FAIL")
    assert metric(found, "hit_tokens.cpu")["verdict"] == "PASS"
    found, code = document("--bench", bench, "--candidate", "--chunk-tokens 24", cwd=tmp_path)
    moved = [m for m in found["metrics"] if m["exact"] and m["verdict"] == "FAIL"]
    assert code == 1 and moved and all(m["rounds"] == 2 for m in moved)
