"""Processes of tests: whatever becomes of a test, none of them stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest


@contextlib.contextmanager
def alone(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """``Popen`` with text pipes in a session of its own; what is left of it, and of whatever it
    started, is killed at the end of the block.

    The workers of a vLLM whose server was killed wait for it for ever, and each takes a whole core.
    """
    process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        kill_all(process.pid)
        process.wait()


def run_alone(
    command: Sequence[str],
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns what it said. After ``timeout_s`` it hangs, and the test fails:
    ``TimeoutExpired``."""
    pipe = subprocess.PIPE
    with alone(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=cwd, env=env
    ) as process:
        out, err = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill_all(leader: int) -> None:
    """Kills the process that leads a session, its descendants in other sessions, and its group.
    Whoever started it has to wait for it."""
    families: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        families = psutil.Process(leader).children(recursive=True)
    # A group lives on without its leader, and keeps the number taken.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for child in families:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


@contextlib.contextmanager
def interrupted_at_begin(monkeypatch: pytest.MonkeyPatch, popen: str) -> Iterator[None]:
    """Has the block, in which ``popen`` (the path of a module's ``Popen``) begins a process, be
    interrupted just then; asserts that ``KeyboardInterrupt`` ends it and that no process is left.
    """
    begin, begun = subprocess.Popen, []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        begun.append(begin(*arguments, **named))
        signal.raise_signal(signal.SIGINT)
        return begun[-1]

    monkeypatch.setattr(popen, interrupted)
    with pytest.raises(KeyboardInterrupt):
        yield
    try:
        assert begun[0].poll() is not None
    finally:
        begun[0].kill()
