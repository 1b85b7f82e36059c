"""Stages end no other, take up what is missing, and keep to their budget."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.runner import Runner
from benchmarks.gpu.stage import Outcome, Stage
from tests.benchmarks.test_gpu_stage import appears, is_alive

ROOT = Path(__file__).parents[2]


class World:
    """Stages whose commands leave a line in ``folder``/NAME for each time that they ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[list[str]] = []

    def stage(self, name: str, script: str = "", **options: Any) -> Stage:
        command = f"echo ran >> '{self.folder / name}'; {script}"
        return Stage(name, ("sh", "-c", command), options.pop("limit_s", 60.0), **options)

    def run(self, *stages: Stage, inputs: str = "same", budget_s: float = 600.0) -> int:
        self.runner = Runner(
            stages, self.folder / "results", inputs, budget_s, os.environ, self.changed
        )
        return self.runner.run()

    def changed(self, outcomes: Any) -> None:
        self.seen.append([outcome.name for outcome in outcomes])

    def outcome(self, name: str) -> Outcome:
        return next(o for o in self.runner.outcomes() if o.name == name)

    def status(self, name: str) -> str:
        return self.outcome(name).status

    def times(self, name: str) -> int:
        file = self.folder / name
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_one_that_fails_ends_no_other(world: World) -> None:
    assert world.run(world.stage("a", "exit 7"), world.stage("b")) == 1
    assert (world.status("a"), world.status("b")) == ("failed", "passed")
    # Results are told one by one.
    assert world.seen == [["a"], ["a", "b"]]


def test_a_second_call_takes_what_is_missing(world: World) -> None:
    fixed = world.folder / "fixed"
    stages = world.stage("a"), world.stage("b", f"test -e '{fixed}'"), world.stage("c")
    assert world.run(*stages) == 1
    fixed.touch()
    assert world.run(*stages) == 0
    assert [world.times(name) for name in "abc"] == [1, 2, 1]
    assert world.run(*stages) == 0
    assert [world.times(name) for name in "abc"] == [1, 2, 1]


def test_other_inputs_make_all_missing(world: World) -> None:
    world.run(world.stage("a"))
    world.run(world.stage("a"), inputs="another card")
    assert world.times("a") == 2
    # An old result is none of these inputs.
    world.run(world.stage("a"), world.stage("b"), inputs="third", budget_s=0)
    assert (world.status("a"), world.times("a")) == ("skipped", 2)


def test_a_lost_result_is_missing(world: World) -> None:
    made = world.folder / "results" / "made"
    stage = world.stage("a", f"test ! -e '{made}' && echo > '{made}'", yields=(made,))
    assert world.run(stage) == 0
    made.unlink()
    assert world.run(stage) == 0
    assert world.times("a") == 2


def test_what_an_earlier_call_left_is_gone(world: World) -> None:
    """Or a stage that fails would seem to have measured it."""
    file, folder = world.folder / "results" / "made", world.folder / "results" / "runs"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    file.touch()
    assert world.run(world.stage("a", "exit 1", yields=(file, folder))) == 1
    assert not file.exists()
    assert not folder.exists()


def test_passing_without_a_result_is_failing(world: World) -> None:
    stage = world.stage("a", yields=(world.folder / "results" / "never",))
    assert world.run(stage) == 1
    assert world.outcome("a").why == "it passed without leaving never"


def test_needs(world: World) -> None:
    stages = (
        world.stage("base", "exit 1", serves=True),
        world.stage("middle", needs=("base",), serves=True),
        world.stage("top", needs=("base", "middle")),
        world.stage("other"),
    )
    assert world.run(*stages) == 1
    assert (world.status("middle"), world.status("top")) == ("skipped", "skipped")
    assert world.outcome("top").why == "needs base (failed)"
    assert world.status("other") == "passed"
    assert world.times("top") == 0


def test_what_only_serves_runs_for_others(world: World) -> None:
    model = world.folder / "results" / "model"
    base = world.stage("base", f"echo > '{model}'", serves=True, yields=(model,))
    first, second = world.stage("first", needs=("base",)), world.stage("second")
    assert world.run(base, first) == 0
    model.unlink()
    assert world.run(base, first, second) == 0
    assert [world.times(name) for name in ("base", "first", "second")] == [1, 1, 1]
    # One more that needs it, and it is made again; the next finds it.
    third, fourth = world.stage("third", needs=("base",)), world.stage("fourth", needs=("base",))
    assert world.run(base, first, third) == 0
    assert world.times("base") == 2
    assert world.run(base, first, third, fourth) == 0
    assert [world.times(name) for name in ("base", "third", "fourth")] == [2, 1, 1]


def test_a_missing_tool_is_no_failure(world: World) -> None:
    stage = world.stage("a", tool="no-such-sanitizer")
    assert world.run(stage, world.stage("b")) == 4
    assert world.status("a") == "missing"
    assert world.outcome("a").why == "there is no no-such-sanitizer here"
    assert (world.times("a"), world.times("b")) == (0, 1)
    assert world.run(world.stage("a", tool="sh"), world.stage("b")) == 0


