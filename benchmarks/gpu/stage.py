"""One step of `make gpu`: a command with a time limit, and what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Literal

Status = Literal["passed", "failed", "timed out", "missing", "skipped", "interrupted"]

# Between asking a stage to end and ending it: a pytest writes its report in that time.
_GRACE_S = 3.0
# Waited for after SIGKILL: a process in the driver's hands may not end, and nobody can make it.
_GONE_S = 5.0
_POLL_S = 0.05
# How soon a stage learns that all is to end.
_LOOK_S = 0.2
# Of its time, what a command is told to end in.
_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Stage:
    """``command`` runs for at most ``limit_s``, after the stages named in ``needs``. In its words
    ``{seconds}`` is most of the time that it is given: to end by itself, with what it has.

    ``yields`` are files that are there once it has passed: where one is gone, the stage is to be
    done again. ``tool`` is a program without which the stage is missing, not failed; so it is where
    the command ends with ``exit_missing``. With less than ``least_s`` left it is not begun. A stage
    that ``serves`` has no result of its own and runs only for others. One ``beside`` runs next to
    those behind it, until one needs it or names it in ``after``: then its end is waited for,
    whatever comes of it. ``remark`` is told with its result.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    yields: tuple[Path, ...] = ()
    tool: str | None = None
    least_s: float = 10.0
    serves: bool = False
    beside: bool = False
    exit_missing: int | None = 4
    remark: str = ""

    def key(self, inputs: str) -> str:
        """What a result is of: the command, and ``inputs`` (the sources, the card)."""
        words = "\0".join((inputs, self.name, *self.command))
        return hashlib.sha256(words.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a stage: ``why`` is one line, empty where it passed; ``exit_code`` is None where
    the command did not run to its end."""

    name: str
    status: Status
    seconds: float
    exit_code: int | None
    why: str
    key: str
    limit_s: float


class Running:
    """A stage's command in a process group of its own; what it prints goes to ``log`` at once."""

    def __init__(
        self, stage: Stage, log: Path, limit_s: float, environment: Mapping[str, str]
    ) -> None:
        self.stage, self.limit_s = stage, limit_s
        self._log = log
        self._began = time.monotonic()
        self._why = ""
        self._process: subprocess.Popen[bytes] | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            try:
                self._process = _started(self._command(), file, environment)
            except OSError as error:
                self._why = f"{stage.command[0]}: {error.strerror}"
        self._ended: float | None = None
        if self._process is not None:
            Thread(target=self._watch, args=(self._process,), daemon=True).start()

    def _command(self) -> list[str]:
        seconds = f"{_SHARE * self.limit_s:.0f}"
        return [word.replace("{seconds}", seconds) for word in self.stage.command]

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Takes the time of a stage that nobody waits for yet."""
        process.wait()
        self._ended = time.monotonic()

    def outcome(self, key: str, stopped: Callable[[], bool] = lambda: False) -> Outcome:
        """Waits for the command, and ends it and its children at the limit, or when ``stopped``
        says so."""
        ends = self._began + self.limit_s
        # Waiting for one process misses none of its children: they are ended with it below.
        while self._process is not None and not stopped():
            left = ends - time.monotonic()
            try:
                self._process.wait(min(max(0.0, left), _LOOK_S))
                break
            except subprocess.TimeoutExpired:
                if left <= 0:
                    why = self.end() or f"longer than {self.limit_s:.0f} s"
                    return self._made("timed out", key, why)
        code = None if self._process is None else self._process.returncode
        stuck = self.end()
        if self._process is None:
            return self._made("failed", key, self._why)
        if code is None:
            return self._made("interrupted", key, stuck or "interrupted")
        if code == 0:
            return self._made("passed", key, "")
        why = _last_line(self._log) or f"exit code {code}"
        return self._made("missing" if code == self.stage.exit_missing else "failed", key, why)

    def end(self) -> str:
        """Ends all that is left of the process group; what could not be ended, or nothing."""
        process = self._process
        if process is None:
            return ""
        for sign, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GONE_S)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, sign)
            until = time.monotonic() + wait_s
            while _alive(process):
                if time.monotonic() > until:
                    break
                time.sleep(_POLL_S)
            else:
                return ""
        return f"process group {process.pid} did not end: the driver may hang"

    def _made(self, status: Status, key: str, why: str) -> Outcome:
        code = None if self._process is None else self._process.returncode
        took = (self._ended or time.monotonic()) - self._began
        return Outcome(self.stage.name, status, took, code, why, key, self.limit_s)


def _started(
    command: Sequence[str], file: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        env=dict(environment), start_new_session=True,
    )  # fmt: skip


def _alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether any of the group is left; what has ended is reaped."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # Zombies of the group that another process has to reap count as members: ours is reaped.
    return process.returncode is None or _group_runs(process.pid)


def _group_runs(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            # The name in parentheses may have blanks and parentheses of its own.
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state not in "ZX":
                return True
    return False


def _last_line(log: Path) -> str:
    """Of what a stage printed, for a table: at most 200 characters."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        for line in reversed(lines):
            if line.strip(" -=_│╰╯─"):
                return line.strip()[:200]
    return ""
