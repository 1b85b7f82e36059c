"""``lmcache check`` at its edges: files that can't be written, budgets, stores of baselines, and
the commit that made it slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from junitparser import Error, JUnitXml, Skipped

from lmcache_cli.check.side import Processes, Side
from lmcache_cli.check.stored_runs import read_compared
from lmcache_cli.errors import UserError
from reports.verdict.round import Round
from reports.verdict.trial import Comparison, Trial
from tests.lmcache_cli.command_line import ROOT, lmcache
from tests.lmcache_cli.test_check_command import NOISY, P50, QUIET, check, document, metric
from tests.processes import interrupted_at_begin

pytestmark = pytest.mark.engine


def test_a_python_that_is_not_here_is_missing(tmp_path: Path) -> None:
    done = check("--bench", QUIET, "--baseline-python", "/no/python", cwd=tmp_path)
    assert done.returncode == 4 and "/no/python does not exist" in done.stderr


def test_a_python_that_can_not_run_lmcache_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "_bench", lambda *args: pytest.fail("it ran"))
    plain, bare = tmp_path / "plain", tmp_path / "bare"
    plain.write_text("no program")
    bare.write_text("#!/bin/sh\necho \"No module named 'lmcache_cli'\" >&2; exit 1\n")
    bare.chmod(0o755)
    for python, words in ((plain, "Permission denied"), (bare, "No module named"), (tmp_path, "")):
        done = check("--bench", QUIET, "--baseline-python", str(python), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (4, "")
        assert f"--baseline-python: {python}" in done.stderr and words in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_file_that_cannot_be_written_is_no_verdict(tmp_path: Path) -> None:
    sides = ["--bench", NOISY, "--candidate", "--chunk-tokens 48"]
    for flags in (["--json", "/dev/full"], ["--markdown", "/dev/full"], ["--github"]):
        done = check(*sides, *flags, cwd=tmp_path, GITHUB_STEP_SUMMARY="/dev/full")
        assert done.returncode == 5, (flags, done.stderr)
        assert "bytes_stored" in done.stdout and "FAIL" in done.stdout.splitlines()[-1]
        assert "Traceback" not in done.stderr and "No space left" in done.stderr
    (tmp_path / "taken").touch()
    done = check(*sides, "--out", "taken", cwd=tmp_path)
    assert done.returncode == 2 and "--out: taken can't be written" in done.stderr


def test_undecided_may_pass_and_both_sides_are_named(tmp_path: Path) -> None:
    args = ["--bench", NOISY, "--candidate", "--policy gdsf", "--fail-on", "ttft.p50>0.1%"]
    args += ["--max-rounds", "11", "--inconclusive", "pass", "--markdown", "out.md"]
    done = check(*args, "--junit", "out.xml", cwd=tmp_path)
    assert done.returncode == 0 and "INCONCLUSIVE" in done.stdout.splitlines()[-1]
    assert "long-context prefix cpu, ttft.p50: " in done.stdout
    markdown = (tmp_path / "out.md").read_text()
    for side, flag in (("baseline", "--jitter"), ("candidate", "--policy gdsf")):
        [line] = [one for one in markdown.splitlines() if one.startswith(f"- {side}: ")]
        assert flag in line and "version" in line and "hardware" in line
    [suite] = JUnitXml.fromfile(str(tmp_path / "out.xml"))
    named = {one.name: one.value for one in suite.properties()}
    assert "--policy gdsf" in named["candidate"] and "--jitter" in named["baseline"]
    results = {case.name: case.result for case in suite}
    assert isinstance(results["ttft.p50"][0], Skipped)


def test_noise_may_pass_but_not_a_side_that_ran_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient = ["--inconclusive", "pass", "--junit", "out.xml"]
    sides = ["--bench", NOISY, "--candidate", "--policy gdsf", *lenient, "--max-time", "0.001s"]
    done = check(*sides, "--json", "-", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    assert (found["verdict"], found["complete"]) == ("INCONCLUSIVE", False)
    assert "the baseline ran 0 of the 2 rounds" in done.stderr
    assert "longer --max-time" in done.stderr and "a round takes about " in done.stderr
    [suite] = JUnitXml.fromfile(str(tmp_path / "out.xml"))
    assert {type(result) for case in suite for result in case.result} == {Error}
    # A process that was not over in time leaves no cell at all.
    monkeypatch.setattr(Processes, "run", lambda *args: None)
    done = check("--bench", QUIET, "--candidate", "--jitter 0.05", *lenient, cwd=tmp_path)
    assert done.returncode == 3 and "nothing was measured" in done.stderr
    [suite] = JUnitXml.fromfile(str(tmp_path / "out.xml"))
    assert [type(result) for case in suite for result in case.result] == [Error]


@pytest.mark.parametrize(("served", "words"), [(0, "served no request"), (4, "")])
def test_a_side_that_served_nothing_is_unjudged(served: int, words: str) -> None:
    rounds = [Round(served, 1, {}, {}, {"n": served, "failed": 1})] * 2
    assert words in Trial([Comparison("cell", rounds, rounds)], []).unjudged()
    assert bool(Trial([Comparison("cell", rounds, rounds)], []).unjudged()) == bool(words)
    assert "--max-rounds" in Trial([Comparison("cell", rounds[:1], rounds[:1])], []).unjudged()
    assert "--max" not in Trial([Comparison("cell", rounds, rounds)], []).unjudged(), "no help"


def test_an_interruption_while_a_round_begins_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 300\n")
    python.chmod(0o755)
    with interrupted_at_begin(monkeypatch, "lmcache_cli.check.side.subprocess.Popen"):
        Processes((), 0)._bench(Side("candidate", python=python), 300.0)


def test_two_sides_that_are_the_same_are_an_error_in_junit(tmp_path: Path) -> None:
    sides = ["--baseline", QUIET, "--candidate", QUIET]
    done = check(*sides, "--junit", "x.xml", cwd=tmp_path)
    assert done.returncode == 2 and "both sides are the same" in done.stderr
    assert "both sides are the same" in (tmp_path / "x.xml").read_text()


def test_max_time_ends_a_round_that_would_not_end(tmp_path: Path) -> None:
    slow = f"{QUIET} --chunk-tokens"
    pythons = ["--baseline-python", sys.executable, "--candidate-python", sys.executable]
    sides = ["--baseline", f"{slow} 64", "--candidate", f"{slow} 48"]
    done = check(*sides, *pythons, "--max-time", "1s", "--json", "-", cwd=tmp_path)
    assert done.returncode == 3 and "ended a round before it was whole" in done.stderr
    assert json.loads(done.stdout)["metrics"] == []


def test_each_round_of_processes_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of one day are one sample of stored runs, but not where they took turns."""
    flags = ["--reuse", "prefix", "--quiet", "--repeat", "6"]
    assert lmcache("bench", *NOISY.split(), *flags, cwd=tmp_path).returncode == 0
    [path] = (tmp_path / "runs").glob("bench-*.parquet")
    monkeypatch.setattr(Processes, "_bench", lambda self, side, seconds: read_compared(path))
    pythons = ["--baseline-python", sys.executable, "--candidate-python", sys.executable]
    rounds = ["--candidate", "--policy gdsf", "--max-rounds", "2", *P50]  # of six each
    found, _ = document("--bench", NOISY, *pythons, *rounds, cwd=tmp_path)
    assert metric(found, "ttft.p50")["rounds"] == 12


