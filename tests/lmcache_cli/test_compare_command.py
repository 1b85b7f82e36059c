"""``lmcache compare``: stored runs, ours and other tools'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml

from lmcache_cli.check.stored_runs import read_compared
from lmcache_cli.errors import UserError
from reports.run_file import write_run
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.foreign_runs import TOOLS, write

ROOT = str(Path(__file__).parents[2])
BENCH = "long-context --engine simulated --documents 3 --questions 4 --context-tokens 400"


def bench(cwd: Path, out: str, *flags: str) -> None:
    args = ["--reuse", "prefix", "--jitter", "0.03", "--quiet", "--out", out, *flags]
    done = lmcache("bench", *BENCH.split(), *args, "--json", f"{out}.json", cwd=cwd)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: base and same are alike, slow is slower, moved has other chunks."""
    cwd = tmp_path_factory.mktemp("runs")
    for name in ("base", "same"):
        bench(cwd, name, "--repeat", "10")
    bench(cwd, "slow", "--repeat", "10", "--tier-latency", "0.02")
    bench(cwd, "moved", "--repeat", "2", "--chunk-tokens", "48")
    return cwd


def compare(cwd: Path, *args: str) -> tuple[dict[str, Any], int]:
    done = lmcache("compare", *args, "--json", "-", cwd=cwd)
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


def metric(found: dict[str, Any], name: str) -> dict[str, Any]:
    [one] = [m for m in found["metrics"] if m["metric"] == name]
    return dict(one)


def test_runs_that_are_alike_pass(runs: Path) -> None:
    found, code = compare(runs, "base", "same", "--noise", "0.01")
    assert (code, found["verdict"]) == (0, "PASS")
    assert metric(found, "hit_tokens.cpu")["verdict"] == "PASS"


def test_a_slower_one_fails(runs: Path) -> None:
    found, code = compare(runs, "base", "slow", "--noise", "0.01")
    assert (code, metric(found, "ttft.p50")["verdict"]) == (1, "FAIL")


def test_runs_of_one_day_are_one_sample(runs: Path) -> None:
    found, code = compare(runs, "base", "slow")
    assert (code, metric(found, "ttft.p50")["verdict"]) == (3, "INCONCLUSIVE")
    assert metric(found, "ttft.p50")["rounds"] == 1
    assert "runs of one day are one sample" in metric(found, "ttft.p50")["reason"]
    way_out = "; counters alone can be judged at once: --fail-on 'hit_rate<0pp'"
    assert [m["metric"] for m in found["metrics"] if way_out in m["reason"]] == ["ttft.p50"]
    found, code = compare(runs, "base.json", "base.json", "--fail-on", "hit_rate<0pp")
    assert (code, found["verdict"]) == (0, "PASS")
    assert any("one sample" in warning for warning in found["warnings"])
    found, code = compare(runs, "base", "slow", "--inconclusive", "pass")
    assert (code, found["verdict"]) == (0, "INCONCLUSIVE")


def test_unlike_runs_are_refused_by_name(runs: Path, tmp_path: Path) -> None:
    done = lmcache("compare", "base", "moved", "--junit", str(tmp_path / "x.xml"), cwd=runs)
    assert done.returncode == 2 and done.stdout == ""
    assert "chunk-tokens: 64 and 48" in (tmp_path / "x.xml").read_text()
    assert "chunk-tokens: 64 and 48" in done.stderr
    found, code = compare(runs, "base", "moved", "--allow-different", "chunk-tokens")
    assert (code, metric(found, "bytes_stored")["verdict"]) == (1, "FAIL")
    assert any("chunk-tokens differs" in warning for warning in found["warnings"])
    files = ["--junit", str(tmp_path / "x.xml"), "--markdown", str(tmp_path / "x.md")]
    allowed = ["--allow-different", "chunk-tokens"]
    done = lmcache("compare", "base", "moved", *allowed, *files, cwd=runs)
    cause = "; the sides differ in chunk-tokens: 64 and 48; changed"
    first = next(line for line in done.stdout.splitlines() if "differ in" in line)
    assert first.startswith("long-context 400 prefix cpu, bytes_stored: fell 10.0 %; the sides")
    [suite] = JUnitXml.fromfile(files[1])
    failures = [result.message for case in suite for result in case.result]
    failures = [text for text in failures if cause in text]
    assert failures and all(" fell " in text or " rose " in text for text in failures)
    markdown = Path(files[3]).read_text()
    assert cause in markdown and "- baseline: base/bench-" in markdown and "['" not in markdown
    done = lmcache("compare", "base", "same", "--allow-different", "colour", cwd=runs)
    assert done.returncode == 2 and "'colour' is none of" in done.stderr


