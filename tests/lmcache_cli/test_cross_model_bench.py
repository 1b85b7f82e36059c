"""``lmcache bench --reuse shared`` from the outside, on a small base and a fine-tune of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.run_file import read_run
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.cross_model_world import base_model, fine_tune_of

pytestmark = pytest.mark.engine

SMALL = ["--passages", "2", "--passage-tokens", "32", "--question-tokens", "24"]
SMALL += ["--system-tokens", "20", "--corpus-passages", "4", "--requests", "5"]
SMALL += ["--output-tokens", "4", "--chunk-tokens", "16", "--cpu-size", "8MiB"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = base_model(tmp_path_factory.mktemp("base"))
    return base, fine_tune_of(base, tmp_path_factory.mktemp("tuned"))


def test_each_set_of_layers_is_a_row(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    flags = ["--model", str(tuned), "--reuse", "off,prefix,shared", "--shared-from", str(base)]
    flags += ["--recompute-layers", "none,0-1,1-2,all", "--json", "-", "--quiet"]
    done = lmcache("bench", "rag", *SMALL, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert [c["reuse"] for c in cells] == ["off", "prefix", *["shared"] * 4]
    assert cells[0]["shared"] == {"base": None, "recompute_layers": None}
    none, low, middle, whole = cells[2:]
    assert [c["shared"]["recompute_layers"] for c in cells[2:]] == ["none", "0-1", "1-2", "all"]
    assert {c["shared"]["base"] for c in cells[2:]} == {str(base)}
    assert {c["state"] for c in cells[2:]} == {"base"} and cells[1]["state"] == "cold"
    # The base has served each prompt: all its full chunks are hit, and that was foretold.
    tokens = 5 * ((20 + 2 * 32 + 24) // 16) * 16
    assert all(c["hit_tokens"]["cpu"] == tokens for c in cells[2:])
    assert all(c["unexpected_hits"] == 0 and not c["bytes_stored"] for c in cells[2:])
    assert whole["blend"]["kl"] == 0 and whole["identical_outputs"] is True
    assert whole["blend"]["selected_tokens"] == whole["blend"]["blended_tokens"] == tokens
    assert whole["recomputed_tokens"] == whole["prompt_tokens"]
    assert none["blend"]["kl"] > low["blend"]["kl"] > 0
    assert none["blend"]["token_layer_share"] < low["blend"]["token_layer_share"] < 1
    assert middle["bytes_loaded"] > none["bytes_loaded"]  # the base's hidden states too
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, meta = read_run(path)
    assert meta["cells"][3]["shared"] == {"base": str(base), "recompute_layers": "0-1"}
    assert all(s.kl_positions == 4 for s in samples if s.cell >= 2)


def test_a_cache_too_small_is_foretold_too(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    flags = ["--model", str(tuned), "--reuse", "shared", "--shared-from", str(base)]
    flags += ["--json", "-", "--quiet", "--cpu-size", "80KiB"]  # five chunks of six
    done = lmcache("bench", "rag", *SMALL[:-2], *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [cell] = json.loads(done.stdout)["cells"]
    assert cell["unexpected_hits"] == 0 and 0.4 < cell["hit_rate"] < 0.8
    assert "warning" not in done.stderr


def test_a_model_alone_never_takes_anothers_kv(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Base and fine-tune over one disk: each finds its own chunks there, and no others."""
    flags = ["--reuse", "prefix", "--disk-path", str(tmp_path / "disk"), "--disk-size", "64MiB"]
    flags += ["--cpu-size", "0", "--cache-name", "one", "--json", "-", "--quiet"]
    rates = []
    for model in (*pair, pair[0]):
        done = lmcache("bench", "rag", *SMALL[:-2], *flags, "--model", str(model), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        [cell] = json.loads(done.stdout)["cells"]
        rates.append(cell["hit_rate"])
    assert rates[0] == rates[1] < rates[2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--reuse", "shared"], "go together"),
        (["--shared-from", "embedded"], "--reuse off, prefix does not use it, shared would"),
        (["--recompute-layers", "upper"], "none, all, 25% or 0-3+12"),
        (["--recompute-layers", "120%"], "more than all"),
        (["--reuse", "shared", "--engine", "simulated"], "off, prefix"),
    ],
)
def test_bad_flags_are_one_clear_line(flags: list[str], words: str, tmp_path: Path) -> None:
    if "--recompute-layers" in flags:
        flags = [*flags, "--reuse", "shared", "--shared-from", "embedded"]
    done = lmcache("bench", "rag", *flags, "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
