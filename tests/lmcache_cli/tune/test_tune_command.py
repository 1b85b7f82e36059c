"""``lmcache tune`` on small traces."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from lmcache_cli.tune.candidates import (
    Goal,
    StackOutcome,
    TierConfiguration,
    broken,
    front,
    recommend,
)
from lmcache_cli.tune.report_sections import snippets
from tests.lmcache_cli.command_line import lmcache

ROOT = Path(__file__).parents[3]
GIB = 2**30


def tune(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    return lmcache("tune", *arguments, cwd=cwd, COLUMNS="100")


def mooncake(path: Path, shared: bool) -> Path:
    """Forty requests of eight blocks, four documents in turns or none twice."""
    lines = []
    for number in range(40):
        first = (number % 4 if shared else number) * 8
        ids = [*range(first, first + 7), 10_000 + number]
        lines.append(
            json.dumps(
                {
                    "timestamp": 2000 * number,
                    "input_length": 4096,
                    "output_length": 10,
                    "hash_ids": ids,
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def tuned(trace: Path, *flags: str) -> dict[str, Any]:
    done = tune(str(trace), "--json", "-", "--quiet", *flags, cwd=trace.parent)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_shared_is_found_and_sized(tmp_path: Path) -> None:
    found = tuned(mooncake(tmp_path / "t.jsonl", True), "--chunk-tokens", "512")
    assert found["schema"] == "lmcache.tune/1"
    assert found["source"]["requests"] == 40
    # 36 of 40 requests find seven of their eight blocks.
    assert found["source"]["ceiling_hit_rate"] == pytest.approx(36 * 7 / (40 * 8))
    recommended = found["recommendation"]
    assert recommended["predicted"]["hit_rate"] == pytest.approx(36 * 7 / (40 * 8))
    assert recommended["tiers"]["cpu"] <= 64 * 512 * 131_072
    assert recommended["predicted"]["ttft_ms"]["p50"] < found["without_cache"]["ttft_ms"]["p50"]
    points = next(c for c in found["curves"] if c["kind"] == "prefix")["points"]
    rates = [point["hit_rate"] for point in points]
    assert rates == sorted(rates)
    assert "cpu_size" in recommended["snippets"]["this connector in vLLM"]


def test_no_sharing_no_cache(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", False)
    done = tune(str(trace), "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Recommended: no cache" in done.stdout
    assert "caching won't help here" in done.stdout


def test_no_cache_is_needed_where_the_slo_holds_without_one(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    done = tune(str(trace), "--slo", "ttft.p90=60s", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "Recommended: no cache" in said and "won't help" not in said
    assert "no cache is needed: every bound holds without one; the fastest stack would take" in said
    assert "hit rate" not in said, "there is no rate that another day could differ in"
    [verdict] = tuned(trace, "--slo", "ttft.p90=60s")["recommendation"]["verdicts"]
    percent = float(verdict.partition("take ")[2].partition(" %")[0])
    assert 50 < percent < 100, "36 of 40 requests could find seven of their eight blocks"


def test_a_cache_that_is_not_worth_its_price(tmp_path: Path) -> None:
    found = tuned(mooncake(tmp_path / "t.jsonl", True), "--worth", "1e9")
    assert found["recommendation"]["tiers"] == {}
    [verdict] = found["recommendation"]["verdicts"]
    assert verdict.startswith("no cache is worth its price (--worth); the fastest stack would take")


def test_an_slo_that_no_stack_keeps_is_told(tmp_path: Path) -> None:
    found = tuned(mooncake(tmp_path / "t.jsonl", True), "--slo", "ttft.p50=1ms")
    assert any("no stack keeps every bound" in v for v in found["recommendation"]["verdicts"])
    assert found["recommendation"]["binding_constraint"] == "ttft.p50"
    assert found["recommendation"]["keeps_bounds"] is False
    done = tune(str(tmp_path / "t.jsonl"), "--slo", "ttft.p50=1ms", "--quiet", cwd=tmp_path)
    assert done.stdout.startswith("No stack keeps every bound; the nearest: ")


def test_bounds_that_leave_no_room_are_not_called_no_gain(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    [verdict] = tuned(trace, "--max-cpu", "0", "--max-disk", "0")["recommendation"]["verdicts"]
    assert verdict.startswith("--max-cpu and --max-disk leave no room that helps; ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--slo", "fast"], "--slo: 'fast' is not one; write it like ttft.p90=500ms"),
        (["--slo", "ttft.p90=1.2.3s"], "--slo: 'ttft.p90=1.2.3s' is not one"),
        (["--slo", "ttft.p90=0s"], "--slo: 'ttft.p90=0s': nothing answers in no time"),
        (["--slo", "ttft.p90=1s", "--slo", "ttft.p90=2s"], "--slo: ttft.p90 is bounded twice"),
        (["--budget", "much"], "--budget: 'much' is not one"),
        (["--budget", "1..2/hour"], "--budget: '1..2/hour' is not one"),
        (["--disk-bandwidth", "0"], "--disk-bandwidth: it must be above 0"),
        (["--dram-price", "nan"], "--dram-price: nan is no price"),
        (["--disk-price", "-1"], "--disk-price: -1.0 is no price"),
        (["--speed-up", "inf"], "--speed-up: inf must be above 0"),
        (["--hardware", "x1"], "--hardware: 'x1' is not known"),
        (["--model", "gpt-9"], "--model: 'gpt-9' is not in the catalogue"),
        (["--chunk-tokens", "100"], "--chunk-tokens: 100 is no multiple of the trace's 512"),
        (["--max-cpu", "12XB"], "--max-cpu: '12XB' is not a size"),
        (["--efficiency", "2"], "--efficiency: 2.0 must be above 0"),
    ],
)
def test_bad_flags_are_one_line(tmp_path: Path, flags: list[str], words: str) -> None:
    done = tune(str(mooncake(tmp_path / "t.jsonl", True)), *flags, "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_sizes_are_of_each_rank_where_a_system_counts_so() -> None:
    stack = TierConfiguration((("cpu", 64 * GIB), ("disk", 400 * GIB)), 64)
    one, four = snippets(stack), snippets(stack, devices=4)
    ours = four["this connector in vLLM"]
    assert ours.startswith("--tensor-parallel-size 4 --kv-transfer-config ")
    assert f'"cpu_size": {16 * GIB}' in ours and f'"disk_size": {100 * GIB}' in ours
    native = four["vLLM's native offloading"]
    assert f'"cpu_bytes_to_use": {64 * GIB}' in native and "--tensor-parallel-size 4" in native
    assert (
        "--tp-size 4 " in four["SGLang HiCache"] and "--hicache-size 18 " in four["SGLang HiCache"]
    )
    assert "max_local_cpu_size: 16.0\n" in four["LMCache (YAML)"]
    assert four["LMCache (YAML)"].endswith("max_local_disk_size: 100.0")
    assert f'"cpu_size": {64 * GIB}' in one["this connector in vLLM"]
    assert one["this connector in vLLM"].startswith("--kv-transfer-config ")
    assert snippets(TierConfiguration((), 64), devices=4) == {}


def test_what_is_to_be_pasted_is_one_line_in_a_pipe(tmp_path: Path) -> None:
    done = tune(str(mooncake(tmp_path / "t.jsonl", True)), "--quiet", cwd=tmp_path)
    [line] = [line for line in done.stdout.splitlines() if "TieredKVConnector" in line]
    assert line.startswith("--kv-transfer-config '{") and line.endswith("}'")


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("hello\n")
    for name in ("x.json", "none.json"):
        done = tune(name, "--quiet", cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def outcome(cpu: int, idle_s: float, price: float, **ttft: float) -> StackOutcome:
    tiers = (("cpu", cpu * GIB),) if cpu else ()
    return StackOutcome(TierConfiguration(tiers, 64), {}, 0.0, idle_s, price, 0.0, ttft)


def test_the_front_has_what_nothing_beats() -> None:
    all_of_them = [outcome(0, 5, 0), outcome(1, 3, 1), outcome(2, 4, 2), outcome(4, 2, 4)]
    assert [o.stack.sizes.get("cpu", 0) // GIB for o in front(all_of_them)] == [0, 1, 4]


def test_the_cheapest_that_keeps_the_goal() -> None:
    goal = Goal(ttft={"p90": 3.0})
    ran = [outcome(0, 5, 0, p90=9), outcome(1, 3, 1, p90=2.9), outcome(4, 2, 4, p90=2)]
    assert recommend(ran, goal, 0.1).stack.sizes == {"cpu": GIB}
    assert broken(ran[0], goal) == ["ttft.p90"]


def test_more_is_bought_while_it_is_worth_it() -> None:
    ran = [outcome(0, 5, 0), outcome(1, 3, 1), outcome(4, 2.9, 4)]
    assert recommend(ran, Goal(), worth=1.0).stack.sizes == {"cpu": GIB}
    assert recommend(ran, Goal(), worth=0.01).stack.sizes == {"cpu": 4 * GIB}