def test_other_requests_and_hardware_are_refused(runs: Path, tmp_path: Path) -> None:
    bench(tmp_path, "seeded", "--seed", "7")
    done = lmcache("compare", str(runs / "base"), "seeded", cwd=tmp_path)
    assert done.returncode == 2 and "seed: 0 and 7" in done.stderr
    document = json.loads((runs / "base.json").read_text())
    document["machine"]["fingerprint"] = "elsewhere"
    (tmp_path / "moved.json").write_text(json.dumps(document))
    done = lmcache("compare", str(runs / "base.json"), "moved.json", cwd=tmp_path)
    assert done.returncode == 2 and "hardware: " in done.stderr


def test_bench_json_has_counters_and_times_but_no_noise(runs: Path) -> None:
    found, code = compare(runs, "base.json", "same.json")
    assert (code, metric(found, "ttft.p50")["verdict"]) == (3, "INCONCLUSIVE")
    assert metric(found, "hit_tokens.cpu")["verdict"] == "PASS"
    assert not any("tells no day" in warning for warning in found["warnings"])
    found, code = compare(runs, "base.json", "slow.json", "--noise", "0.01")
    assert (code, metric(found, "ttft.p50")["verdict"]) == (1, "FAIL")


def on_day(path: Path, day: int) -> Path:
    """Dates a run of vLLM, aiperf or LLMPerf; other tools don't tell."""
    run = json.loads(path.read_text())
    if "timestamp" in run:
        run["timestamp"] += 86400 * day
    for name in ("date", "start_time"):
        if name in run:
            run[name] = f"2026-01-{day + 1:02d}T12:00:00"
    path.write_text(json.dumps(run) + "\n")
    return path


@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools(tool: str, tmp_path: Path) -> None:
    for side, times in (("base", (100, 101, 99)), ("slow", (120, 121, 119))):
        (tmp_path / side).mkdir()
        for i, ttft_ms in enumerate(times):
            on_day(write(tool, tmp_path / side / f"{i}.json", ttft_ms), i)
    [(_, rounds)] = read_compared(tmp_path / "base" / "0.json").cells.items()
    assert rounds[0].n == 200 and rounds[0].value("ttft.p50") == pytest.approx(0.1)
    assert rounds[0].failed == (tool == "vllm-detailed")
    found, code = compare(tmp_path, "base", "slow")
    assert (code, metric(found, "ttft.p50")["verdict"]) == (1, "FAIL")
    assert metric(found, "n")["verdict"] == "PASS"
    found, code = compare(tmp_path, "base", "base", "--noise", "0.01")
    assert (code, found["verdict"]) == (0, "PASS")


@pytest.mark.parametrize("tool", TOOLS)
def test_other_models_are_refused(tool: str, tmp_path: Path) -> None:
    write(tool, tmp_path / "a.json", 100)
    write(tool, tmp_path / "b.json", 100, model="another")
    done = lmcache("compare", "a.json", "b.json", cwd=tmp_path)
    assert done.returncode == 2 and "model: " in done.stderr and "another" in done.stderr


def test_two_tools_are_refused(tmp_path: Path) -> None:
    write("vllm", tmp_path / "a.json", 100)
    write("aiperf", tmp_path / "b.json", 100)
    done = lmcache("compare", "a.json", "b.json", cwd=tmp_path)
    assert done.returncode == 2 and "tool: aiperf and vllm" in done.stderr


def test_details_of_each_tool(tmp_path: Path) -> None:
    def one(tool: str) -> Any:
        return next(iter(read_compared(write(tool, tmp_path / "x.json", 100)).cells.values()))[0]

    assert one("sglang").hit_rate == 0.25
    assert one("vllm-detailed").value("itl.mean") == pytest.approx(0.0075)
    assert one("vllm-detailed").value("ttft.p99") == pytest.approx(0.1)
    assert one("guidellm").value("e2e.p90") == pytest.approx(0.225)
    assert one("guidellm").value("ttft.p1") is None, "p01 and p001 are no p1"
    assert one("aiperf").value("throughput.requests_per_s") == 10
    assert one("lmcache-engine").value("throughput.requests_per_s") == 10


