"""What can't end well is refused before anything long begins: one line, exit code 2."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.lmcache_cli.command_line import lmcache

# No such model: where it is named in the answer, it was looked for first.
REAL = ("bench", "rag", "--model", "no/such-model")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*REAL, "--disk-path", "kv"), "--disk-path needs a disk tier; add --disk-size"),
        ((*REAL, "--cache-name", "q", "--disk-path", "kv"), "add --disk-size"),
        ((*REAL, "--admission", "second-touch"), "--admission is the disk tier's"),
        ((*REAL, "--disk-size", "9000TiB"), "--disk-size: 9000 TiB do not fit"),
        ((*REAL, "--cpu-size", "9000TiB"), "--cpu-size: what is kept in memory needs 9,4"),
        ((*REAL, "--json", "nowhere/a.json"), "--json: nowhere/a.json can't be written"),
        ((*REAL, "--csv", "."), "--csv: . can't be written: Is a directory"),
        ((*REAL, "--json", "-", "--csv", "-"), "would both take stdout"),
        (("report", "x.parquet", "--out", "nowhere/x.html"), "--out: nowhere/x.html can't be"),
        (("check", "--bench", "rag --polcy lru"), "No such option: --polcy"),
        (("check", "--bench", "rag --policy lruu"), "--policy"),
        (("check", "--bench", "rag --policy lru"), "both sides are the same"),
        (("bench", "trace"), "lmcache bench trace --trace FILE"),
        ((*REAL, "--sessions", "9"), "--sessions: workload rag does not use it, chat, agent would"),
        ((*REAL, "--context-tokens", "9"), "use --passages, --passage-tokens, "),
        ((*REAL, "--blend-ratio", "0.3"), "--blend-ratio: --reuse off, prefix does not use it"),
        ((*REAL, "--polcy", "lru"), "No such option: --polcy"),
        ((*REAL, "--passages", "some"), "'--passages'"),
        (("tune", "rag", "--rounds", "x"), "see lmcache tune --help"),
    ],
)
def test_before_a_model_is_loaded(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = lmcache(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr and "no/such-model" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


def test_a_mooncake_that_does_not_listen(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = taken.getsockname()[1]
        done = lmcache(*REAL, "--remote", f"mooncake://127.0.0.1:{port}", cwd=tmp_path)
    if "not installed" not in done.stderr:
        assert f"127.0.0.1:{port} does not answer" in done.stderr
    assert done.returncode in (2, 4) and len(done.stderr.strip().splitlines()) == 1


def test_a_check_is_no_run_to_resume(tmp_path: Path) -> None:
    short = ("--documents", "1", "--questions", "2", "--context-tokens", "200")
    bench = " ".join(("long-context", "--engine", "simulated", *short))
    done = lmcache(
        "check", "--bench", bench, "--candidate", "--policy gdsf", "--quiet", cwd=tmp_path
    )
    assert done.returncode in (0, 1, 3), done.stderr
    (kept,) = (tmp_path / "runs").glob("check-*.parquet")
    done = lmcache("bench", "--resume", str(kept), cwd=tmp_path)
    assert done.returncode == 2 and "no run of `lmcache bench`" in done.stderr
