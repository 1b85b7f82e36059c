"""``lmcache tune`` on small traces."""

from __future__ import annotations

import json
import math
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from lmcache_cli.tune.candidates import TierConfiguration
from lmcache_cli.tune.cost import RequestCost
from lmcache_cli.tune.report_sections import snippets
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.tune.test_device import cost
from tests.workloads.traces.test_readers import RAG, rag_folder

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


def tuned(trace: Path, *flags: str, code: int | None = 0) -> dict[str, Any]:
    done = tune(str(trace), "--json", "-", "--quiet", *flags, cwd=trace.parent)
    assert code is None or done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_shared_is_found_and_sized(tmp_path: Path) -> None:
    flags = "--chunk-tokens", "512", "--no-prefix-caching"
    found = tuned(mooncake(tmp_path / "t.jsonl", True), *flags)
    assert found["schema"] == "lmcache.tune/1"
    assert found["source"]["requests"] == 40
    # 36 of 40 requests find seven of their eight blocks.
    assert found["source"]["ceiling_hit_rate"] == pytest.approx(36 * 7 / (40 * 8))
    recommended = found["recommendation"]
    assert recommended["predicted"]["hit_rate"] == pytest.approx(36 * 7 / (40 * 8))
    assert recommended["tiers"]["cpu"] <= 64 * 512 * 131_072
    assert recommended["predicted"]["ttft_ms"]["p50"] < found["without_cache"]["ttft_ms"]["p50"]
    assert recommended["verdict"] == "buy" and recommended["verdicts"][1].startswith("Buy ")
    points = next(c for c in found["curves"] if c["kind"] == "prefix")["points"]
    rates = [point["hit_rate"] for point in points]
    assert rates == sorted(rates)
    assert "cpu_size" in recommended["snippets"]["this connector in vLLM"]


def test_the_largest_size_that_is_taken_ended_the_search(tmp_path: Path) -> None:
    flags = "--chunk-tokens", "512", "--no-prefix-caching", "--max-disk", "0", "--max-cpu"
    trace = mooncake(tmp_path / "t.jsonl", True)
    small, large = (tuned(trace, *flags, most)["recommendation"] for most in ("1984MiB", "1TiB"))
    assert small["tiers"]["cpu"] == 1984 << 20
    ends = "--max-cpu ends the search at 1.94 GiB, which is taken whole"
    assert any(ends in line for line in small["notes"]["What limits"])
    assert not any("ends the search" in line for line in large["notes"].get("What limits", []))


def said(trace: Path, *flags: str, code: int = 0) -> str:
    done = tune(str(trace), "--quiet", *flags, cwd=trace.parent)
    assert done.returncode == code, done.stderr
    return " ".join(done.stdout.split())