def test_sglang_lines_are_rounds(tmp_path: Path) -> None:
    lines = [write("sglang", tmp_path / "x.json", t).read_text() for t in (100, 101, 102)]
    (tmp_path / "runs.jsonl").write_text("".join(lines))
    [rounds] = read_compared(tmp_path / "runs.jsonl").cells.values()
    assert [r.value("ttft.p50") for r in rounds] == pytest.approx([0.1, 0.101, 0.102])


def test_p99_of_few_requests_of_another_tool_is_refused(tmp_path: Path) -> None:
    for name, n in (("few", 50), ("many", 400)):
        write("vllm", tmp_path / f"{name}.json", 100, n=n)
        flags = ["--fail-on", "ttft.p99>5%", "--noise", "0.01"]
        found, code = compare(tmp_path, f"{name}.json", f"{name}.json", *flags)
        assert (code == 0) == (name == "many"), found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file"),
        ("{", "neither JSON nor"),
        ("[]", "no run"),
        ("{}", "no tool that is known"),
        ("[1, 2]", "no run"),
        ('{"completed": 3, "request_throughput": 1}', "total_input_tokens"),
        ('{"benchmarks": [{}]}', "metrics"),
        ('{"schema": "lmcache.tune/1"}', "no tool that is known"),
    ],
)
def test_what_is_no_run(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_compared(tmp_path / "x.json")
    assert words in str(error.value) and "x.json" in str(error.value)


def test_history_names_the_run_that_changed(tmp_path: Path) -> None:
    for i, ttft_ms in enumerate([100, 102, 99, 101, 100, 121, 119, 120, 122, 120]):
        path = write("vllm", tmp_path / f"{i}.json", ttft_ms)
        run = json.loads(path.read_text()) | {"date": f"20260101-12000{i}"}
        path.write_text(json.dumps(run))
    done = lmcache("compare", "--history", ".", "--json", "-", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    change, _ = json.loads(done.stdout)["changes"]
    assert change["run"].endswith("5.json") and change["regression"] is True
    assert change["change"] == pytest.approx(0.2, abs=0.02)
    done = lmcache("compare", "--history", ".", "--fail-on", "ttft.p50>50%", cwd=tmp_path)
    assert "+20.0 %" in done.stdout
    assert done.returncode == 0 and "5.json" in done.stdout
    done = lmcache("compare", "--history", ".", "--allow-different", "modle", cwd=tmp_path)
    assert done.returncode == 2 and "--allow-different: 'modle' is none of" in done.stderr
    run = json.loads((tmp_path / "9.json").read_text()) | {"max_concurrency": 4}
    (tmp_path / "9.json").write_text(json.dumps(run))
    run = json.loads((tmp_path / "8.json").read_text()) | {"max_concurrency": 8}
    (tmp_path / "8.json").write_text(json.dumps(run))
    assert "max_concurrency: 8 and 4" in lmcache("compare", "--history", ".", cwd=tmp_path).stderr
    allowed = ["--history", ".", "--allow-different", "max_concurrency"]
    assert lmcache("compare", *allowed, cwd=tmp_path).returncode == 1


def test_what_check_keeps_is_skipped_among_runs_and_refused_alone(tmp_path: Path) -> None:
    for i, ttft_ms in enumerate([100, 102, 99, 101, 100, 101]):
        on_day(write("vllm", tmp_path / f"{i}.json", ttft_ms), i)
    write_run(tmp_path / "check-1.parquet", [], {"kind": "check"})
    for args in (["--history", "."], [".", ".", "--noise", "0.01"]):
        done = lmcache("compare", *args, cwd=tmp_path)
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert "warning: check-1.parquet is skipped: the samples" in done.stderr
        assert "check-1" not in lmcache("compare", *args, "--quiet", cwd=tmp_path).stderr
    done = lmcache("compare", "check-1.parquet", "0.json", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "check-1.parquet: the samples of a `lmcache check`, no run of `lmcache bench`" in line


def test_a_short_or_quiet_history(tmp_path: Path) -> None:
    for i, ttft_ms in enumerate([100, 102, 99, 101, 100]):
        write("vllm", tmp_path / f"{i}.json", ttft_ms)
    assert lmcache("compare", "--history", ".", cwd=tmp_path).returncode == 3
    write("vllm", tmp_path / "5.json", 101)
    done = lmcache("compare", "--history", ".", cwd=tmp_path)
    assert done.returncode == 0 and "no change" in done.stdout


def history(folder: Path, values: list[float], machine: str = "", step: int = 0) -> None:
    """Writes a run of ours a day, each with a commit, of one machine."""
    for i, ttft_ms in enumerate(values):
        cell = {"workload": "rag", "engine": "e", "model": "m", "reuse": "prefix", "tiers": []}
        counted = {"n": 10, "failed": 0, "ttft_ms": {"p50": ttft_ms}}
        run = {
            "schema": "lmcache.bench/1",
            "started": f"2026-01-{i + 1:02d}T{12 + step}:00:00+00:00",
            "commit": f"{i:x}" * 40,
            "config": {"seed": 0},
            "machine": {"fingerprint": machine},
            "cells": [cell | counted],
        }
        (folder / f"{machine}{i:02d}.json").write_text(json.dumps(run))


LEVELS = [100.0, 102, 99, 101, 100, 98, 121, 119, 120, 122, 120, 121]


def test_a_history_names_the_commit_and_can_be_told_that_it_is_known(tmp_path: Path) -> None:
    history(tmp_path, LEVELS)
    done = lmcache("compare", "--history", ".", "--json", "-", cwd=tmp_path)
    [change] = json.loads(done.stdout)["changes"]
    assert (done.returncode, change["commit"]) == (1, "6" * 40)
    assert f"known-changes.txt: {'6' * 40} ttft.p50" in done.stderr
    for line, code in (
        ("6666666 ttft.p50  # wanted", 0),
        ("07.json", 0),  # nearby
        ("6666666 e2e.p50", 1),
        ("666", 1),
        ("1111111", 1),
    ):
        (tmp_path / "known-changes.txt").write_text(f"# ours\n\n{line}\n")
        done = lmcache("compare", "--history", ".", "--json", "-", cwd=tmp_path)
        assert done.returncode == code, (line, done.stderr)


def test_a_history_is_judged_by_machine(tmp_path: Path) -> None:
    history(tmp_path, LEVELS[:6], "old")
    history(tmp_path, LEVELS[6:], "new", step=1)
    done = lmcache("compare", "--history", ".", cwd=tmp_path)
    assert done.returncode == 0 and "no change" in done.stdout, done.stderr
    assert "each judged alone: old (6 runs), new (6 runs)" in done.stderr


def test_a_change_that_was_taken_back_is_no_regression(tmp_path: Path) -> None:
    history(tmp_path, [*LEVELS, *LEVELS[:6]])
    done = lmcache("compare", "--history", ".", "--json", "-", cwd=tmp_path)
    assert done.returncode == 0
    assert all(change["change"] < 0.05 for change in json.loads(done.stdout)["changes"])


def test_a_level_that_was_there_before_is_undecided(tmp_path: Path) -> None:
    """As of a machine with two states: slow for a while, back, and slow again."""
    base, slow = [100.0, 100.5, 99.5, 100.2, 99.8], [120.0, 120.4, 119.6, 120.2]
    history(tmp_path, [*base, *base, *slow, *base, *base, *slow, *slow])
    done = lmcache("compare", "--history", ".", "--json", "-", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    [change, *_] = json.loads(done.stdout)["changes"]
    assert change["change"] == pytest.approx(0.2, abs=0.02)
    assert (change["seen"], change["regression"], change["undecided"]) == (True, False, True)
    assert "as runs before it were" in done.stderr
    table = lmcache("compare", "--history", ".", "--inconclusive", "pass", cwd=tmp_path)
    assert table.returncode == 0 and "seen before" in table.stdout


def test_noise_is_taken_from_a_history(tmp_path: Path) -> None:
    for name in ("past", "base", "new"):
        (tmp_path / name).mkdir()
    history(tmp_path / "past", [100.0, 110, 95, 104, 99, 106, 93, 101])
    history(tmp_path / "base", [100.0])
    history(tmp_path / "new", [108.0])
    wide, code = compare(tmp_path, "base", "new", "--noise", "past")
    assert (code, metric(wide, "ttft.p50")["verdict"]) == (3, "INCONCLUSIVE")
    assert wide["settings"]["noise"]["ttft.p50"] > 0.05
    assert compare(tmp_path, "base", "new", "--noise", "0.005")[1] == 1
    done = lmcache("compare", "base", "new", "--noise", "base", cwd=tmp_path)
    assert done.returncode == 2 and "fewer than 6 days" in done.stderr


def test_usage(tmp_path: Path) -> None:
    for args, words in (
        (["base"], "two sides"),
        (["a.json", "b.json"], "a.json"),
        (["--history", "nowhere"], "no folder"),
        ([".", "."], "holds no run"),
        (["--history", ".", "x"], "leave them out"),
    ):
        done = lmcache("compare", *args, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr, (args, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
