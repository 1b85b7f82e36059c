"""What stands under a table in words, and the verdict of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from reports.paired import OutputChanges, Speedup
from reports.sample import Sample
from reports.summary import CellMeta, CellSummary, summarise
from reports.tables.findings import in_words, verdict

Make = Callable[..., Sample]
Meta = Callable[..., CellMeta]
MIB = 2**20


@pytest.fixture
def world(make_sample: Make, make_meta: Meta) -> Callable[..., list[CellSummary]]:
    """Six requests of 150 tokens without reuse, and with hits of ``hit`` tokens in the last four;
    ``more`` goes into the row's description."""

    def make(hit: int = 128, ttft: float = 1.0, **more: Any) -> list[CellSummary]:
        load_s = more.pop("load_s", 0.0)
        off, on = [], []
        for i in range(6):
            same: dict[str, Any] = {"at": 10.0 * i, "prompt_tokens": 150}
            off.append(make_sample(f"r{i}", ttft=4.0, prefill_s=4.0, hit_tokens={}, **same))
            hot = i >= 2
            took: dict[str, Any] = {"ttft": ttft, "prefill_s": ttft / 2, "load_s": load_s}
            hits = {"hit_tokens": {"cpu": hit * hot}}
            took = took if hot else {"ttft": 4.0, "prefill_s": 4.0}
            on.append(make_sample(f"r{i}", **took, **hits, **same))
        facts = {"busy_s": 60.0}
        return [
            summarise(off, None, make_meta("off", None, facts)),
            summarise(on, off, make_meta("prefix", 64, facts | more, cpu=512 * MIB)),
        ]

    return make


def test_what_it_gave(world: Callable[..., list[CellSummary]]) -> None:
    [line] = in_words(world())
    assert line.startswith(
        "prefix (cpu 512 MiB) makes TTFT 2.00x as fast in the mean (4 s to 2 s), with 56.9% of the"
        " prompt tokens from a cache and 14 s of prefill saved."
    )
    [line] = in_words(world(ttft=8.0, hit=0))
    assert "1.67x as long" in line and "saved" not in line


def test_numbers_behind_it(world: Callable[..., list[CellSummary]]) -> None:
    off, prefix = world()
    assert prefix.tail_tokens == 6 * (150 - 128) and off.tail_tokens is None
    assert prefix.prefill_saved_s == pytest.approx(4 * 3.5) and off.prefill_saved_s is None
    assert (off.goodput_bound_s, prefix.goodput_bound_s) == (4.0, 4.0)
    slower = world(ttft=9.0)[1]
    assert slower.goodput_per_s == pytest.approx(2 / 60), "only the misses are in time"
    # a chunk at the end of a prompt is not hit whole: the last token is computed
    assert world(hit=128)[1].tail_tokens == 6 * 22


def works(evicted: int) -> dict[str, Any]:
    return {"tier_work": {"cpu": {"evicted_chunks": evicted, "failed_chunks": 0}}}


@pytest.mark.parametrize(
    ("more", "says", "then"),
    [
        ({}, "28% of the tokens were seen for the first time", ""),
        (works(7), "cpu was too small and evicted 7 chunks", "--cpu-size 1GiB"),
        ({"load_s": 1.5}, "Loading took 50% of TTFT, most of it from cpu", "--codec fp8"),
        (
            {"any_position": 0.8, "hit": 16, "ttft": 3.9},
            "80% of the tokens came again, most of them behind other text",
            "--reuse off,prefix,blend",
        ),
        ({"any_position": 0.6}, "seen for the first time", ""),
    ],
)
def test_what_limited_it(
    world: Callable[..., list[CellSummary]], more: dict[str, Any], says: str, then: str
) -> None:
    [line] = in_words(world(**more))
    assert says in line
    assert then in line if then else "To try" not in line


def test_what_to_try_is_the_runs_own_command(world: Callable[..., list[CellSummary]]) -> None:
    off, prefix = world(**works(7))
    own = ["lmcache", "bench", "rag", "--engine", "vllm", "--model", "my model"]
    own += ["--cpu-size", "256MiB,512MiB", "--warm"]
    meta: Any = {**prefix.meta, "command": own}
    [line] = in_words([off, replace(prefix, meta=meta)])
    then = "lmcache bench rag --engine vllm --model 'my model' --warm --cpu-size 1GiB"
    assert line.endswith(f"To try: {then}")
    off, prefix = world(any_position=0.8, hit=16, ttft=3.9)
    meta = {**prefix.meta, "engine": "vllm"}
    [line] = in_words([off, replace(prefix, meta=meta)])
    assert "behind other text" in line and "blend" not in line, "vllm does not blend by itself"


def test_tails(world: Callable[..., list[CellSummary]]) -> None:
    off, prefix = world()
    long = replace(prefix, tail_tokens=400)
    [line] = in_words([off, long])
    assert "44% of the tokens stand behind the last full chunk of 64" in line
    assert "--chunk-tokens 32" in line


def test_contexts_are_told_apart_and_what_has_no_base_says_nothing(
    world: Callable[..., list[CellSummary]],
) -> None:
    cells = []
    for length in (100, 200):
        for cell in world():
            meta: Any = {**cell.meta, "context_tokens": length}
            cells.append(replace(cell, meta=meta))
    first, second = in_words(cells)
    assert first.startswith("Contexts of 100: ") and second.startswith("Contexts of 200: ")
    assert in_words(cells[1:2]) == []


def test_verdicts(world: Callable[..., list[CellSummary]]) -> None:
    off, prefix = world()
    for low, high, word in ((1.1, 2, "faster"), (0.5, 0.9, "slower"), (0.9, 1.1, "even")):
        assert verdict(replace(prefix, speedup=Speedup(1.0, low, high))) == word
    assert verdict(off) == ""
    assert verdict(replace(prefix, outputs=OutputChanges(3, 1))) == "wrong"


def test_more_hits_than_tokens_are_no_rate(make_sample: Make, make_meta: Meta) -> None:
    odd = [make_sample("a", prompt_tokens=10, hit_tokens={"device": 11})]
    assert summarise(odd, None, make_meta("server", None)).hit_rate is None
    even = [make_sample("a", prompt_tokens=10, hit_tokens={"device": 10})]
    assert summarise(even, None, make_meta("server", None)).hit_rate == 1.0
