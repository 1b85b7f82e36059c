"""The benchmark of connectors' scheduler sides: what it counts, and that both connectors work in
it. How long anything took is no test's."""

from __future__ import annotations

import gc
import hashlib
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks.vllm_sched.scenarios import Decode, Queue
from benchmarks.vllm_sched.timing import Spent, Timed
from benchmarks.vllm_scheduler import Row, main, measured, spread, tables, unit
from tests.vllm_process import run_with_vllm

pytestmark = pytest.mark.vllm

OURS, THEIRS = "TieredKVConnector", "OffloadingConnector"
CONTEXT, RUNNING, QUEUED, HELD, CHUNK = 256, 3, 5, 40, 32


class Connector:
    def outer(self, *, value: int) -> int:
        return self.inner(value) + self._hidden()

    def inner(self, value: int) -> int:
        return value

    def collecting(self) -> None:
        gc.collect()

    def failing(self) -> None:
        raise KeyError("x")

    def _hidden(self) -> int:
        return 1

    @classmethod
    def of_class(cls) -> int:
        return 2


@pytest.fixture
def timed() -> Any:
    connector = Connector()
    found = Timed(connector)
    yield connector, found
    found.close()


def test_a_call_within_a_call_is_a_part_of_it(timed: Any) -> None:
    connector, clock = timed
    assert connector.outer(value=4) == 5
    assert clock.take().calls == 1
    assert connector.inner(3) == 3
    assert connector.inner(3) == 3
    assert clock.take().calls == 2
    assert clock.take().calls == 0


def test_what_the_scheduler_does_not_call_is_not_timed(timed: Any) -> None:
    connector, clock = timed
    assert connector._hidden() + connector.of_class() == 3
    assert clock.take().calls == 0


def test_a_call_that_raises_ends(timed: Any) -> None:
    connector, clock = timed
    for _ in range(2):
        with pytest.raises(KeyError):
            connector.failing()
    assert clock.take().calls == 2


def test_collections_count_in_calls_alone(timed: Any) -> None:
    connector, clock = timed
    gc.collect()
    assert clock.take().collections[2] == 0
    connector.collecting()
    spent = clock.take()
    assert spent.collections[2] == 1
    assert 0 < spent.gc <= spent.wall


def test_closed_it_hears_of_no_collection() -> None:
    before = list(gc.callbacks)
    clock = Timed(Connector())
    clock.close()
    assert gc.callbacks == before


def test_other_threads_are_counted_apart(timed: Any) -> None:
    _, clock = timed
    took: list[int] = []

    def work() -> None:
        data = bytes(1 << 20)
        for _ in range(40):
            hashlib.sha256(data)
        took.append(time.thread_time_ns())

    other = threading.Thread(target=work)
    other.start()
    other.join()
    spent = clock.take()
    assert spent.others > took[0] / 2
    assert spent.calls == spent.cpu == 0


def test_a_row_is_compared_repeat_by_repeat() -> None:
    row = Row("queue", 8, 1, "first pass", {OURS: [1.0, 6.0, 5.0], THEIRS: [2.0, 2.0, 0.0]})
    assert row.ratios == [0.5, 3.0]
    assert spread([3.0, 1.0, 20.0]) == "3.0 (1.0 to 20.0)"
    assert spread([1234.56]) == "1,234.6"
    assert spread([]) == "-"


def test_each_scenario_has_a_table_of_its_rows() -> None:
    values = {OURS: [1.0, 2.0, 3.0], THEIRS: [4.0, 4.0, 4.0]}
    rows = [
        Row("decode", 8192, 10_000, "mean of all steps", values),
        Row("queue", 32_768, 1_000_000, "worst pass, ms", values),
    ]
    decode, queue = (_text(table) for table in tables(rows))
    assert "us per running request and step" in decode
    assert "mean of all steps" in decode and "worst pass" not in decode
    assert "8,192" in decode and "2.0 (1.0 to 3.0)" in decode and "0.50 (0.25 to 0.75)" in decode
    assert "us per queued request and pass" in queue and "1,000,000" in queue
    assert [unit(row) for row in rows] == ["us per running request and step", "ms"]


