"""Runs that are cut off in mid-sweep by a signal, and finished by ``bench --resume``."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lmcache_cli.bench.cells import Cell
from lmcache_cli.bench.plan import MODES
from lmcache_cli.bench.resume import missing
from lmcache_cli.engines.cache_spec import CacheSpec
from reports.run_file import read_run
from tests.lmcache_cli.command_line import lmcache, running, until_said

pytestmark = pytest.mark.engine

REPEATS = 8
# A sweep of two scenarios by four cells; with so many repeats it takes some seconds.
SWEEP = [
    *("bench", "long-context", "rag", "--engine", "simulated", "--seed", "5"),
    *("--documents", "2", "--questions", "2", "--context-tokens", "300", "--requests", "60"),
    *("--cpu-size", "8MiB,1GiB", "--chunk-tokens", "16,64", "--repeat", str(REPEATS)),
]


def cut_off(
    args: list[str], stop: signal.Signals, cwd: Path, after: str = "rag: warming up"
) -> Path:
    """Runs until it says ``after``, then a little longer, and stops it, twice in a row."""
    with running(*args, cwd=cwd) as process:
        until_said(process, after)
        time.sleep(0.1)
        process.send_signal(stop)
        time.sleep(0.05)
        process.send_signal(stop)  # as an impatient person, or a supervisor, does
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    [path] = (cwd / "runs").glob("*.parquet")
    assert not list((cwd / "runs").glob(".*")), "nothing half written is left"
    assert "--resume" in err and path.name in err
    return path


def steady(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Cells without what depends on where a float was added up."""
    rounded = json.loads(
        json.dumps(document["cells"]), parse_float=lambda text: f"{float(text):.6g}"
    )
    return list(rounded)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_finished_run_is_the_run_that_was_never_cut_off(
    stop: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    whole = lmcache(*SWEEP, "--json", "-", "--quiet", cwd=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    path = cut_off(SWEEP, stop, tmp_path)
    samples, meta = read_run(path)
    assert samples and meta["complete"] is False
    assert "interrupted" in " ".join(meta["warnings"])
    done = lmcache("report", str(path), "--format", "json", cwd=tmp_path)
    assert json.loads(done.stdout)["complete"] is False
    kept = {(c, r) for c, r, _ in meta["progress"]["finished"]}
    assert 0 < len(kept) < 2 * 5 * REPEATS, "in mid-sweep"

    done = lmcache("bench", "--resume", str(path), "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["complete"] is True and document["warnings"] == []
    assert steady(document) == steady(json.loads(whole.stdout))
    [same] = (tmp_path / "runs").glob("*.parquet")
    assert same == path
    after, described = read_run(path)
    assert described["complete"] is True and len(described["resumed"]) == 1
    assert described["started"] == meta["started"] and "progress" not in described
    before = {(s.cell, s.repeat, s.request_id): s for s in samples if (s.cell, s.repeat) in kept}
    assert f"{len(before):,} requests of whole repeats are kept" in done.stderr
    now = {(s.cell, s.repeat, s.request_id): s for s in after}
    assert len(now) == len(after) == 2 * 5 * 60 * REPEATS
    assert all(now[key] == sample for key, sample in before.items()), "what was measured stays"


def test_cut_off_twice(tmp_path: Path) -> None:
    path = cut_off(SWEEP, signal.SIGTERM, tmp_path)
    first = len(read_run(path)[1]["progress"]["finished"])
    cut_off(["bench", "--resume", str(path)], signal.SIGINT, tmp_path)
    _, meta = read_run(path)
    assert len(meta["progress"]["finished"]) >= first > 0 and len(meta["resumed"]) == 1
    done = lmcache("bench", "--resume", str(path), "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_run(path)[1]["complete"] is True


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    path = cut_off(SWEEP, signal.SIGTERM, tmp_path)
    before = path.read_bytes()
    done = lmcache("bench", "--resume", str(path), "--seed", "6", "--policy", "arc", cwd=tmp_path)
    assert done.returncode == 2
    assert "--policy: lru there, arc here; --seed: 5 there, 6 here" in done.stderr
    assert path.read_bytes() == before
    # the same flags, given again, are no difference
    done = lmcache(*SWEEP, "--resume", str(path), "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = lmcache("bench", "--resume", str(path), cwd=tmp_path)
    assert done.returncode == 2 and "is complete" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_other_requests_are_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("It was the best of times, it was the worst of times. " * 4000)
    path = cut_off([*SWEEP, "--corpus", str(corpus)], signal.SIGTERM, tmp_path)
    corpus.write_text("Call me Ishmael. Some years ago, never mind how long. " * 4000)
    before = path.read_bytes()
    done = lmcache("bench", "--resume", str(path), "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and "corpus" in done.stderr, done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(("name", "words"), [("none.parquet", "No such file"), ("x", "not a run")])
def test_what_is_no_run_is_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("PAR0")
    done = lmcache("bench", "--resume", name, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_missing_is_by_cell_and_repeat() -> None:
    off, one, two = (Cell(i, 0, MODES["prefix"], CacheSpec(16)) for i in range(3))
    finished = {(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)}
    assert missing([off, one, two], range(4), finished) == [
        ([two], range(1, 2)),
        ([off, one, two], range(2, 4)),
    ]
    assert missing([off], range(2), {(0, 0), (0, 1)}) == []
