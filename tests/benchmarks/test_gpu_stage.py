"""A stage's command ends at its limit, with all that it has started."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from benchmarks.gpu import stage as stage_module
from benchmarks.gpu.stage import Outcome, Running, Stage


def shell(script: str, **options: object) -> Stage:
    return Stage("some", ("sh", "-c", script), 60.0, **options)  # type: ignore[arg-type]


def run(stage: Stage, folder: Path, limit_s: float = 60.0) -> Outcome:
    return Running(stage, folder / "some.log", limit_s, os.environ).outcome("key")


def appears(path: Path) -> str:
    """Its text, once it is there and whole: a line."""
    for _ in range(3000):
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_what_it_prints_is_in_its_log(tmp_path: Path) -> None:
    outcome = run(shell("echo said; echo complained >&2"), tmp_path)
    assert (outcome.status, outcome.exit_code, outcome.why) == ("passed", 0, "")
    assert (tmp_path / "some.log").read_text() == "said\ncomplained\n"


def test_a_failure_tells_its_last_line(tmp_path: Path) -> None:
    outcome = run(shell("echo first; echo what was wrong; echo; exit 3"), tmp_path)
    assert (outcome.status, outcome.exit_code) == ("failed", 3)
    assert outcome.why == "what was wrong"
    assert run(shell("exit 5"), tmp_path).why == "exit code 5"


def test_an_exit_code_may_say_that_something_is_missing(tmp_path: Path) -> None:
    assert run(shell("echo no wheels; exit 4"), tmp_path).status == "missing"
    assert run(shell("exit 4", exit_missing=None), tmp_path).status == "failed"


def test_a_command_that_is_not_there_fails(tmp_path: Path) -> None:
    stage = Stage("some", (str(tmp_path / "nothing"),), 60.0)
    outcome = run(stage, tmp_path)
    assert (outcome.status, outcome.exit_code) == ("failed", None)
    assert "No such file" in outcome.why


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "])
def test_the_limit_ends_children_too(
    trap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that do not want to be ended."""
    if trap:
        monkeypatch.setattr(stage_module, "_GRACE_S", 0.2)
    file = tmp_path / "child"
    script = f"{trap}(sleep 1000) & echo $! > '{file}.part'; mv '{file}.part' '{file}'; wait"
    running = Running(shell(script), tmp_path / "some.log", 0.0, os.environ)
    child = int(appears(file))
    assert is_alive(child)
    outcome = running.outcome("key")
    assert outcome.status == "timed out"
    assert outcome.why == "longer than 0 s"
    assert not is_alive(child)


def test_what_a_command_leaves_running_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "child"
    outcome = run(shell(f"sleep 1000 >/dev/null 2>&1 & echo $! > '{file}'"), tmp_path)
    assert outcome.status == "passed"
    assert not is_alive(int(file.read_text()))


def test_what_only_waits_to_be_reaped_does_not_run() -> None:
    """By a parent that may never do it."""
    process = subprocess.Popen(["sh", "-c", "read line"], start_new_session=True,
                               stdin=subprocess.PIPE)  # fmt: skip
    assert stage_module._group_runs(process.pid)
    process.stdin.close()  # type: ignore[union-attr]
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not stage_module._group_runs(process.pid)
    process.wait()


def test_what_ended_before_anybody_looked_took_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(shell("true"), tmp_path / "some.log", 5000.0, os.environ)
    for thread in threading.enumerate():
        if thread.daemon and thread.name.endswith("(_watch)"):
            thread.join(30)
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1000)
    assert running.outcome("key").seconds < 1000


def test_a_command_may_know_its_time(tmp_path: Path) -> None:
    """And end in it, with what it has."""
    run(shell("echo --limit {seconds}"), tmp_path, limit_s=100.0)
    assert (tmp_path / "some.log").read_text() == "--limit 75\n"


def test_a_key_is_of_the_command_and_the_inputs() -> None:
    keys = {
        shell("a").key("x"),
        shell("b").key("x"),
        shell("a").key("y"),
        Stage("other", ("sh", "-c", "a"), 60.0).key("x"),
    }
    assert len(keys) == 4
    assert shell("a", remark="told").key("x") == shell("a").key("x")