def test_no_sharing_no_cache(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", False)
    found = said(trace)
    assert "(else --time-unit) You have 1 x h100 with llama-3.1-8b and a prefix cache of" in found
    assert "Buy nothing: caching won't help here; 0.0 % of the tokens repeat by prefix." in found
    assert "So nothing changes: " in found
    assert "by prefix. In vLLM: --enable-prefix-caching, which is the default of most" in found
    two = said(trace, "--devices", "2")
    assert "In vLLM: --tensor-parallel-size 2, --enable-prefix-caching, which" in two
    none = said(trace, "--no-prefix-caching")
    assert "In vLLM leave --no-enable-prefix-caching out: " in none


def test_the_engines_own_cache_may_be_enough(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    found = tuned(trace)
    assert found["recommendation"]["tiers"] == found["today"]["tiers"]
    assert found["recommendation"]["verdict"] == "the GPUs' own cache is enough"
    assert found["today"]["hit_rate"] == pytest.approx(36 * 7 / (40 * 8))
    assert found["front"][0]["today"] and found["front"][0]["recommended"]
    assert "it finds 78.8" in said(trace), "of 78.8 % that repeat"


def test_every_bound_may_hold_already(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    flags = "--slo", "ttft.p90=60s", "--no-prefix-caching"
    assert "Buy nothing: every bound holds already." in said(trace, *flags)
    found = tuned(trace, *flags)
    assert found["recommendation"]["verdict"] == "bounds hold already"
    load = found["load"]
    assert load["today"]["load"] > 1 and load["today"]["replicas"] == 1
    assert load["today"]["latency_ms"]["ttft.p90"] <= 60_000
    assert load["today"] == load["without_cache"] == load["recommended"]


def test_where_the_search_ended_is_no_highest_load(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    flags = "--slo", "ttft.p90=1000s", "--gpu-price", "3"
    load = tuned(trace, *flags)["load"]["today"]
    assert load["capped"] and load["load"] == 64
    assert load["per_million_tokens"] is None and load["per_hour"] == 3.0
    found = said(trace, *flags)
    assert "at least 64 times this load keeps the bounds (not searched further)" in found
    assert "when full" not in found and "($3.00 an hour)" in found
    searched = tuned(trace, "--gpu-price", "3")["load"]["today"]
    assert not searched["capped"] and searched["per_million_tokens"] > 0


def test_a_cache_that_is_not_worth_its_price(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    found = tuned(trace, "--worth", "1e9", "--no-prefix-caching")
    assert found["recommendation"]["tiers"] == {}
    assert found["recommendation"]["verdict"] == "not worth its price"
    assert found["recommendation"]["verdicts"][1].startswith("Buy nothing: no tier is worth its")


def test_an_slo_that_no_stack_keeps_is_told_with_what_would(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    found = tuned(trace, "--slo", "ttft.p50=1ms", code=3)
    assert found["recommendation"]["verdict"] == "nothing keeps the bounds"
    assert found["recommendation"]["binding_constraint"] == "ttft.p50"
    assert found["recommendation"]["keeps_bounds"] is False
    limits = found["recommendation"]["notes"]["What limits"]
    p50 = found["recommendation"]["predicted"]["ttft_ms"]["p50"]
    assert limits[0] == f"TTFT p50 is {p50:.0f} ms; 1 ms was asked for"
    assert any("the nearest keeps these bounds: --slo ttft.p50=" in line for line in limits)
    assert any("no number of replicas keeps the bounds" in line for line in limits)
    assert "No stack keeps every bound" in said(trace, "--slo", "ttft.p50=1ms", code=3)


def test_an_overload_is_said_first_and_replicas_that_would_keep_the_bound(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", False)
    flags = "--speed-up", "40", "--slo", "ttft.p90=1s"
    found = said(trace, *flags, code=3)
    document = tuned(trace, *flags, code=3)
    load, cards = document["load"]["today"], document["recommendation"]["enough_cards"]
    assert (load["replicas"], cards) == (3, 4), "the fewer are told"
    first = "you need 3 replicas first (3 GPUs): --replicas 3. The trace takes "
    assert f"(else --time-unit) Overload: {first}" in found
    [sentence, *_] = document["recommendation"]["verdicts"]
    assert sentence.count(" times ") == 1, "the other figures are in a note"
    limits = document["recommendation"]["notes"]["What limits"]
    [note] = [line for line in limits if line.startswith("prefill alone is ")]
    assert "without any cache" in note and note.endswith(" times with what is recommended")
    more = said(trace, "--speed-up", "60", *flags[2:], code=3)
    assert "Overload: you need 4 cards first: --devices 4. The trace takes " in more
    assert 0 < load["load"] < 1 and load["latency_ms"]["ttft.p90"] <= 1000
    assert load["replicas"] == math.ceil(1 / load["load"]) == load["cards"]
    assert f"{load['replicas']} replicas ({load['cards']} GPUs) that share it would" in found


def test_weights_that_do_not_fit_are_refused_with_the_cards_that_do(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    done = tune(str(trace), "--model", "llama-3.1-70b", "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and "it takes 2: --devices 2" in done.stderr
    assert "weights (131 GiB in bfloat16) leave no room for KV on 1 x h100" in done.stderr
    flags = "--model", "llama-3.1-70b", "--dtype", "fp8", "--hardware", "h200"
    device = tuned(trace, *flags)["cost"]["device"]
    assert device["kv_bytes"] > 0 and device["weights_bytes"] == pytest.approx(70.55e9)


def test_the_device_may_be_given(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    device = tuned(trace, "--device-kv", "3GiB", "--speed-up", "40")["cost"]["device"]
    assert device["kv_bytes"] == device["given_bytes"] == 3 * GIB
    assert device["kv_tokens"] == 3 * GIB // 131_072
    # What answers take while they are written is not the cache's.
    assert 2.9 * GIB < device["prefix_cache_bytes"] < 3 * GIB
    assert tuned(trace, "--no-prefix-caching")["cost"]["device"]["prefix_cache_bytes"] == 0
    narrow = tuned(trace, "--kv-dtype", "fp8", "--kv-bytes-per-token", "65000")
    assert narrow["cost"]["kv_bytes_per_token"] == 65_000


def test_bounds_that_leave_no_room_are_not_called_no_gain(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    flags = "--max-cpu", "0", "--max-disk", "0", "--no-prefix-caching"
    assert tuned(trace, *flags)["recommendation"]["verdict"] == "no room"
    assert "--max-cpu and --max-disk leave no room that helps" in said(trace, *flags)


def test_a_trace_of_lengths_alone_sizes_the_device(tmp_path: Path) -> None:
    lines = [f"{2 * i}.0,4096,10" for i in range(40)]
    trace = tmp_path / "t.csv"
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    found = tuned(trace)
    assert found["recommendation"]["verdict"] == "sharing is unknown"
    assert found["today"]["hit_rate"] == 0 and found["load"]["today"]["load"] > 1


def test_times_may_be_in_another_unit(tmp_path: Path) -> None:
    lines = [f"{2 * i},4096,{0 if i else 10}" for i in range(200)]
    trace = tmp_path / "t.csv"
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    slow = tuned(trace)["load"]["offered_prefill"]
    fast = tuned(trace, "--time-unit", "0.01")["load"]["offered_prefill"]
    assert fast == pytest.approx(100 * slow)
    fast = tune(str(trace), "--time-unit", "0.0001", "--json", "-", cwd=tmp_path)
    told = " ".join(fast.stderr.split())
    assert "requests a second: are its times in another unit? --time-unit SECONDS" in told
    assert "199 of 200 requests have no output length" in told
    done = tune(str(trace), "--time-unit", "0", cwd=tmp_path)
    assert done.returncode == 2 and "--time-unit: 0.0 must be above 0" in done.stderr
    done = tune(str(trace), "--time-unit", "1", "--requests", "3", cwd=tmp_path)
    assert done.returncode == 2 and "these requests are made anew" in done.stderr


def test_the_table_is_a_front_by_the_number_that_it_shows(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    for flags in ((), ("--slo", "ttft.p90=100ms"), ("--worth", "0.001")):
        rows = tuned(trace, "--no-prefix-caching", *flags, code=None)["front"]
        numbers = [row["decides"]["number"] for row in rows]
        prices = [row["cost_per_hour"] for row in rows]
        assert prices == sorted(set(prices)) and numbers == sorted(set(numbers), reverse=True)
        best = next(row for row in rows if row["recommended"])
        assert rows[0]["today"] and best is not rows[0]
        if flags[:1] == ("--slo",):
            keeping = [row for row in rows if row["latency_ms"]["ttft.p90"] <= 100]
            assert best is keeping[0], "the cheapest that keeps it"
            assert [n <= 1 for n in numbers] == [row in keeping for row in rows]
        else:
            assert best is rows[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--slo", "fast"], "--slo: 'fast' is not one; write it like ttft.p90=500ms"),
        (["--slo", "ttft.p90=2"], "--slo: 'ttft.p90=2' has no unit; 2s or 2ms?"),
        (["--slo", "ttft.p90=1.2.3"], "--slo: 'ttft.p90=1.2.3' is not one"),
        (["--slo", "ttft.p90=1.2.3s"], "--slo: 'ttft.p90=1.2.3s' is not one"),
        (["--slo", "ttft.p90=0s"], "--slo: 'ttft.p90=0s': nothing answers in no time"),
        (["--slo", "ttft.p90=1s", "--slo", "ttft.p90=2s"], "--slo: ttft.p90 is bounded twice"),
        (["--budget", "much"], "--budget: 'much' is not one"),
        (["--budget", "1..2/hour"], "--budget: '1..2/hour' is not one"),
        (["--routing", "prefix"], "--routing: one replica takes every request; give --replicas"),
        (["--disk-bandwidth", "0"], "--disk-bandwidth: it must be above 0"),
        (["--dram-price", "nan"], "--dram-price: nan is no price"),
        (["--disk-price", "-1"], "--disk-price: -1.0 is no price"),
        (["--speed-up", "inf"], "--speed-up: inf must be above 0"),
        (
            ["--devices", "3"],
            "--devices: 3 cards do not divide the attention of llama-3.1-8b (32 heads, 8 of KV),"
            " which vLLM refuses as --tensor-parallel-size; those that do: 1, 2, 4, 8, 16, 32",
        ),
        (["--model", "qwen2.5-7b", "--devices", "7"], "(28 heads, 4 of KV)"),
        (
            ["--model", "smollm2-135m", "--devices", "2"],
            "those that do: 1, 3, 9",
        ),
        (["--hardware", "x1"], "--hardware: 'x1' is not known"),
        (["--model", "gpt-9"], "--model: 'gpt-9' is not in the catalogue"),
        (["--chunk-tokens", "100"], "--chunk-tokens: 100 is no multiple of the trace's 512"),
        (["--max-cpu", "12XB"], "--max-cpu: '12XB' is not a size"),
        (["--efficiency", "2"], "--efficiency: 2.0 must be above 0"),
        (["--device-kv", "0"], "--device-kv: 0 leaves no room for a request; --no-prefix-caching"),
        (["--gpu-price", "nan"], "--gpu-price: nan is no price"),
        (["--kv-bytes-per-token", "0"], "--kv-bytes-per-token: 0 must be at least 1"),
        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization: 1.5 must be above 0"),
        (["--drive-writes-per-day", "0"], "--drive-writes-per-day: 0.0 must be above 0"),
        (["--worth", "-1"], "--worth: -1.0 must be 0 or more"),
        (["--probe", "p.json", "--hardware", "h100"], "--hardware: with --probe or --validate"),
        (["--probe", "p.json", "--kv-dtype", "fp8"], "--kv-dtype: with --probe or --validate"),
        (["--validate", "--no-prefix-caching"], "--no-prefix-caching: with --probe or --validate"),
        (["--network-bandwidth", "1GB"], "--network-bandwidth: there is no pool; give --replicas"),
        (["--remote-price", "0.1"], "--remote-price: there is no pool"),
        (["--remote-size", "0"], "--remote-size: there is no pool"),
        (
            ["--replicas", "2", "--remote-size", "0", "--remote-price", "0"],
            "--remote-price: there is no pool",
        ),
    ],
)
def test_bad_flags_are_one_line(tmp_path: Path, flags: list[str], words: str) -> None:
    done = tune(str(mooncake(tmp_path / "t.jsonl", True)), *flags, "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def on(devices: int, **changes: Any) -> RequestCost:
    """An engine on so many cards."""
    return cost(100, devices=devices, **changes)


def test_sizes_are_of_each_rank_where_a_system_counts_so() -> None:
    stack = TierConfiguration((("cpu", 64 * GIB), ("disk", 400 * GIB)), 64)
    one, four = snippets(stack, on(1)), snippets(stack, on(4))
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
    assert snippets(TierConfiguration((), 64), on(4)) == {}


@pytest.mark.parametrize(
    ("broken_lines", "says"),
    [(3, "3 of 43 lines are malformed; what follows is of the others"), (0, "")],
)
def test_what_may_make_the_answer_wrong_stands_above_it(
    broken_lines: int, says: str, tmp_path: Path
) -> None:
    trace = mooncake(tmp_path / "t.jsonl", shared=True)
    trace.write_text(trace.read_text() + "{\n" * broken_lines)
    done = tune("t.jsonl", "--quiet", cwd=tmp_path)
    head = done.stdout.split("You have")[0]
    assert says in head and ("malformed" in head) == bool(says)
    assert "guessed: blocks of 512 tokens" in head and "times in ms" in head
    known = ("--format", "mooncake", "--json", "-")
    told = tune("t.jsonl", *known, cwd=tmp_path)
    assert json.loads(told.stdout) and says in told.stderr and "guessed" not in told.stderr


def test_a_pipe_has_eighty_columns_but_for_what_is_to_be_pasted(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    flags = "--slo", "ttft.p50=100ms", "--slo", "itl.p95=50ms", "--no-prefix-caching", "--quiet"
    done = lmcache("tune", str(trace), *flags, cwd=tmp_path, COLUMNS="80")
    text, _, pasted = done.stdout.partition("this connector in vLLM:")
    assert pasted and "TTFT p90" in text and max(map(len, text.splitlines())) <= 80
    # What has no room there is not cut.
    done = lmcache("tune", str(trace), *flags, cwd=tmp_path, COLUMNS="40")
    assert [line for line in done.stdout.splitlines() if "TTFT p50 TTFT p90" in line]


def test_what_is_to_be_pasted_is_one_line_in_a_pipe(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    done = tune(str(trace), "--no-prefix-caching", "--quiet", cwd=tmp_path)
    [line] = [line for line in done.stdout.splitlines() if "TieredKVConnector" in line]
    assert line.startswith("--kv-transfer-config '{") and line.endswith("}'")


def test_what_a_recording_knows_is_shown(tmp_path: Path) -> None:
    """The hits of its server, and what blend would add: RAGPulse names content."""
    lines = [{"schema": "lmcache.trace/1", "chunk_tokens": 16, "source": "kv-events", "model": ""}]
    for number in range(8):
        request = {"id": str(number), "t": number, "session": None, "input_tokens": 40}
        request |= {"output_tokens": 4, "chunks": ["a" * 16, f"{number % 2:016x}"]}
        lines.append(request | {"hits": {"device": 10, "cpu": 2} if number else {}})
    path = tmp_path / "day.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    done = tune(str(path), "--quiet", "--json", "-", cwd=tmp_path)
    source = json.loads(done.stdout)["source"]
    assert source["reported_hit_rate"] == 7 * 12 / 320 and source["any_position_hit_rate"] is None
    done = tune(str(path), "--quiet", cwd=tmp_path)
    assert "reported 26.2 % of the prompt tokens as hits" in " ".join(done.stdout.split())
    # RAGPulse names content: the same passages in another order.
    swapped = {"hash_ids": RAG["hash_ids"] | {"passages_ids": [6, 5]}}  # type: ignore[operator]
    rows = [row | {"timestamp": str(n)} for n in range(3) for row in (RAG, RAG | swapped)]
    trace = rag_folder(tmp_path, *rows)
    done = tune(str(trace), "--quiet", "--json", "-", cwd=tmp_path)
    source = json.loads(done.stdout)["source"]
    assert source["reported_hit_rate"] is None
    # A chunk of 64 each of the system prompt and of two passages, in five prompts of six.
    assert source["any_position_hit_rate"] == pytest.approx(5 * 3 * 64 / 1800)
    said = tune(str(trace), "--quiet", cwd=tmp_path).stdout
    assert "wherever they stood" in " ".join(said.split()) and "blend" in said


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("hello\n")
    for name in ("x.json", "none.json"):
        done = tune(name, "--quiet", cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