def test_repeats_take_turns() -> None:
    calls: list[tuple[str, str]] = []

    def caller(name: str) -> Any:
        def call(work: Any, *_: Any) -> Any:
            calls.append((work.__name__, name))
            return {"begin": None, "repeat": {"figure": float(len(calls))}, "end": (2, 3)}[
                work.__name__
            ]

        return call

    callers = {name: caller(name) for name in (OURS, THEIRS)}
    rows, moved = measured(callers, [7], [("decode", 64, 2)], repeats=2)
    kinds = ["begin", "begin", "repeat", "repeat", "repeat", "repeat", "end", "end"]
    assert calls == list(zip(kinds, [OURS, THEIRS] * 4, strict=True))
    assert [(row.context, row.held, row.values) for row in rows] == [
        (64, 7, {OURS: [3.0, 5.0], THEIRS: [4.0, 6.0]})
    ]
    assert {name: (m.saved, m.loaded) for name, m in moved.items()} == {
        OURS: (2, 3),
        THEIRS: (2, 3),
    }


def engine(scheduled: dict[str, int], requests: dict[str, int]) -> Any:
    """One that saves nothing; ``requests`` have computed so many tokens."""
    return SimpleNamespace(
        step=lambda: SimpleNamespace(num_scheduled_tokens=scheduled),
        scheduler=SimpleNamespace(
            requests={name: SimpleNamespace(num_computed_tokens=n) for name, n in requests.items()}
        ),
        timed=SimpleNamespace(take=Spent),
        worker=SimpleNamespace(saved=5, loaded=5),
    )


@pytest.mark.parametrize(
    ("scheduled", "requests", "wrong"),
    [
        ({"r0": 1}, {"r0": 1}, "nothing was saved"),
        ({}, {"r0": 1}, "not every request"),
        ({"r0": 1, "r1": 1}, {"r0": 1, "r1": 1}, "not every request"),
    ],
)
def test_decoding_that_is_none_is_an_error(
    scheduled: dict[str, int], requests: dict[str, int], wrong: str
) -> None:
    scenario = object.__new__(Decode)
    scenario.engine, scenario._running = engine(scheduled, requests), 1
    with pytest.raises(RuntimeError, match=wrong):
        scenario.repeat()


def test_waiting_that_is_none_is_an_error() -> None:
    scenario = object.__new__(Queue)
    scenario.engine = engine({"queued-0": 1}, {})
    with pytest.raises(RuntimeError, match="1 requests did not wait"):
        scenario._pass()


def test_a_wrong_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--held", "many"])
    assert end.value.code == 2
    assert "--held" in capsys.readouterr().err


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, Any]]:
    """What it prints and what it writes, with a few short requests."""
    file = tmp_path_factory.mktemp("scheduler") / "figures.json"
    said = run_with_vllm(
        *("-m", "benchmarks.vllm_scheduler"),
        *("--contexts", str(CONTEXT), "--running", str(RUNNING)),
        *("--queue-contexts", str(CONTEXT), "--queued", str(QUEUED)),
        *("--held", str(HELD), "--repeats", "1", "--json", str(file)),
        timeout_s=900,
    )
    return said, json.loads(file.read_text())


def test_both_connectors_save_and_load_what_they_were_given(
    done: tuple[str, dict[str, Any]],
) -> None:
    _, document = done
    half = CONTEXT // 2 // CHUNK
    # Prompts, and what was decoded; halves of prompts, and what was stored behind them.
    least = RUNNING * (CONTEXT // CHUNK + 2) + QUEUED * (half + 2)
    assert set(document["moved"]) == {OURS, THEIRS}
    for moved in document["moved"].values():
        assert moved["saved"] >= least
        assert moved["loaded"] >= QUEUED * (half + half + 2)


def test_every_figure_is_there_for_both(done: tuple[str, dict[str, Any]]) -> None:
    _, document = done
    rows = {(row["scenario"], row["figure"]): row for row in document["rows"]}
    needed = {
        "decode": ["step without a new chunk", "mean of all steps", "p99 of steps", "worst step"],
        "queue": ["first pass", "later pass", "worst pass, ms"],
    }
    for scenario, figures in needed.items():
        for figure in figures:
            row = rows[scenario, figure]
            assert row["unit"] == ("ms" if figure.endswith("ms") else row["unit"])
            assert (row["context"], row["held"]) == (CONTEXT, HELD)
            for name in (OURS, THEIRS):
                (value,) = row["values"][name]
                assert value > 0
    assert {row["unit"] for row in document["rows"]} == {
        "us per running request and step",
        "us per queued request and pass",
        "ms",
        "collections in a repeat",
    }


def test_the_table_names_the_machine_and_both(done: tuple[str, dict[str, Any]]) -> None:
    printed, document = done
    assert document["machine"]["cpu"] in printed
    assert OURS in printed and f"{THEIRS} of vLLM {document['vllm']}" in printed
    assert "mean of all steps" in printed and "later pass" in printed


def _text(table: Any) -> str:
    console = Console(width=150)
    with console.capture() as captured:
        console.print(table)
    return captured.get()
