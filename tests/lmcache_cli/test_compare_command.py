"""``lmcache compare``: stored runs, ours and other tools'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmcache_cli.check.stored_runs import read_compared
from lmcache_cli.errors import UserError
from reports.run_file import write_run
from reports.verdict.interval import change_points
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
    found, code = compare(runs, "base", "same")
    assert (code, found["verdict"]) == (0, "PASS")
    assert metric(found, "ttft.p50")["rounds"] == 10
    assert metric(found, "hit_tokens.cpu")["verdict"] == "PASS"


def test_a_slower_one_fails(runs: Path) -> None:
    found, code = compare(runs, "base", "slow")
    assert (code, metric(found, "ttft.p50")["verdict"]) == (1, "FAIL")


def test_unlike_runs_are_refused_by_name(runs: Path) -> None:
    done = lmcache("compare", "base", "moved", cwd=runs)
    assert done.returncode == 2 and done.stdout == ""
    assert "chunk-tokens: 64 and 48" in done.stderr
    found, code = compare(runs, "base", "moved", "--allow-different", "chunk-tokens")
    assert (code, metric(found, "bytes_stored")["verdict"]) == (1, "FAIL")
    assert any("chunk-tokens differs" in warning for warning in found["warnings"])
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
    found, code = compare(runs, "base.json", "slow.json", "--noise", "0.01")
    assert (code, metric(found, "ttft.p50")["verdict"]) == (1, "FAIL")


@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools(tool: str, tmp_path: Path) -> None:
    for side, times in (("base", (100, 101, 99)), ("slow", (120, 121, 119))):
        (tmp_path / side).mkdir()
        for i, ttft_ms in enumerate(times):
            write(tool, tmp_path / side / f"{i}.json", ttft_ms)
    [(_, rounds)] = read_compared(tmp_path / "base" / "0.json").cells.items()
    assert rounds[0].n == 200 and rounds[0].value("ttft.p50") == pytest.approx(0.1)
    assert rounds[0].failed == (tool == "vllm-detailed")
    found, code = compare(tmp_path, "base", "slow")
    assert (code, metric(found, "ttft.p50")["verdict"]) == (1, "FAIL")
    assert metric(found, "n")["verdict"] == "PASS"
    found, code = compare(tmp_path, "base", "base")
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
        ("", "no run"),
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
    [change] = json.loads(done.stdout)["changes"]
    assert change["run"].endswith("5.json") and change["regression"] is True
    assert change["change"] == pytest.approx(0.2, abs=0.02)
    done = lmcache("compare", "--history", ".", "--fail-on", "ttft.p50>50%", cwd=tmp_path)
    assert done.returncode == 0 and "5.json" in done.stdout


def test_what_check_keeps_is_skipped_among_runs_and_refused_alone(tmp_path: Path) -> None:
    for i, ttft_ms in enumerate([100, 102, 99, 101, 100, 101]):
        write("vllm", tmp_path / f"{i}.json", ttft_ms)
    write_run(tmp_path / "check-1.parquet", [], {"kind": "check"})
    for args in (["--history", "."], [".", "."]):
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


def test_change_points() -> None:
    noise = [0.01, -0.02, 0.015, -0.01, 0.02, -0.015] * 3
    assert change_points(noise) == []
    stepped = [v + (0.2 if i >= 9 else 0.0) for i, v in enumerate(noise)]
    assert change_points(stepped) == [9]
    assert change_points([1.0] * 4 + [2.0] * 4) == [4]
    assert change_points([0.0, 5.0, 0.0]) == []


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
