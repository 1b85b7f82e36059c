"""Goals are met or not by the figures of the stages alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.card import Card
from benchmarks.gpu.goals import Goal, better_ways, floor_s, goals
from benchmarks.gpu.hits import Hits, read_hits
from benchmarks.gpu.stage import Outcome, Stage
from benchmarks.gpu.summary import Summary, table
from reports.run_file import write_run
from reports.sample import Sample

PEAK = 256 << 20


def row(
    run_bytes: int, of_peak: float, direction: str = "h2d", way: str = "dma", **more: Any
) -> dict[str, Any]:
    known = {
        "shape": "8B", "page": 64, "tokens": 4096, "slots": "scattered", "nbytes": PEAK,
        "ctas": None if way == "dma" else 12, "rate": 50 * of_peak,
    }  # fmt: skip
    own = {"run_bytes": run_bytes, "of_peak": of_peak, "direction": direction, "way": way}
    return known | own | more


def transfer(*rows: dict[str, Any]) -> dict[str, Any]:
    peaks = {"h2d": 50.0, "d2h": 40.0, "d2d": 1000.0, "both": 80.0}
    return {"peaks": peaks, "peak_bytes": PEAK, "gpu": list(rows), "left_out": ["8B, long"]}


def hits(tier: str = "cpu", ttft_s: float = 0.070, cold_s: float = 1.4) -> Hits:
    """2.5 GB at 50 GB/s are 50 ms, and 10 ms of tail: a floor of 60 ms."""
    return Hits(tier, 25_000, [ttft_s] * 3, [2_500_000_000] * 3, [0.010] * 3, [0.055] * 3,
                [cold_s] * 3)  # fmt: skip


def rag(speedup: float | None) -> dict[str, Any]:
    interval = {"low": 3.0, "high": 5.0}
    cells = [
        {"reuse": mode, "n": 6, "speedup_ttft": found, "speedup_ttft_interval": interval,
         "ttft_ms": {"p50": 100.0}}
        for mode, found in (("off", None), ("prefix", 9.0), ("blend", speedup))
    ]  # fmt: skip
    return {"cells": cells}


def met(name: str, found: list[Goal]) -> bool | None:
    [goal] = [goal for goal in found if name in goal.name]
    return goal.met


def test_nothing_measured_is_neither() -> None:
    found = goals(None, [], None)
    assert len(found) == 7
    assert {goal.met for goal in found} == {None}
    partial = goals({"peaks": {}, "gpu": []}, [hits()], {"cells": []})
    assert [goal.met for goal in partial if goal.met is not None] == [True]


@pytest.mark.parametrize(
    ("rows", "long_runs", "short_runs"),
    [
        ([row(64 << 10, 0.91), row(8 << 10, 0.61)], True, True),
        ([row(64 << 10, 0.89), row(8 << 10, 0.59)], False, False),
        # The worst case decides, of either direction,
        ([row(128 << 10, 0.95), row(512 << 10, 0.5, "d2h", page=256)], False, None),
        # and the better way of each.
        ([row(64 << 10, 0.5), row(64 << 10, 0.95, way="kernel")], True, None),
        # Neither shorter runs than those, nor short moves, nor both directions at once count.
        ([row(64 << 10, 0.95), row(32 << 10, 0.1), row(64 << 10, 0.1, nbytes=PEAK // 3, page=1)],
         True, None),
        ([row(64 << 10, 0.95), row(64 << 10, 0.1, "both"), row(64 << 10, 0.1, "d2d")], True, None),
        ([row(8 << 10, 0.7), row(16 << 10, 0.1), row(4 << 10, 0.1)], None, True),
    ],
)  # fmt: skip
def test_moves(rows: list[dict[str, Any]], long_runs: Any, short_runs: Any) -> None:
    found = goals(transfer(*rows), [], None)
    assert met("64 KiB", found) is long_runs
    assert met("8 KiB", found) is short_runs


def test_the_slowest_case_comes_first() -> None:
    rows = [row(64 << 10, 0.9), row(64 << 10, 0.7, page=1), row(64 << 10, 0.8, way="kernel")]
    assert [r["of_peak"] for r in better_ways(transfer(*rows), 64 << 10, None)] == [0.7, 0.9]


def test_the_floor_is_bytes_at_the_copys_rate_and_the_tail() -> None:
    rates = {"h2d": 50.0, "d2d": 1000.0}
    assert floor_s(hits(), rates) == pytest.approx([0.060] * 3)
    assert floor_s(hits("device"), rates) == pytest.approx([0.0125] * 3)


@pytest.mark.parametrize(
    ("ttft_s", "of_floor", "of_cold"),
    [(0.068, True, True), (0.070, False, True), (0.139, False, True), (0.141, False, False)],
)
def test_hits(ttft_s: float, of_floor: bool, of_cold: bool) -> None:
    found = goals(transfer(), [hits(ttft_s=ttft_s)], None)
    assert met("hit in the cpu tier, of its floor", found) is of_floor
    assert met("over that of a hit in the cpu tier", found) is of_cold
    assert met("hit in the device tier, of its floor", found) is None


@pytest.mark.parametrize(("speedup", "reached"), [(3.6, True), (3.5, False), (None, None)])
def test_blend(speedup: float | None, reached: bool | None) -> None:
    assert met("blend", goals(None, [], rag(speedup))) is reached


def test_a_refusal_is_told() -> None:
    refused = [{"reuse": "shared", "reason": "no"}, {"reuse": "blend", "reason": "no room"}]
    [goal] = [g for g in goals(None, [], rag(None) | {"refused": refused}) if "blend" in g.name]
    assert (goal.found, goal.met) == ("no room", None)


def sample(cell: int, name: str, ttft: float, **tiers: int) -> Sample:
    return Sample(
        cell=cell, request_id=name, session="s", workload="long-context", prompt_tokens=1000,
        output_tokens=1, scheduled_s=1.0, sent_s=1.0, first_token_s=1.0 + ttft,
        finished_s=1.0 + ttft, hit_tokens=tiers, bytes_loaded=sum(tiers.values()) * 10,
        load_s=0.02, prefill_s=0.03,
    )  # fmt: skip


def run_file(folder: Path) -> Path:
    """A cold prefill each, a miss, a hit of a shared first chunk, hits of one tier and of two."""
    samples = [
        sample(0, "a", 1.0), sample(0, "b", 2.0), sample(0, "c", 3.0), sample(0, "d", 4.0),
        sample(1, "a", 1.1, cpu=0), sample(1, "b", 0.2, cpu=960), sample(1, "c", 0.9, cpu=64),
        sample(2, "b", 0.1, cpu=0, device=960), sample(2, "c", 0.3, cpu=960, device=0),
        sample(2, "d", 0.4, cpu=64, device=896),
    ]  # fmt: skip
    cells = [{"reuse": "off"}, {"reuse": "prefix"}, {"reuse": "prefix"}]
    path = folder / "long.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    write_run(path, samples, {"cells": cells})
    return path


def test_hits_are_those_of_one_tier(tmp_path: Path) -> None:
    first, *others = read_hits(run_file(tmp_path))
    assert (first.tier, first.tokens, first.nbytes) == ("cpu", 960, [9600])
    assert first.ttft_s == pytest.approx([0.2])
    assert first.cold_s == pytest.approx([2.0])
    assert (first.prefill_s, first.load_s) == ([0.03], [0.02])
    assert [(one.tier, len(one.ttft_s)) for one in others] == [("cpu", 1), ("device", 1)]
    assert others[1].ttft_s == pytest.approx([0.1])


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    results = tmp_path / "stages"
    run_file(results / "long-runs")
    (results / "rag.json").write_text(json.dumps(rag(4.0)))
    rows = transfer(row(64 << 10, 0.95), row(8 << 10, 0.5))
    (results / "transfer_rows.json").write_text(json.dumps(rows))
    facts = {"torch": {"version": "2.11.0", "cuda": "13.0"}, "kernels": {"toolkit": "13.0.88"},
             "versions": {"transformers": "5.17.0", "python": "3.12.3"}}  # fmt: skip
    (results / "facts.json").write_text(json.dumps(facts))
    (results / "rag.log").write_text("first\nblend | failed\n")
    names = ("facts", "long", "rag", "transfer")
    stages = [Stage(name, ("true",), 1.0, remark="told" * (name == "rag")) for name in names]
    card = Card("NVIDIA H100", "580.1", "81559 MiB", "9.0")
    about = {"dry": False, "commit": "abc", "sources": "0123"}
    return Summary(tmp_path / "out", results, stages, card, about)


def passed(name: str, **more: Any) -> Outcome:
    known: dict[str, Any] = {
        "status": "passed",
        "seconds": 1.0,
        "exit_code": 0,
        "why": "",
        "key": "k",
    }
    return Outcome(name, **(known | {"limit_s": 9.0} | more))


def test_one_document_and_one_table(summary: Summary, tmp_path: Path) -> None:
    failed = passed("rag", status="failed", exit_code=1, why="blend | failed")
    summary.write([passed("facts"), passed("long"), failed, passed("transfer")])
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert document["schema"] == "lmcache.gpu/1"
    assert document["card"]["name"] == "NVIDIA H100"
    assert [goal["met"] for goal in document["goals"]] == [True, False, False, False, True, True,
                                                           True]  # fmt: skip
    assert document["transfer"]["gpu"][0]["of_peak"] == 0.95
    [told] = [stage for stage in document["stages"] if stage["name"] == "rag"]
    assert (told["log"], told["remark"]) == (["first", "blend | failed"], "told")
    page = (tmp_path / "out" / "gpu.md").read_text()
    for word in (
        "NVIDIA H100, driver 580.1, toolkit 13.0.88, torch 2.11.0 (CUDA 13.0)", "python 3.12.3",
        "commit abc", "| met |", "| **not met** |",
        "| rag | failed | 1.0 s | blend \\| failed; told |",
        "| 64 KiB | h2d | 0.95 | 0.95-0.95 | 1 | 50.0 |", "| blend | 6 | 100 | 4.00x |",
        "| device | 960 | 1 | 100.0 |", "No time in transfer for 8B, long.",
    ):  # fmt: skip
        assert word in page
    assert "== rag\nfirst\nblend | failed\n" in (tmp_path / "out" / "gpu.log").read_text()


def test_a_result_without_an_outcome_is_none(summary: Summary, tmp_path: Path) -> None:
    """It is of other sources."""
    summary.write([passed("facts")])
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert document["facts"]
    assert (document["rag"], document["transfer"], document["hits"]) == (None, None, [])
    assert {goal["met"] for goal in document["goals"]} == {None}


def test_damaged_results_are_none(summary: Summary, tmp_path: Path) -> None:
    (tmp_path / "stages" / "rag.json").write_text("{")
    (tmp_path / "stages" / "long-runs" / "long.parquet").write_text("nothing")
    summary.write([passed("rag"), passed("long")])
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert (document["rag"], document["hits"]) == (None, [])


def test_no_rows_no_table() -> None:
    assert table(("a",), []) == ""
