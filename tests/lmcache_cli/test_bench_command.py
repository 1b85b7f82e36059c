"""``lmcache bench`` from the outside, on the simulated engine."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cache_core.policies import POLICIES
from lmcache_cli.errors import ending_signals
from reports.run_file import read_run
from tests.lmcache_cli.command_line import (
    heeding_hangups,
    lmcache,
    lmcache_process,
    running,
    until_said,
)

SMALL = ["--documents", "2", "--questions", "2", "--context-tokens", "200", "--output-tokens", "4"]


def bench(*args: str, cwd: Path) -> CompletedProcess[str]:
    return lmcache("bench", "--engine", "simulated", *args, cwd=cwd)


def test_json_is_the_contract(tmp_path: Path) -> None:
    flags = ["--engine", "simulated", *SMALL, "--json", "-", "--quiet"]
    done = lmcache_process("bench", "long-context", "rag", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "lmcache.bench/1"
    assert {"machine", "versions", "config", "warnings", "cells"} <= document.keys()
    off, prefix = document["cells"][:2]
    keys = "workload engine model reuse chunk_tokens tiers n ttft_ms itl_ms e2e_ms throughput"
    keys += " hit_rate hit_tokens recomputed_tokens speedup_ttft identical_outputs failed"
    for cell in document["cells"]:
        assert set(keys.split()) <= cell.keys()
        assert {"mean", "p50", "p90", "p99"} <= cell["ttft_ms"].keys()
        assert cell["failed"] == 0
    assert (off["reuse"], off["hit_rate"], off["tiers"]) == ("off", 0, {})
    # 2 documents of 200 tokens in chunks of 64: the second question of each hits 3 chunks.
    assert prefix["hit_tokens"]["cpu"] == 2 * 192
    assert prefix["speedup_ttft"] > 1
    assert prefix["tiers"] == {"cpu": 2 << 30}


def test_same_seed_same_numbers(tmp_path: Path) -> None:
    flags = ["chat", "agent", "--rounds", "2", "--output-tokens", "4", "--json", "-", "--quiet"]
    cells = [json.loads(bench(*flags, cwd=tmp_path).stdout)["cells"] for _ in range(2)]
    assert cells[0] == cells[1]


def test_sweep_crosses_sizes_and_chunk_lengths(tmp_path: Path) -> None:
    done = bench(
        *["long-context", *SMALL, "--cpu-size", "8MiB,1GiB", "--chunk-tokens", "16,64"],
        *["--device-size", "0,64MiB", "--json", "-", "--quiet"],
        cwd=tmp_path,
    )
    cells = json.loads(done.stdout)["cells"]
    assert len(cells) == 1 + 2 * 2 * 2
    assert {c["chunk_tokens"] for c in cells} == {None, 16, 64}
    small = next(c for c in cells if c["tiers"] == {"cpu": 8 << 20} and c["chunk_tokens"] == 64)
    large = next(c for c in cells if c["tiers"] == {"cpu": 1 << 30} and c["chunk_tokens"] == 64)
    assert small["hit_rate"] < large["hit_rate"], "a tier that is too small must cost hits"


def test_run_file_has_every_sample_and_what_describes_it(tmp_path: Path) -> None:
    done = bench("random", *SMALL, "--requests", "3", "--repeat", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "runs").glob("*.parquet")
    assert str(path.name) in done.stderr
    samples, meta = read_run(path)
    assert len(samples) == 2 * 3 * 2
    assert {s.repeat for s in samples} == {0, 1}
    assert meta["complete"] is True
    assert meta["config"]["seed"] == 0 and meta["machine"] and meta["versions"]
    assert [c["reuse"] for c in meta["cells"]] == ["off", "prefix"]
    assert not any(s.hits for s in samples)


def test_tables_name_units_and_speed_up(tmp_path: Path) -> None:
    out = bench("long-context", *SMALL, "--quiet", cwd=tmp_path).stdout
    for word in ("TTFT", "p50", "p99", "ITL", "hit", "prefix", "off", "cpu"):
        assert word in out, out


def test_open_loop_and_concurrency(tmp_path: Path) -> None:
    for flags in (["--rate", "2"], ["--concurrency", "3"]):
        done = bench("rag", "--requests", "6", *flags, "--json", "-", "--quiet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        cells = json.loads(done.stdout)["cells"]
        assert all(cell["n"] == 6 for cell in cells)
        assert cells[1]["throughput"]["requests_per_s"] > 0


def test_flags_win_over_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "bench.yaml"
    config.write_text("workloads: [random]\nchunk-tokens: [16, 32]\nrequests: 2\nseed: 5\n")
    flags = ["--config", str(config), "--requests", "3", "--json", "-", "--quiet"]
    document = json.loads(bench(*flags, cwd=tmp_path).stdout)
    assert {c["workload"] for c in document["cells"]} == {"random"}
    assert {c["chunk_tokens"] for c in document["cells"]} == {None, 16, 32}
    assert document["config"]["seed"] == 5
    assert all(c["n"] == 3 for c in document["cells"])


@pytest.mark.parametrize("written", ["random", "[random, chat]", "random chat"])
def test_workloads_of_a_config_file(written: str, tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text(f"workloads: {written}\nrequests: 2\n")
    done = bench("--config", "bench.yaml", "--json", "-", "--quiet", cwd=tmp_path)
    found = {c["workload"] for c in json.loads(done.stdout)["cells"]}
    assert found == ({"random", "chat"} if "chat" in written else {"random"})


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_policy_runs(policy: str, tmp_path: Path) -> None:
    """With room for one or two of six chunks most is evicted; unbounded keeps all."""
    flags = ["long-context", *SMALL, "--cpu-size", "5MiB", "--policy", policy]
    done = bench(*flags, "--json", "-", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cell = json.loads(done.stdout)["cells"][1]
    assert cell["policy"] == policy
    hits = cell["hit_tokens"].get("cpu", 0)
    assert hits == 2 * 192 if policy == "unbounded" else hits < 2 * 192


BAD = [
    (["--cpu-size", "12XB"], "12XB"),
    (["--chunk-tokens", "0"], "at least 1"),
    (["--chunk-tokens", "many"], "whole number"),
    (["--rate", "-1"], "rate"),
    (["--rate", "1", "--concurrency", "2"], "exclude"),
    (["--concurrency", "0"], "at least 1"),
    (["--engine", "warp"], "'transformers', 'vllm', 'openai', 'simulated'"),
    (["--policy", "magic"], "'lru', 'lfu-aging', 'gdsf', 's3-fifo', 'arc', 'unbounded'"),
    (["--policy", "unbounded", "--engine", "transformers"], "--engine simulated"),
    (["--placement", "sideways"], "write_on_eviction"),
    (["--reuse", "sometimes"], "off, prefix"),
    (["--cpu-size", "0"], "needs a tier"),
    (["--cpu-size", "1KiB"], "holds no chunk"),
    (["--out", "/proc/nothing/here"], "can't be written"),
    (["--corpus", "missing.txt"], "missing.txt"),
    (["--corpus", "binary.txt"], "binary.txt"),
    (["--corpus", "broken.jsonl"], "broken.jsonl:2"),
    (["--config", "missing.yaml"], "missing.yaml"),
    (["--config", "unknown.yaml"], "no flag"),
    (["--config", "list.yaml"], "expected lines"),
    (["--zipf", "-2"], "zipf"),
    (["--documents", "0"], "documents"),
    (["--no-such-flag"], "no-such-flag"),
    (["--seed", "x"], "seed"),
]


@pytest.mark.parametrize(("flags", "words"), BAD, ids=[" ".join(f) for f, _ in BAD])
def test_bad_input_is_one_clear_line_and_exit_2(
    flags: list[str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "unknown.yaml").write_text("chunk-tokenz: 3\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    done = bench("long-context", *flags, "--quiet", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if "no-such" not in flags[0] and flags[0] != "--seed":  # those two are Typer's own box
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_unknown_workload_and_model(tmp_path: Path) -> None:
    done = bench("poetry", cwd=tmp_path)
    assert done.returncode == 2 and "long-context" in done.stderr
    done = lmcache("bench", "random", "--model", "/no/such/model", "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and "/no/such/model" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_keeps_what_was_measured(stop: signal.Signals, tmp_path: Path) -> None:
    """The simulator is fast, so it has much to do."""
    flags = ["--engine", "simulated", "--sessions", "20", "--repeat", "100000"]
    with heeding_hangups(), running("bench", "chat", *flags, cwd=tmp_path) as process:
        until_said(process, "warming up")
        time.sleep(1)
        process.send_signal(stop)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, meta = read_run(path)
    assert samples and meta["complete"] is False
    assert "interrupted" in " ".join(meta["warnings"])


@pytest.mark.parametrize("ignored", [True, False])
def test_a_terminal_that_closes_ends_what_is_not_to_outlive_it(ignored: bool) -> None:
    with heeding_hangups(not ignored):
        assert (signal.SIGHUP in ending_signals()) is not ignored
    assert ending_signals()[:2] == (signal.SIGINT, signal.SIGTERM)


def test_a_full_disk_takes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    done = bench("long-context", *SMALL, "--json", "/dev/full", cwd=tmp_path)
    assert done.returncode == 5 and "speed-up" in done.stdout
    said = [line for line in done.stderr.splitlines() if "No space left" in line]
    assert [line.split(": ")[:2] for line in said] == [["lmcache", "--out"], ["lmcache", "--json"]]
    assert "run file:" not in done.stderr and not list((tmp_path / "runs").iterdir())


def test_what_to_try_next_runs_as_it_is_pasted(tmp_path: Path) -> None:
    more = ("--cpu-size", "8MiB,16MiB", "--chunk-tokens", "32", "--seed", "7", "--warm", *SMALL)
    narrow = {"COLUMNS": "40"}
    done = lmcache("bench", "long-context", "--engine", "simulated", *more, cwd=tmp_path, **narrow)
    command = done.stdout.partition("To try:\n")[2].splitlines()[0]
    words = shlex.split(command)
    assert words[-2:] == ["--cpu-size", "32MiB"] and words.count("--cpu-size") == 1
    assert {"simulated", "32", "7", "--warm", "200"} <= set(words)
    again = lmcache(*words[1:], "--json", "-", "--quiet", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    document = json.loads(again.stdout)
    assert document["cells"][1]["tiers"] == {"cpu": 32 << 20}
    config = document["config"]
    assert (config["seed"], config["warm"], config["documents"]) == (7, True, 2)
