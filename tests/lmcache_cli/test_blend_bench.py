"""``lmcache bench rag --reuse blend`` from the outside, on a small model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cache_core.blend.certificate import BlendTerms, Certificate, certificate_name
from lmcache_cli.engines.transformers.engine import TransformersEngine
from reports.run_file import read_run
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.small_model import save_model

pytestmark = pytest.mark.engine

SMALL = ["--passages", "3", "--passage-tokens", "32", "--question-tokens", "24"]
SMALL += ["--system-tokens", "20", "--corpus-passages", "6", "--requests", "5"]
SMALL += ["--output-tokens", "4", "--chunk-tokens", "16", "--cpu-size", "8MiB"]


def test_each_ratio_is_a_row_with_its_quality(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "llama", num_hidden_layers=4, initializer_range=0.2)
    flags = ["--model", str(model), "--reuse", "off,prefix,blend", "--blend-ratio", "0,0.5,1"]
    flags.append("--unverified")
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
    assert cells[2]["hit_tokens"]["cpu"] == 5 * (20 + 3 * 32)
    assert cells[2]["unexpected_hits"] == 0 and cells[2]["state"] == "warm"
    assert cells[4]["identical_outputs"] is True
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, meta = read_run(path)
    assert {s.kl is None for s in samples if s.cell < 2} == {True}
    assert all(s.kl is not None and s.blend_s is not None for s in samples if s.cell >= 2)
    assert meta["cells"][3]["blend"]["selection"] == "seen"


def test_a_model_without_a_certificate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = save_model(tmp_path / "model", "llama", num_hidden_layers=4)
    flags = [*SMALL, "--model", str(model), "--reuse", "blend", "--json", "-", "--quiet"]
    refused = lmcache("bench", "rag", *flags, cwd=tmp_path)
    assert refused.returncode == 4 and not refused.stdout
    [line] = refused.stderr.strip().splitlines()
    command = f"lmcache verify blend --model {model}"
    assert f"run: {command}, or add --unverified" in line
    subject = TransformersEngine(str(model)).blend_subject()
    path = (
        tmp_path / "cache" / "lmcache-bench" / "blend" / certificate_name(subject, BlendTerms(0.14))
    )
    certificate = Certificate(subject, BlendTerms(0.14), (), (), {})
    certificate.write(path)
    found = json.loads(lmcache("bench", "rag", *flags, cwd=tmp_path).stdout)["cells"][0]["blend"]
    assert found["ratio"] == 0.14
    # What was measured with less computed again, or behind something else, says nothing.
    for other in (["--blend-ratio", "0.1"], ["--blend-encoding", "none"]):
        refused = lmcache("bench", "rag", *flags, *other, cwd=tmp_path)
        assert refused.returncode == 4 and " ".join(other) in refused.stderr
    more = lmcache("bench", "rag", *flags, "--blend-ratio", "0.5", cwd=tmp_path)
    assert json.loads(more.stdout)["cells"][0]["blend"]["ratio"] == 0.5
    # What failed once is refused by the gate's name, and so is what could not be told.
    replace(certificate, failed=("no row sees the future",)).write(path)
    failed = lmcache("bench", "rag", *flags, cwd=tmp_path)
    assert failed.returncode == 4 and "failed 'no row sees the future'" in failed.stderr
    replace(certificate, unsure=("KL",)).write(path)
    failed = lmcache("bench", "rag", *flags, cwd=tmp_path)
    assert failed.returncode == 4 and "not verified yet" in failed.stderr


BLEND = ["--reuse", "blend"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--blend-ratio", "1.5", *BLEND], "from 0 to 1"),
        (["--blend-ratio", "some", *BLEND], "not a number"),
        (["--blend-encoding", "alone", *BLEND], "auto, system, bos, none"),
        (["--reuse", "blend", "--engine", "simulated"], "off, prefix"),
    ],
)
def test_bad_flags_are_one_clear_line(flags: list[str], words: str, tmp_path: Path) -> None:
    done = lmcache("bench", "rag", *flags, "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
