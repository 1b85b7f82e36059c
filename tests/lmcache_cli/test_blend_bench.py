"""``lmcache bench rag --reuse blend`` from the outside, on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.run_file import read_run
from tests.lmcache_cli.small_model import save_model
from tests.lmcache_cli.test_bench_command import lmcache

SMALL = ["--passages", "2", "--passage-tokens", "32", "--question-tokens", "24"]
SMALL += ["--system-tokens", "20", "--corpus-passages", "4", "--requests", "5"]
SMALL += ["--output-tokens", "4", "--chunk-tokens", "16", "--cpu-size", "8MiB"]


def test_each_ratio_is_a_row_with_its_quality(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "llama", num_hidden_layers=4, initializer_range=0.2)
    flags = ["--model", str(model), "--reuse", "off,prefix,blend", "--blend-ratio", "0,0.5,1"]
    done = lmcache("bench", "rag", *SMALL, *flags, "--warm", "--json", "-", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert [c["reuse"] for c in cells] == ["off", "prefix", "blend", "blend", "blend"]
    assert cells[0]["blend"]["ratio"] is None and cells[0]["blend"]["positions_compared"] == 0
    naive, half, full = (c["blend"] for c in cells[2:])
    assert [b["ratio"] for b in (naive, half, full)] == [0, 0.5, 1]
    assert all(b["positions_compared"] == 5 * 4 for b in (naive, half, full))
    assert full["kl"] == 0 and full["agreement"] == 1 and full["token_layer_share"] == 1
    assert naive["kl"] > 0 and naive["kl_interval"]["low"] <= naive["kl"]
    assert naive["selected_tokens"] == 0 < half["selected_tokens"] < half["blended_tokens"]
    # All warm: every passage and the system prompt are hit, in every request.
    assert cells[2]["hit_tokens"]["cpu"] == 5 * (20 + 2 * 32)
    assert cells[2]["unexpected_hits"] == 0 and cells[2]["state"] == "warm"
    assert cells[4]["identical_outputs"] is True
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, meta = read_run(path)
    assert {s.kl is None for s in samples if s.cell < 2} == {True}
    assert all(s.kl is not None and s.blend_s is not None for s in samples if s.cell >= 2)
    assert meta["cells"][3]["blend"]["selection"] == "hkvd"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--blend-ratio", "1.5"], "from 0 to 1"),
        (["--blend-ratio", "some"], "not a number"),
        (["--blend-selection", "best"], "hkvd, query, first, random, none, full"),
        (["--blend-check-layer", "-1"], "layer's number"),
        (["--blend-narrow", "0"], "at least 1"),
        (["--blend-encoding", "alone"], "auto, system, bos, none"),
        (["--reuse", "blend", "--engine", "simulated"], "off, prefix"),
    ],
)
def test_bad_flags_are_one_clear_line(flags: list[str], words: str, tmp_path: Path) -> None:
    done = lmcache("bench", "rag", *flags, "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