def test_the_worst_decides_the_exit_code(world: World) -> None:
    missing, failing = world.stage("a", tool="no-such-tool"), world.stage("b", "exit 1")
    assert world.run(missing, failing) == 1


def test_time_that_runs_out_skips_with_a_word(world: World) -> None:
    assert world.run(world.stage("a"), world.stage("b"), budget_s=0.0) == 3
    assert world.outcome("b").why == "0 s are left, and it needs 10 s at least"
    assert world.times("a") == 0
    assert world.run(world.stage("a"), world.stage("b")) == 0


def test_a_stage_leaves_later_ones_their_least(world: World) -> None:
    stages = (
        world.stage("a", limit_s=100.0),
        world.stage("b", limit_s=100.0, least_s=20.0),
        world.stage("c", limit_s=100.0, least_s=30.0),
        world.stage("d", limit_s=5.0, least_s=5.0),
    )
    assert world.run(*stages, budget_s=70.0) == 0
    limits = [world.outcome(name).limit_s for name in "abcd"]
    # 70 s less 55 for the others; 70 less 35; 70 less 5; its own.
    assert limits[0] <= 15.0
    assert 15.0 < limits[1] <= 35.0
    assert 35.0 < limits[2] <= 65.0
    assert limits[3] == 5.0


def test_no_stage_is_begun_with_less_than_its_least(world: World) -> None:
    """Though those behind it would need the rest."""
    stages = world.stage("a", limit_s=100.0), world.stage("b", limit_s=100.0, least_s=25.0)
    world.run(*stages, budget_s=30.0)
    assert world.outcome("a").limit_s == 10.0


def test_one_over_its_limit_is_ended_and_the_next_runs(world: World) -> None:
    slow = world.stage("a", "sleep 1000", limit_s=0.5)
    assert world.run(slow, world.stage("b")) == 1
    assert (world.status("a"), world.status("b")) == ("timed out", "passed")


def test_beside(world: World) -> None:
    """``side`` and ``a`` wait for each other; ``b`` for the end of ``side``."""
    folder = world.folder

    def wait_for(name: str) -> str:
        return f"while [ ! -e '{folder / name}' ]; do sleep 0.01; done"

    stages = (
        world.stage("side", f"{wait_for('a')}; sleep 0.1; touch '{folder}/end'", beside=True),
        world.stage("a", wait_for("side")),
        world.stage("b", f"test -e '{folder}/end'", after=("side",)),
    )
    assert world.run(*stages) == 0
    assert [o.name for o in world.runner.outcomes()] == ["side", "a", "b"]


def test_one_beside_is_waited_for_by_what_needs_it(world: World) -> None:
    stages = (
        world.stage("side", "sleep 0.1", beside=True, serves=True),
        world.stage("a", needs=("side",)),
    )
    assert world.run(*stages) == 0


def test_one_beside_takes_no_time_from_others(world: World) -> None:
    stages = world.stage("a", limit_s=50.0), world.stage("b", beside=True, least_s=90.0)
    world.run(*stages, budget_s=100.0)
    assert world.outcome("a").limit_s == 50.0


def test_nobody_waits_for_the_last_one_beside_in_vain(world: World) -> None:
    assert world.run(world.stage("a", "sleep 0.1; exit 2", beside=True)) == 1
    assert world.status("a") == "failed"


def test_a_page_that_cannot_be_written_ends_no_stage(world: World) -> None:
    def broken(outcomes: Any) -> None:
        raise KeyError("gpu")

    world.changed = broken  # type: ignore[method-assign]
    assert world.run(world.stage("a"), world.stage("b")) == 0


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_keeps_what_was_measured(sign: int, tmp_path: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
from tests.benchmarks.test_gpu_runner import World
world = World(Path({str(tmp_path)!r}))
hang = "echo $$ > '{tmp_path}/pid.part'; mv '{tmp_path}/pid.part' '{tmp_path}/NAME'; sleep 1000"
sys.exit(world.run(
    world.stage("a"),
    world.stage("side", hang.replace("NAME", "side-pid"), beside=True),
    world.stage("b", hang.replace("NAME", "pid").replace("pid.part", "b.part")),
    world.stage("c"),
))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores SIGINT, and its children would.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    pids = [int(appears(tmp_path / name)) for name in ("side-pid", "pid")]
    process.send_signal(sign)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    known = json.loads((tmp_path / "results" / "state.json").read_text())
    found = {name: result["status"] for name, result in known.items()}
    assert found == {"a": "passed", "side": "interrupted", "b": "interrupted"}
    assert not any(is_alive(pid) for pid in pids)
    assert "Traceback" not in talk


@pytest.mark.parametrize("text", ["", "[]", '{"a": {"status": "passed"}}', '{"a": 3}'])
def test_a_damaged_state_is_none(text: str, world: World) -> None:
    (world.folder / "results").mkdir()
    (world.folder / "results" / "state.json").write_text(text)
    assert world.run(world.stage("a")) == 0
    assert world.times("a") == 1
