"""How far reading a trace and making requests are."""

from __future__ import annotations

import gzip
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from lmcache_cli.engines.simulated import encode_words
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.tune.source import TuneOptions, made_source, trace_source
from workloads.traces.lines import about_lines


def test_reading_and_making_tell_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("lmcache_cli.output.time.monotonic", lambda: float(next(seconds)))
    line = '{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1]}\n'
    trace = tmp_path / "trace.jsonl"
    trace.write_text(line * 200)
    said: list[str] = []
    trace_source(TuneOptions(source=str(trace)), said.append)
    assert said[0].startswith("reading the source: requests: 64 of 200, ")
    assert said[0].endswith(" left") and len(said) == 3
    said.clear()
    bench = BenchOptions(engine="simulated", workloads=("random",), context_tokens="80")
    bench = replace(bench, documents=100, questions=2)
    made_source(TuneOptions(source="random"), bench, encode_words, None, say=said.append)
    assert any(text.startswith("making requests: texts: 64") for text in said)
    assert any(text.startswith("naming what requests share: 64 of 200, ") for text in said)


def test_what_a_files_lines_come_to(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"x" * 99 + b"\n" + b"y" * 299 + b"\n")
    assert about_lines(file) == 2
    file.write_bytes((b"x" * 99 + b"\n") * 30_000)
    assert about_lines(file) == pytest.approx(30_000, rel=0.001)
    file.write_bytes(b"one that has no end")
    assert about_lines(file) is None and about_lines(tmp_path) is None
    file.write_bytes(gzip.compress(b"a\nb\n"))
    assert about_lines(file) is None