@pytest.mark.parametrize(
    ("flags", "added"),
    [
        ("rag --engine openai --url http://h", ["--reuse", "server"]),
        ("rag --engine simulated", ["--reuse", "prefix"]),
        ("rag --reuse off", []),
        ("--config side.yaml", []),
        ("rag --a-flag-of-tomorrow 1", ["--reuse", "prefix"]),
    ],
)
def test_a_process_measures_the_mode_that_its_side_asks_for(
    flags: str, added: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "side.yaml").write_text("workloads: [rag]\nreuse: off\n")
    seen: list[Sequence[str]] = []

    def ran(command: Sequence[str], *_: object) -> CompletedProcess[str]:
        seen.append(command)
        return CompletedProcess(command, 2, "", "refused")

    monkeypatch.setattr("lmcache_cli.check.side._run", ran)
    side = Side("candidate", tuple(flags.split()))
    with pytest.raises(UserError, match="refused"):
        Processes((side, side), 0)._bench(side, 1.0)
    [command] = seen
    at = command.index("bench") + 1
    assert list(command[at : command.index("--repeat")]) == [*flags.split(), *added]


@pytest.mark.parametrize(("bench", "code"), [(4, 4), (2, 2), (5, 2)])
def test_what_a_side_lacks_the_check_lacks(
    bench: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = CompletedProcess([], bench, "", "lmcache: --url: nothing answers")
    monkeypatch.setattr("lmcache_cli.check.side._run", lambda *_: ended)
    side = Side("candidate", ("rag", "--reuse", "off"))
    with pytest.raises(UserError, match="nothing answers") as raised:
        Processes((side, side), 0)._bench(side, 1.0)
    assert raised.value.exit_code == code


def test_a_second_server_is_no_side_of_a_check(tmp_path: Path) -> None:
    bench = "rag --engine openai --url http://h --base-url http://i"
    done = check("--bench", bench, "--candidate", "--concurrency 2", cwd=tmp_path)
    assert done.returncode == 2 and "give each side of a check its --url" in done.stderr


def test_a_side_names_the_commit_around_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--reuse", "prefix", "--quiet", "--out", str(tmp_path / "one")]
    assert lmcache("bench", *NOISY.split(), *flags, cwd=tmp_path).returncode == 0
    [path] = (tmp_path / "one").glob("bench-*.parquet")
    monkeypatch.setattr(Processes, "_bench", lambda self, side, seconds: read_compared(path))
    monkeypatch.setattr("lmcache_cli.check.side._require_package", lambda side, python: None)
    pythons, heads = [], []
    for name in ("base", "new"):
        python = tmp_path / name / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        git(tmp_path / name, "init", "--quiet")
        git(tmp_path / name, "commit", "--quiet", "--allow-empty", "-m", name)
        pythons.append(str(python))
        heads.append(git(tmp_path / name, "rev-parse", "HEAD"))
    args = ["--baseline-python", pythons[0], "--candidate-python", pythons[1]]
    args += ["--candidate", "--policy gdsf", "--max-rounds", "1"]
    found, _ = document("--bench", NOISY, *args, cwd=tmp_path / "new")
    assert [found["sides"][side]["commit"] for side in ("baseline", "candidate")] == heads


def test_a_comment_is_written_by_gh(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text('#!/bin/sh\necho address\necho "$@" > said; cat > body; exit "$GH_EXIT"\n')
    gh.chmod(0o755)
    path = f"{gh.parent}:{os.environ['PATH']}"
    sides = ["--bench", NOISY, "--candidate", "--chunk-tokens 48", "--comment"]
    env = {"PATH": path, "GITHUB_REF": "refs/pull/7/merge", "GH_EXIT": "0"}
    assert check(*sides, cwd=tmp_path, **env).returncode == 1
    told = capfd.readouterr()
    assert "address" in told.err and "address" not in told.out
    assert (tmp_path / "said").read_text().startswith("pr comment 7 --edit-last --create-if-none")
    assert (tmp_path / "body").read_text().startswith("### FAIL: lmcache check")
    refused = {"GH_EXIT": "1", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    done = check(*sides, "--github", cwd=tmp_path, **env | refused)
    assert done.returncode == 1, "the verdict stands"
    assert "could not comment on the pull request" in done.stderr
    assert "returned non-zero" not in done.stderr
    assert (tmp_path / "summary").read_text().startswith("### FAIL: lmcache check")


def test_a_store_has_a_baseline_for_each_machine(tmp_path: Path) -> None:
    sides = ["--baseline", "store", "--candidate", QUIET, "--fail-on", "hit_rate<0pp"]
    (tmp_path / "store").mkdir()
    done = check(*sides, cwd=tmp_path)
    assert done.returncode == 4 and "no run of this machine" in done.stderr
    [folder] = [word for word in done.stderr.split() if word.startswith("store/")]
    flags = ["--quiet", "--reuse", "prefix", "--out", folder]
    assert lmcache("bench", *QUIET.split(), *flags, cwd=tmp_path).returncode == 0
    found, code = document(*sides, cwd=tmp_path)
    assert (code, found["verdict"]) == (0, "PASS")
    assert found["sides"]["baseline"]["hardware"] == folder.removeprefix("store/")


def git(cwd: Path, *args: str) -> str:
    known = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    return subprocess.run(
        ["git", *known, *args], cwd=cwd, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_bisect_names_the_commit(tmp_path: Path) -> None:
    """A repository whose bench takes longer chunks from its third commit on, and whose second one
    can't be installed."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "lmcache_cli").mkdir()
    (tmp_path / "lmcache_cli" / "__init__.py").touch()
    for i, chunk in enumerate([64, 64, 48, 48]):
        words = f"'-m', 'lmcache_cli.main', *sys.argv[1:], '--chunk-tokens', '{chunk}'"
        (tmp_path / "lmcache_cli" / "main.py").write_text(
            f"import os, sys\nif __name__ == '__main__':\n os.chdir({str(ROOT)!r})\n"
            f" os.execv({sys.executable!r}, [{sys.executable!r}, {words}])\n"
        )
        (tmp_path / "number").write_text(f"{i}\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "-m", f"Commit {i}")
    place = "import site, os; open(site.getsitepackages()[0] + '/t.pth', 'w').write(os.getcwd())"
    install = f'grep -qv 1 number && python -c "{place}"'
    args = ["--bisect", "HEAD~3", "HEAD", "--install", install, "--bench", QUIET]
    done = check(*args, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Commit 1: INCONCLUSIVE" in done.stderr and "Commit 2: FAIL" in done.stderr
    assert [line.split(" ", 1)[1] for line in done.stdout.splitlines()[1:]] == [
        "Commit 1",
        "Commit 2",
    ]
    assert len(git(tmp_path, "worktree", "list").splitlines()) == 1
    done = check("--bisect", "HEAD", "HEAD~3", "--bench", QUIET, cwd=tmp_path)
    assert done.returncode == 2 and "does not follow" in done.stderr
