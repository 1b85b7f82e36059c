"""``lmcache compare`` of what other tools leave: sweeps, folders, loads, runs bound by time."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmcache_cli.check.compare import run_compare
from lmcache_cli.check.run import CheckOutputs
from lmcache_cli.check.side import Judgement
from lmcache_cli.check.stored_runs import read_compared, read_runs
from lmcache_cli.errors import UserError
from lmcache_cli.options.verdict import JudgementFlags
from reports.stored import json_of
from tests.lmcache_cli.foreign_runs import write


def made(tool: str, folder: Path, ttft_ms: float, **more: Any) -> dict[str, Any]:
    document = json.loads(write(tool, folder / "made.json", ttft_ms).read_text())
    (folder / "made.json").unlink()
    return dict(document) | more


def judged(base: Path, new: Path, **flags: Any) -> dict[str, Any]:
    """The document of a comparison by p50 and counters; ``noise`` and ``allowed`` are flags."""
    out = base.parent / "verdict.json"
    noise = flags.get("noise")
    given = JudgementFlags(
        counters=flags.get("counters", "exact"), noise=None if noise is None else str(noise)
    )
    rules = replace(Judgement.of(given), allowed=flags.get("allowed", ()))
    run_compare(str(base), str(new), rules, CheckOutputs(json=str(out)), True)
    return dict(json.loads(out.read_text()))


def verdicts(document: dict[str, Any], metric: str = "ttft.p50") -> dict[str, str]:
    return {m["cell"]: m["verdict"] for m in document["metrics"] if m["metric"] == metric}


@pytest.mark.parametrize("name", ["summary.json", "all.json"])
def test_a_summary_does_not_count_its_runs_again(tmp_path: Path, name: str) -> None:
    runs = [made("vllm", tmp_path, 100 + i, run_number=i) for i in range(2)]
    for i, run in enumerate(runs):
        (tmp_path / f"run={i}.json").write_text(json.dumps(run))
    listed = [{**run, "more": 1} for run in runs]
    (tmp_path / name).write_text(json.dumps(listed))
    warnings: list[str] = []
    found = read_runs(str(tmp_path), "BASE", warnings)
    assert [run.path.name for run in found] == ["run=0.json", "run=1.json"]
    assert any(name in warning and "not counted again" in warning for warning in warnings)
    listed[1]["completed"] += 1  # now it holds a run of its own
    (tmp_path / name).write_text(json.dumps(listed))
    assert len(read_runs(str(tmp_path), "BASE", [])) == 3


def test_equal_runs_in_files_of_their_own_are_runs(tmp_path: Path) -> None:
    for i in range(2):
        write("vllm", tmp_path / f"{i}.json", 100)
    assert len(read_runs(str(tmp_path), "BASE", [])) == 2


def sglang(folder: Path, name: str, p50s: dict[int, float]) -> Path:
    lines = [made("sglang", folder, p50, max_concurrency=load) for load, p50 in p50s.items()]
    (folder / name).write_text("\n".join(map(json.dumps, lines)))
    return folder / name


def test_loads_of_one_file_are_cells(tmp_path: Path) -> None:
    base = sglang(tmp_path, "base.jsonl", {1: 50, 4: 90, 16: 200})
    new = sglang(tmp_path, "new.jsonl", {16: 260, 1: 50, 4: 90})
    found = verdicts(judged(base, new, noise=0.01))
    assert {cell[-2:]: verdict for cell, verdict in found.items()} == {
        " 1": "PASS",
        " 4": "PASS",
        "16": "FAIL",
    }
    other = sglang(tmp_path, "other.jsonl", {1: 50, 4: 90, 32: 200})
    with pytest.raises(UserError, match=r"only one side has .*16.*32"):
        judged(base, other)
    single = sglang(tmp_path, "single.jsonl", {4: 90}), sglang(tmp_path, "eight.jsonl", {8: 90})
    with pytest.raises(UserError, match="max_concurrency: 4 and 8"):
        judged(*single)


def test_lines_of_another_model_are_no_rounds_of_the_first(tmp_path: Path) -> None:
    lines = [made("vllm", tmp_path, 100, model_id=model) for model in ("a", "b")]
    (tmp_path / "two.json").write_text(json.dumps(lines))
    assert len(read_compared(tmp_path / "two.json").cells) == 2


def test_loads_in_files_of_their_own_are_cells(tmp_path: Path) -> None:
    for side, at_16 in (("base", 200.0), ("new", 260.0)):
        for load, p50 in ((4, 90.0), (16, at_16)):
            folder = tmp_path / side / f"load-{load}"
            folder.mkdir(parents=True)
            run = made("vllm", folder, p50, max_concurrency=load)
            (folder / "run=0.json").write_text(json.dumps(run))
    found = verdicts(judged(tmp_path / "base", tmp_path / "new", noise=0.01))
    assert sorted(found.values()) == ["FAIL", "PASS"]
    with pytest.raises(UserError, match="max_concurrency: 4 and 16"):
        judged(tmp_path / "base" / "load-4", tmp_path / "new" / "load-16")


def guidellm(folder: Path, name: str, rates: list[float], p50s: list[float], profile: str) -> Path:
    documents = [made("guidellm", folder, p50) for p50 in p50s]
    benchmarks = [document["benchmarks"][0] for document in documents]
    for benchmark, rate in zip(benchmarks, rates, strict=True):
        benchmark["config"] = {"strategy": {"type_": "constant", "rate": rate}}
    spec = {"backend": {"model": "m"}, "profile": {"kind": profile}}
    document = {"config": {"spec": spec}, "benchmarks": benchmarks}
    (folder / name).write_text(json.dumps(document))
    return folder / name


def test_rates_of_guidellm_are_cells_and_those_of_its_sweeps_go_by_place(tmp_path: Path) -> None:
    base = guidellm(tmp_path, "a.json", [1, 16], [50, 300], "constant")
    new = guidellm(tmp_path, "b.json", [1, 16], [50, 450], "constant")
    assert list(verdicts(judged(base, new, noise=0.01)).values()) == ["PASS", "FAIL"]
    found_out = guidellm(tmp_path, "c.json", [1.02, 15.8], [50, 450], "sweep")
    with pytest.raises(UserError, match="cells"):
        judged(base, found_out)
    base = guidellm(tmp_path, "a.json", [1, 16], [50, 300], "sweep")
    assert list(verdicts(judged(base, found_out, noise=0.01)).values()) == ["PASS", "FAIL"]


def test_a_folder_of_aiperf_is_read_by_its_results(tmp_path: Path) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
        write("aiperf", tmp_path / side / "profile_export_aiperf.json", 100)
        (tmp_path / side / "inputs.json").write_text('{"data": []}')
        (tmp_path / side / "profile_export.jsonl").write_text('{"metadata": {}, "metrics": {}}\n')
    document = judged(tmp_path / "a", tmp_path / "b", noise=0.01)
    assert document["verdict"] == "PASS"
    assert sum("skipped: of no tool that is known" in w for w in document["warnings"]) == 4
    # A file that is named is wanted, and what breaks off is no other kind of file.
    with pytest.raises(UserError, match=r"inputs.json: of no tool"):
        read_runs(f"{tmp_path}/a/profile_export_aiperf.json,{tmp_path}/a/inputs.json", "BASE", [])
    (tmp_path / "a" / "inputs.json").write_text('{"data": [')
    with pytest.raises(UserError, match=r"inputs.json: neither JSON"):
        read_runs(str(tmp_path / "a"), "BASE", [])


def aiperf(folder: Path, name: str, n: int, **phase: Any) -> Path:
    document = made("aiperf", folder, 100, total_isl={"avg": 10.0 * n})
    document["request_count"]["avg"] = float(n)
    asked = {"models": {"items": [{"name": "m"}]}, "phases": [{"name": "profiling", **phase}]}
    (folder / name).write_text(json.dumps(document | {"input_config": asked}))
    return folder / name


def test_stages_of_inference_perf_are_cells_and_their_sum_is_none(tmp_path: Path) -> None:
    for side, ttft_ms in (("a", 100.0), ("b", 150.0)):
        folder = tmp_path / side
        folder.mkdir()
        for i, rate in enumerate((8.0, 16.0)):
            stage = made("inference-perf", folder, ttft_ms if i else 100.0)
            stage["load_summary"]["requested_rate"] = rate
            stage["successes"]["count"] += i * len(side + str(ttft_ms))  # chance
            (folder / f"stage_{i}_lifecycle_metrics.json").write_text(json.dumps(stage))
        whole = made("inference-perf", folder, 900.0)
        del whole["load_summary"]["requested_rate"]
        (folder / "summary_lifecycle_metrics.json").write_text(json.dumps(whole))
        (folder / "per_request_lifecycle_metrics.json").write_text('[{"request": "{}"}]')
    found = judged(tmp_path / "a", tmp_path / "b", noise=0.005)
    assert verdicts(found) == {
        "serving, request_rate 8.0": "PASS",
        "serving, request_rate 16.0": "FAIL",
    }
    [one] = read_compared(tmp_path / "a" / "summary_lifecycle_metrics.json").cells["serving"]
    assert one.value("ttft.p50") == pytest.approx(0.9) and one.value("e2e.p90") == 0.3
    assert one.value("itl.mean") == pytest.approx(0.00825) and one.value("ttft.p01") is None
    [one] = read_compared(write("llmperf", tmp_path / "l.json", 100)).cells["serving"]
    assert (one.value("tpot.p50"), one.value("e2e.mean")) == (0.0075, 0.15)
    assert one.value("throughput.requests_per_s") == 10


@pytest.mark.parametrize(
    ("tool", "odd"),
    [
        ("llmperf", {"timestamp": 1e20}),
        ("llmperf", {"results_num_completed_requests": float("inf")}),
        ("vllm", {"completed": float("inf")}),
    ],
)
def test_numbers_that_are_none_are_named(tool: str, odd: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(json.dumps(made(tool, tmp_path, 100, **odd)))
    with pytest.raises(UserError, match="looks like a known format, but OverflowError"):
        read_compared(tmp_path / "odd.json")


def test_a_statistic_that_is_null_was_not_taken(tmp_path: Path) -> None:
    document = made("inference-perf", tmp_path, 100)
    document["successes"]["latency"]["request_latency"] = {"mean": 1.0, "p90": None}
    (tmp_path / "i.json").write_text(json.dumps(document))
    [one] = read_compared(tmp_path / "i.json").cells["serving"]
    assert (one.value("e2e.mean"), one.value("e2e.p90")) == (1.0, None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gzip"])
def test_files_as_other_systems_write_them(encoding: str, tmp_path: Path) -> None:
    text = write("vllm", tmp_path / "a.json", 100).read_text()
    data = gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding)
    (tmp_path / "b.json").write_bytes(data)
    a, b = (read_compared(tmp_path / name) for name in ("a.json", "b.json"))
    assert (a.facts, list(a.cells)) == (b.facts, list(b.cells)) and a.facts["model"] == "m"


def test_a_line_separator_within_a_string_ends_no_line(tmp_path: Path) -> None:
    lines = [{"answer": "x\u2028y"}, {"answer": "\x85"}]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8", newline="")
    assert json_of(tmp_path / "a.jsonl") == lines


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b" \n", "an empty file; these can be read: lmcache bench, .*LLMPerf, inference-perf"),
        (b'{"a": 1}\n\n{"a": 2', r"neither JSON nor JSON lines \(line 3: Expecting ',' delimiter"),
        (b'{"a": "', r"neither JSON nor JSON lines \(Unterminated string .* line 1"),
        (gzip.compress(b"{}" * 99, mtime=0)[:-9], "can't be read: Compressed file ended"),
        (b'{"a": "\xff"}', "can't be read: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_none_is_told_from_one(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match=says):
        read_compared(tmp_path / "a.json")


def test_counts_of_runs_bound_by_time_are_chance(tmp_path: Path) -> None:
    for limit in ({"duration": 60.0}, {"requests": 400}):
        base, new = (
            aiperf(tmp_path, "a.json", 400, **limit),
            aiperf(tmp_path, "b.json", 407, **limit),
        )
        document = judged(base, new, noise=0.01)
        assert document["verdict"] == "PASS" and not verdicts(document, "n")
        assert any(
            "b.json was bound by time" in w or "a.json was" in w for w in document["warnings"]
        )
    full = judged(base, aiperf(tmp_path, "c.json", 400, requests=400), noise=0.01)
    assert verdicts(full, "n") == {"serving": "PASS"}


def test_other_models_and_loads_are_named_by_the_place_where_they_differ(tmp_path: Path) -> None:
    base, new = (aiperf(tmp_path, f"{c}.json", 9, requests=9, concurrency=c) for c in (4, 8))
    with pytest.raises(UserError, match=r"phases.concurrency: 4 and 8\. If"):
        judged(base, new)
    assert judged(base, new, allowed=["phases"], noise=0.01)["verdict"] == "PASS"
    for name in ("llama-8b", "qwen-32b"):
        made_by = made("aiperf", tmp_path, 100)
        del made_by["schema_version"], made_by["start_time"]
        load = {"stimulus": {"concurrency": len(name)}, "path": "perf_analyzer"}
        made_by["input_config"] = {"model_names": [name], "perf_analyzer": load}
        (tmp_path / f"{name}.json").write_text(json.dumps(made_by))
    with pytest.raises(UserError, match="model: llama-8b and qwen-32b"):
        judged(tmp_path / "llama-8b.json", tmp_path / "qwen-32b.json", allowed=["stimulus"])
    assert read_compared(tmp_path / "llama-8b.json").tool == "genai-perf"


def test_a_difference_is_shown_however_late_it_comes(tmp_path: Path) -> None:
    same = "a very long beginning " * 9
    for name in "xy":
        (tmp_path / f"{name}.json").write_text(
            json.dumps(made("vllm", tmp_path, 100, model_id=f"{same}{name} and its end"))
        )
    with pytest.raises(UserError, match=r"beginning x and its end and \.\.\..*beginning y and"):
        judged(tmp_path / "x.json", tmp_path / "y.json")


def test_a_run_that_names_no_model_says_so(tmp_path: Path) -> None:
    run = made("vllm", tmp_path, 100)
    del run["model_id"]
    (tmp_path / "x.json").write_text(json.dumps(run))
    assert "names no model" in read_compared(tmp_path / "x.json").warnings[0]


@pytest.mark.parametrize(
    ("tool", "more", "failed"),
    [
        ("vllm", {"failed": None, "num_prompts": 212}, 12),
        ("vllm", {"failed": 3, "num_prompts": 212}, 3),
        ("vllm", {"failed": None, "num_prompts": None}, 0),
        ("sglang", {"random_input_len": 1000, "random_range_ratio": 1.0, "completed": 188}, 12),
        ("sglang", {"random_input_len": 1000, "random_range_ratio": 0.5, "completed": 188}, 0),
    ],
)
def test_what_was_asked_and_not_completed_has_failed(
    tool: str, more: dict[str, Any], failed: int, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(made(tool, tmp_path, 100, **more)))
    [[one]] = read_compared(tmp_path / "x.json").cells.values()
    assert one.failed == one.counters["failed"] == failed


def test_a_file_of_failures_says_so(tmp_path: Path) -> None:
    asked = {"models": {"items": [{"name": "m"}]}}
    failures = {"unit": "requests", "avg": 96.0}
    document = {"input_config": asked, "error_request_count": failures, "was_cancelled": False}
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="aiperf: all 96 requests failed"):
        read_compared(tmp_path / "x.json")
    nothing = made("vllm", tmp_path, 0, completed=0, failed=None, num_prompts=7)
    (tmp_path / "x.json").write_text(json.dumps(nothing))
    with pytest.raises(UserError, match="vllm: all 7 requests failed"):
        read_compared(tmp_path / "x.json")
