"""Runs stages within one budget of time; keeps what came of each, so that a second call takes only
what is missing."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu.files import replace_text
from benchmarks.gpu.stage import Outcome, Running, Stage, Status

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED, FAILED, BAD_INPUT, OUT_OF_TIME, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 130

Changed = Callable[[Sequence[Outcome]], None]


class Runner:
    """Stages in order of worth. ``inputs`` says what results are of: a stage whose own result is of
    other inputs is missing again. Results are kept in ``folder``/state.json, each stage's output in
    ``folder``/NAME.log. ``changed`` is called whenever there is a new result."""

    def __init__(
        self,
        stages: Sequence[Stage],
        folder: Path,
        inputs: str,
        budget_s: float,
        environment: Mapping[str, str],
        changed: Changed = lambda outcomes: None,
    ) -> None:
        self._stages, self._folder, self._inputs = stages, folder, inputs
        self._environment, self._changed = environment, changed
        self._ends = time.monotonic() + budget_s
        self._known = self._read()
        self._beside: dict[str, Running] = {}
        self._stopped = False

    def run(self) -> int:
        """Runs what is missing; returns the exit code: 0 if every stage has passed, 1 if one failed
        or took too long, else 4 if one lacks something, else 3 if the time ran out, and 130 after
        SIGINT, SIGTERM or SIGHUP, which end the stages under way and keep all results."""
        before = {sign: signal.signal(sign, self._stop) for sign in _ENDING}
        try:
            wanted = self._wanted()
            for stage in self._stages:
                if self._stopped:
                    break
                if stage in wanted:
                    later = wanted[wanted.index(stage) + 1 :]
                    self._take(stage, sum(s.least_s for s in later if not s.beside))
                elif not stage.serves:
                    self._say(f"{stage.name}: passed in an earlier call")
            for name in list(self._beside):
                self._join(name)
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)
        return INTERRUPTED if self._stopped else self._exit_code()

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """Raises nothing: between a start and a note of it an exception would leave a process."""
        self._stopped = True

    def outcomes(self) -> list[Outcome]:
        """One for each stage that has a result, of this call or an earlier one with these inputs,
        in the order of the stages."""
        valid = (s for s in self._stages if self._is_of_now(s))
        return [self._known[stage.name] for stage in valid]

    def _is_of_now(self, stage: Stage) -> bool:
        known = self._known.get(stage.name)
        return known is not None and known.key == stage.key(self._inputs)

    def _has_passed(self, stage: Stage) -> bool:
        if not self._is_of_now(stage) or self._known[stage.name].status != "passed":
            return False
        return all(path.exists() for path in stage.yields)

    def _wanted(self) -> list[Stage]:
        """Stages with a result that is missing, and what they need."""
        by_name = {stage.name: stage for stage in self._stages}
        names: set[str] = set()
        rest = [s for s in self._stages if not s.serves and not self._has_passed(s)]
        while rest:
            stage = rest.pop()
            names.add(stage.name)
            needed = (by_name[name] for name in stage.needs)
            rest += (s for s in needed if s.name not in names and not self._has_passed(s))
        return [stage for stage in self._stages if stage.name in names]

    def _take(self, stage: Stage, reserved_s: float) -> None:
        for name in (*stage.needs, *stage.after):
            self._join(name)
        lacking = [name for name in stage.needs if not self._may_build_on(name)]
        left = self._ends - time.monotonic()
        if lacking:
            # What was skipped for another's sake tells nothing beside it.
            roots = [name for name in lacking if self._word(name) != "skipped"] or lacking
            why = ", ".join(f"{name} ({self._word(name)})" for name in roots)
            self._keep(self._not_run(stage, "skipped", f"needs {why}"))
        elif stage.tool is not None and not self._found(stage.tool):
            self._keep(self._not_run(stage, "missing", f"there is no {stage.tool} here"))
        elif left < stage.least_s:
            why = f"{max(0.0, left):.0f} s are left, and it needs {stage.least_s:.0f} s at least"
            self._keep(self._not_run(stage, "skipped", why))
        else:
            self._start(stage, min(stage.limit_s, max(stage.least_s, left - reserved_s)))

    def _start(self, stage: Stage, limit_s: float) -> None:
        for path in stage.yields:  # what an earlier call left is of other sources
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        running = Running(stage, self._folder / f"{stage.name}.log", limit_s, self._environment)
        if stage.beside:
            self._beside[stage.name] = running
            return
        self._finish(running)

    def _join(self, name: str) -> None:
        running = self._beside.pop(name, None)
        if running is not None:
            self._finish(running)

    def _finish(self, running: Running) -> None:
        outcome = running.outcome(running.stage.key(self._inputs), lambda: self._stopped)
        self._keep(self._checked(running.stage, outcome))

    def _checked(self, stage: Stage, outcome: Outcome) -> Outcome:
        lost = [path.name for path in stage.yields if not path.exists()]
        if outcome.status == "passed" and lost:
            return self._not_run(stage, "failed", f"it passed without leaving {', '.join(lost)}")
        return outcome

    def _may_build_on(self, name: str) -> bool:
        return self._has_passed(next(s for s in self._stages if s.name == name))

    def _found(self, tool: str) -> bool:
        return shutil.which(tool, path=self._environment.get("PATH")) is not None

    def _word(self, name: str) -> str:
        known = self._known.get(name)
        return "not run" if known is None else known.status

    def _not_run(self, stage: Stage, status: Status, why: str) -> Outcome:
        return Outcome(stage.name, status, 0.0, None, why, stage.key(self._inputs), stage.limit_s)

    def _keep(self, outcome: Outcome) -> None:
        self._known[outcome.name] = outcome
        document = {name: asdict(known) for name, known in self._known.items()}
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_text(self._folder / "state.json", json.dumps(document, indent=1) + "\n")
        why = f": {outcome.why}" if outcome.why else ""
        self._say(f"{outcome.name}: {outcome.status}, {outcome.seconds:.1f} s{why}")
        try:
            self._changed(self.outcomes())
        except Exception as error:  # noqa: BLE001 - a page that can't be written ends no stage
            self._say(f"the results so far can't be told: {type(error).__name__}: {error}")

    def _read(self) -> dict[str, Outcome]:
        """Results of earlier calls; none where the file is not one of these."""
        try:
            document: dict[str, dict[str, Any]] = json.loads(
                (self._folder / "state.json").read_text()
            )
            return {name: Outcome(**known) for name, known in document.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _exit_code(self) -> int:
        found = {self._word(stage.name) for stage in self._stages if not self._spare(stage)}
        if found & {"failed", "timed out"}:
            return FAILED
        if "missing" in found:
            return MISSING
        return PASSED if found <= {"passed"} else OUT_OF_TIME

    def _spare(self, stage: Stage) -> bool:
        """Whether it only serves stages that have passed without it."""
        return stage.serves and all(
            self._has_passed(s) for s in self._stages if stage.name in s.needs
        )

    def _say(self, line: str) -> None:
        print(f"make gpu: {line}", file=sys.stderr, flush=True)
