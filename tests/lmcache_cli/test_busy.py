"""A machine that is shared, terminals that are none or know few characters, and YAML's truth."""

from __future__ import annotations

import builtins
import io
import json
import os
import sys
import threading
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lmcache_cli.bench.measure import Measured
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import MissingError
from lmcache_cli.machine import CpuMeter
from lmcache_cli.main import run
from reports.sample import Sample
from tests.lmcache_cli.command_line import lmcache

SHORT = ("bench", "chat", "--engine", "simulated", "--sessions", "2", "--rounds", "2")


class World:
    """A clock, and what this process, its children and all others have spent of the cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.own = self.child = self.others = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        monkeypatch.setattr("psutil.cpu_times", self._each)
        monkeypatch.setattr("psutil.Process", lambda: self)

    def cpu_times(self) -> tuple[float, float]:
        return self.own, 0.0

    def children(self, recursive: bool) -> list[Any]:
        return [SimpleNamespace(cpu_times=lambda: (self.child, 0.0))]

    def _each(self, percpu: bool) -> list[Any]:
        kind = namedtuple("kind", "user idle iowait guest")
        used = self.own + self.child + self.others
        # A third core, where we may not run, is as busy as can be.
        return [
            kind(used, self.now, 5.0, 0.0),
            kind(3.0, 0.0, 0.0, 3.0),
            kind(1e9 * self.now, 0, 0, 0),
        ]


def test_the_meter_tells_own_and_others_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    alone, family = CpuMeter(), CpuMeter(children=True)
    assert alone.read() == (None, None)
    world.now, world.own, world.child, world.others = 10.0, 15.0, 2.0, 3.0
    assert alone.read() == pytest.approx((1.5, 0.5))
    assert family.read() == pytest.approx((1.7, 0.3))
    world.now, world.own = 10.1, 15.2  # too soon for the kernel's clock
    assert alone.read() == pytest.approx((1.5, 0.5))
    world.now, world.others = 20.0, 3.0
    assert alone.read() == pytest.approx((0.02, 0.0))


def test_what_others_took_is_summed_up() -> None:
    measured = Measured()
    assert measured.busy() is None
    times: dict[str, Any] = {"scheduled_s": 0.0, "sent_s": 0.0}
    times |= {"first_token_s": 1.0, "finished_s": 1.0}
    for i, (own, others) in enumerate(((1.0, 0.5), (2.0, 1.5), (None, None))):
        measured.samples.append(
            Sample(
                request_id=str(i),
                session="s",
                prompt_tokens=3,
                output_tokens=1,
                **times,
                own_cores=own,
                other_cores=others,
            )
        )
    assert measured.busy() is None, "without a meter nothing is known of the machine"
    measured.meter = CpuMeter()
    found = measured.busy()
    assert found is not None
    assert (found["own_cores"], found["other_cores"], found["other_cores_max"]) == (1.5, 1.0, 1.5)


@pytest.mark.parametrize("others", [0.0, 1.3])
def test_a_busy_machine_is_said_above_the_table(
    others: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = {"load": 3.0, "cores": 2, "own_cores": 0.5, "other_cores": others}
    found = cores | {"other_cores_max": others}
    monkeypatch.setattr(Measured, "busy", lambda self: found)
    done = lmcache(*SHORT, "--quiet", "--json", "run.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = "busy machine: others had 1.3 of 2 cores"
    assert (said in done.stdout.partition("TTFT")[0]) == bool(others)
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["busy"] == found
    assert any(said in warning for warning in document["warnings"]) == bool(others)


def test_without_a_terminal_a_line_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    sample: Any = SimpleNamespace(first_token_s=2.0, scheduled_s=0.0)
    for quiet in (False, True):
        written = io.StringIO()
        with BenchProgress(Console(file=written, width=80), quiet) as shown:
            shown.expect(10)
            for _ in range(4):
                now[0] += 3.0
                shown.served("rag off", sample)
        lines = written.getvalue().splitlines()
        if quiet:
            assert lines == []
            continue
        assert lines == [
            "rag off: 2 of 10 requests, TTFT 2 s, about 24 s left",
            "rag off: 4 of 10 requests, TTFT 2 s, about 18 s left",
        ]


def test_what_fills_caches_is_work_that_is_left_and_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, written = [0.0], io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    sample: Any = SimpleNamespace(first_token_s=2.0, scheduled_s=0.0)
    with BenchProgress(Console(file=written, width=80), quiet=False) as shown:
        shown.expect(2, work=20.0)
        now[0] += 50.0  # a first one pays for what comes once
        shown.warmed("rag blend", sample, 5.0)
        now[0] += 5.0
        shown.warmed("rag blend", sample, 5.0)
        for _ in range(2):
            now[0] += 5.0
            shown.served("rag blend", sample, 5.0)
    assert written.getvalue().splitlines() == [
        "rag blend: filling its cache, TTFT 2 s",
        "rag blend: filling its cache, TTFT 2 s, about 10 s left",
        "rag blend: 1 of 2 requests, TTFT 2 s, about 5 s left",
        "rag blend: 2 of 2 requests, TTFT 2 s",
    ]


def test_steps_that_change_often_are_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for quiet in (False, True):
        written = io.StringIO()
        shown = BenchProgress(Console(file=written, width=80), quiet)
        for now[0] in (1.0, 4.0, 6.0, 7.0, 12.0):
            shown.step(f"serving {now[0]:.0f} of 12")
        shown.beat()
        now[0] = 18.0
        shown.beat()
        lines = ["serving 6 of 12", "serving 12 of 12", "serving 12 of 12: 6 s so far"]
        assert written.getvalue().splitlines() == ([] if quiet else lines)
        now[0] = 0.0


def test_what_takes_long_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for quiet in (False, True):
        written = io.StringIO()
        shown = BenchProgress(Console(file=written, width=80), quiet)
        shown.phase("making requests for rag")
        for now[0] in (3.0, 6.0, 9.0, 66.0, 80.0):
            shown.beat()
        lines = ["making requests for rag", "making requests for rag: 6 s so far"]
        lines += ["making requests for rag: 1 min 6 s so far"]
        assert written.getvalue().splitlines() == ([] if quiet else lines)
        now[0] = 0.0


def test_it_tells_by_itself_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcache_cli.bench.progress.LINE_S", 0.0)
    told = threading.Event()
    monkeypatch.setattr(BenchProgress, "beat", lambda self: told.set())
    before = threading.active_count()
    with BenchProgress(Console(file=io.StringIO()), quiet=False):
        assert told.wait(60)
    assert threading.active_count() == before


def test_what_is_left_is_told_by_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four requests the last two take nine times as long; the first tells nothing yet."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    sample: Any = SimpleNamespace(first_token_s=2.0, scheduled_s=0.0)
    written = io.StringIO()
    with BenchProgress(Console(file=written, width=80), quiet=False) as shown:
        shown.expect(4, work=20.0)
        for work in (1.0, 1.0, 9.0):
            now[0] += 6.0 * work
            shown.served("rag off", sample, work)
    lines = [line.partition(", about ")[2] for line in written.getvalue().splitlines()]
    assert lines == ["", "1 min 48 s left", "54 s left"]


@pytest.mark.parametrize("name", ["", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_threads_wait_asleep_unless_the_environment_says_how(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP reads it when torch is imported, not later."""
    for each in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(each, raising=False)
    if name:
        monkeypatch.setenv(name, "7")
    seen: list[str | None] = []
    real = builtins.__import__

    def imported(wanted: str, *more: Any) -> Any:
        if wanted == "torch":
            seen.append(os.environ.get("GOMP_SPINCOUNT"))
            raise ImportError(name=wanted)
        return real(wanted, *more)

    monkeypatch.setattr(builtins, "__import__", imported)
    with pytest.raises(MissingError, match="torch"):
        start_engine("transformers", None, "cpu", "auto")
    monkeypatch.undo()
    assert seen == [{"": "1000", "GOMP_SPINCOUNT": "7"}.get(name)]


def test_a_check_does_not_know_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    written = io.StringIO()
    with BenchProgress(Console(file=written, width=80), quiet=False) as shown:
        now[0] = 6.0
        sample: Any = SimpleNamespace(first_token_s=2.0, scheduled_s=0.0)
        shown.served("rag round 1", sample)
    assert written.getvalue() == "rag round 1: 1 requests, TTFT 2 s\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminals_that_know_few_characters(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lmcache", *SHORT, "--quiet"])
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    with pytest.raises(SystemExit) as end:
        run()
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert end.value.code == 0 and "simulated" in text and "?" not in text
    assert text.encode(encoding)


def test_off_in_yaml_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("reuse: off\nworkloads: [chat]\nwarm: false\nsessions: 2\n")
    args = ("bench", "--engine", "simulated", "--config", "b.yaml", "--quiet", "--json", "-")
    done = lmcache(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [cell["reuse"] for cell in document["cells"]] == ["off"]
    assert document["config"]["warm"] is False
