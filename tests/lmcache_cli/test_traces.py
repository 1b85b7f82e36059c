"""``lmcache trace info``, ``convert`` and ``synth``, and ``bench trace``, from the outside."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.lmcache_cli.command_line import lmcache, lmcache_process
from workloads.traces.trace import _copied


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two requests of 1,200 tokens with 2 equal chunks of 512, and ten of 600 with 1."""
    path = tmp_path / "day.jsonl"
    lines = [
        {"timestamp": 0, "input_length": 1200, "output_length": 80, "hash_ids": [1, 2, 3]},
        {"timestamp": 500, "input_length": 1200, "output_length": 80, "hash_ids": [1, 2, 4]},
        *({"timestamp": 1000, "input_length": 600, "output_length": 80, "hash_ids": [1, 5]},) * 10,
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnonsense\n")
    return path


def test_info(trace: Path, tmp_path: Path) -> None:
    done = lmcache_process("trace", "info", trace, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "lmcache.trace-info/1" and found["format"] == "mooncake"
    assert (found["requests"], found["input_tokens"], found["duration_s"]) == (12, 8400, 1.0)
    assert (found["chunks"], found["unique_chunks"]) == (14, 2)
    assert found["ceiling_prefix"] == pytest.approx(12 * 512 / 8400)
    assert found["ceiling_any_position"] is None and found["arrival_rate_per_s"] == 11.0
    assert found["malformed"]["count"] == 1
    assert f"malformed: {trace}:13: not JSON" in done.stderr
    table = lmcache("trace", "info", trace, cwd=tmp_path)
    assert "ceiling, by prefix" in table.stdout and "73.1%" in table.stdout


def test_lengths_only_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01,64,5\n")
    done = lmcache("trace", "info", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lengths and arrivals only" in done.stdout and "ceiling" not in done.stdout


def test_convert_there_and_back(trace: Path, tmp_path: Path) -> None:
    ours, back = tmp_path / "ours.jsonl", tmp_path / "back.jsonl"
    assert lmcache("trace", "convert", trace, ours, cwd=tmp_path).returncode == 0
    assert lmcache("trace", "convert", ours, back, "--to", "mooncake", cwd=tmp_path).returncode == 0
    lines = [json.loads(line) for line in back.read_text().splitlines()]
    assert [line["hash_ids"] for line in lines] == [
        [0, 1, 2],
        [0, 1, 3],
        *([0, 4 + i] for i in range(10)),
    ]
    assert [line["timestamp"] for line in lines] == [0, 500, *[1000] * 10]


def test_synth(trace: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a", "b", "c")]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        flags = ["--like", trace, "--requests", 40, "--seed", seed]
        done = lmcache("trace", "synth", out, *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "ceiling by prefix" in done.stderr
    texts = [out.read_text() for out in outs]
    assert texts[0] == texts[1] != texts[2] and len(texts[0].splitlines()) == 41
    out = tmp_path / "chat.jsonl"
    done = lmcache("trace", "synth", out, "--workload", "chat", "--requests", 8, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(lmcache("trace", "info", out, "--json", "-", cwd=tmp_path).stdout)
    assert found["requests"] == 8 and found["ceiling_prefix"] > 0.3


def test_bench_hits_what_the_trace_shares(trace: Path, tmp_path: Path) -> None:
    flags = ["--engine", "simulated", "--scale", 0.25, "--speed-up", 10, "--chunk-tokens", 64]
    done = lmcache(
        *["bench", "trace", "--trace", trace, *flags, "--json", "-", "--quiet"], cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    off, prefix = document["cells"]
    assert (off["workload"], off["n"], off["hit_rate"]) == ("trace", 12, 0)
    # 2 chunks of 128 tokens, then 1.
    assert prefix["hit_tokens"]["cpu"] == 256 + 10 * 128
    assert document["config"]["trace"] == str(trace) and document["config"]["speed_up"] == 10
    assert any("malformed" in warning for warning in document["warnings"])


BENCH = ["bench", "trace", "--engine", "simulated", "--quiet", "--trace", "day.jsonl"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["trace", "info", "none"], "none: "),
        (["trace", "info", "day.jsonl", "--format", "x"], "use one of lmcache"),
        (["trace", "info", "day.jsonl", "--format", "azure"], "it looks like mooncake"),
        (["trace", "info", "day.jsonl", "--time-unit", "0"], "--time-unit"),
        (["trace", "convert", "day.jsonl", "day.jsonl"], "is there already"),
        (["trace", "convert", "day.jsonl", "out", "--to", "weka"], "use one of lmcache, mooncake"),
        (["trace", "convert", "day.jsonl", "none/out"], "is no folder"),
        (["trace", "synth", "out"], "either --like FILE or --workload NAME"),
        (["trace", "synth", "out", "--workload", "x"], "use one of long-context"),
        (["bench", "trace", "--engine", "simulated"], "go together"),
        (["bench", "rag", "--trace", "day.jsonl", "--engine", "simulated"], "go together"),
        (["bench", "rag", "--scale", "0.5", "--engine", "simulated"], "the workload trace's"),
        ([*BENCH, "--scale", "2"], "scale: 2.0 must be"),
        ([*BENCH, "--scale", "0.001"], "can't all differ"),
        ([*BENCH, "--speed-up", "0"], "speed-up"),
        ([*BENCH, "--rate", "1"], "--rate"),
        ([*BENCH, "--trace-format", "azure"], "it looks like mooncake"),
    ],
)
def test_bad_input_is_one_line(args: list[str], says: str, trace: Path, tmp_path: Path) -> None:
    done = lmcache(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_malformed_lines_are_in_the_heading_and_too_many_give_no_answer(tmp_path: Path) -> None:
    row = json.dumps({"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]})
    path = tmp_path / "day.jsonl"
    for bad, heading in ((1, False), (5, True)):
        path.write_text(f"{row}\n" * 195 + "{\n" * bad)
        done = lmcache("trace", "info", path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = " ".join(done.stdout.split())
        assert (f"{bad} of {195 + bad} lines are malformed" in said) == heading
        bench = lmcache(*BENCH, "--requests", "3", cwd=tmp_path)
        assert bench.returncode == 0 and "are malformed" in bench.stdout
    path.write_text(f"{row}\n" * 30 + "{\n" * 1901)
    for args in (["trace", "info", path], BENCH, ["tune", path, "--model", "llama-3.1-8b"]):
        done = lmcache(*args, cwd=tmp_path)
        assert done.returncode == 2 and "1,901 of 1,931 lines are malformed" in done.stderr
        assert done.stdout == "" or "Recommended" not in done.stdout


def test_guesses_and_traces_without_sharing_say_so(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 500 * i, "input_length": 160, "hash_ids": list(range(10))} for i in (0, 1)
    ]
    (tmp_path / "day.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = lmcache("trace", "info", "day.jsonl", cwd=tmp_path)
    assert "guessed" in done.stdout and "--time-unit" in done.stdout
    found = json.loads(lmcache("trace", "info", "day.jsonl", "--json", "-", cwd=tmp_path).stdout)
    assert "blocks of 16 tokens" in found["guess"]
    (tmp_path / "day.jsonl").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n1,64,5\n2,64,5\n")
    done = lmcache(*BENCH, cwd=tmp_path)
    assert done.returncode == 0 and "tells lengths and arrivals only" in done.stdout


def test_convert_from_stdin_to_stdout_with_a_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write("ts,n_in,parts\n0,64,a b\n1,64,a c\n")
    _copied.cache_clear()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    names = "time=ts,input=n_in,chunks=parts"
    flags = ["--map", names, "--chunk-tokens", 32, "--to", "mooncake"]
    done = lmcache("trace", "convert", "-", "-", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["hash_ids"] for line in lines] == [[0, 1], [0, 2]]
    done = lmcache("trace", "info", "-", *flags[:-2], cwd=tmp_path)
    assert done.stdout.startswith("stdin ") and "2 of" not in done.stdout.splitlines()[0]
    done = lmcache("trace", "info", "x", "--map", "time", cwd=tmp_path)
    assert done.returncode == 2 and "--map: 'time' is no NAME=FIELD" in done.stderr
