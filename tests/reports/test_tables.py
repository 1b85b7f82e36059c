from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from reports.sample import Sample
from reports.summary import CellMeta, CellSummary, summarise
from reports.tables.layout import bench_tables

Make = Callable[..., Sample]
Meta = Callable[..., CellMeta]
MIB = 2**20


def _text(cells: list[CellSummary], width: int) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(bench_tables(cells))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _served(make: Make, miss: float, hit: float, tiers: tuple[str, ...] = ()) -> list[Sample]:
    """Six requests, of which the last four hit, in turns from each tier."""
    samples = []
    for i in range(6):
        hits = dict.fromkeys(tiers, 0)
        if tiers and i >= 2:
            hits[tiers[i % len(tiers)]] = 64
        hot = any(hits.values())
        samples.append(
            make(
                f"r{i}",
                at=10.0 * i,
                ttft=(hit if hot else miss) + i / 1000,
                hit_tokens=hits,
                bytes_loaded=MIB * hot,
                load_s=0.001 * hot,
                bytes_stored=MIB * bool(tiers) * (not hot),
            )
        )
    return samples


@pytest.fixture
def pair(make_sample: Make, make_meta: Meta) -> list[CellSummary]:
    """What a plain run gives: one cell without reuse, one with."""
    off = _served(make_sample, 4.0, 4.0)
    on = _served(make_sample, 4.0, 0.25, ("cpu",))
    cold = {"state": "cold"}
    return [
        summarise(off, None, make_meta("off", None, cold)),
        summarise(on, off, make_meta("prefix", 64, cold, cpu=512 * MIB)),
    ]


@pytest.fixture
def sweep(make_sample: Make, make_meta: Meta) -> list[CellSummary]:
    """Tier sizes and chunk lengths vary, a request failed, an output differs."""
    off = _served(make_sample, 4.0, 4.0)
    cells = [summarise(off, None, make_meta("off", None))]
    for chunk, size in ((64, 256), (64, 1024), (256, 256), (256, 1024)):
        on = _served(make_sample, 4.0, 0.25, ("cpu", "disk"))
        if (chunk, size) == (256, 256):
            on[3] = replace(on[3], output_ids=(7, 9))
        if (chunk, size) == (256, 1024):
            on[4] = make_sample("r4", at=40.0, error="out of memory")
        meta = make_meta("prefix", chunk, cpu=size * MIB, disk=2048 * MIB)
        cells.append(summarise(on, off, meta))
    return cells


def test_a_plain_run_at_100(pair: list[CellSummary]) -> None:
    assert _text(pair, 100) == _snapshot("pair-100.txt")


def test_a_sweep_at_100(sweep: list[CellSummary]) -> None:
    assert _text(sweep, 100) == _snapshot("sweep-100.txt")


@pytest.mark.parametrize("width", [80, 100, 140])
def test_nothing_is_cut_at_any_width(
    pair: list[CellSummary], sweep: list[CellSummary], width: int
) -> None:
    narrow, wide = _text(pair + sweep, width), _text(pair + sweep, 400)
    assert max(cell_len(line) for line in narrow.splitlines()) <= width
    assert "…" not in narrow
    assert set(wide.split()) - {_rule(wide)} <= set(narrow.split())


def test_a_workload_each_and_one_legend(
    make_sample: Make, make_meta: Meta, pair: list[CellSummary]
) -> None:
    off = summarise([make_sample()], None, make_meta("off", None, {"workload": "random"}))
    lines = _text([pair[0], off, pair[1]], 100).splitlines()
    assert [line for line in lines if line in ("long-context", "random")] == [
        "long-context",
        "random",
    ]
    assert sum(line.startswith("TTFT counts from") for line in lines) == 1


def test_a_tier_that_only_some_cells_have_is_a_column(
    make_sample: Make, make_meta: Meta, pair: list[CellSummary]
) -> None:
    more = summarise([make_sample()], None, make_meta(cpu=512 * MIB, disk=2048 * MIB))
    text = _text([*pair, more], 140).partition("prefix (")[0]
    assert "disk 2 GiB" not in text
    assert "cpu 512 MiB · chunks of 64 tokens" in text
    assert next(line for line in text.splitlines() if "2 GiB" in line).startswith("prefix  2 GiB")


def test_a_saturated_client_shows(make_sample: Make, make_meta: Meta) -> None:
    late = [make_sample(f"r{i}", ttft=4.0, sent_s=0.5) for i in range(3)]
    text = _text([summarise(late, None, make_meta("off", None))], 100)
    assert "unsent ms" in text
    assert "a busy client voids a run" in text


def test_unexpected_hits_show(make_sample: Make, make_meta: Meta) -> None:
    dirty = make_sample(hit_tokens={"cpu": 64}, expected_hit_tokens=0)
    assert "unexpected" in _text([summarise([dirty], None, make_meta(cpu=MIB))], 100)


def test_only_failures_and_nothing_at_all(make_sample: Make, make_meta: Meta) -> None:
    lost = summarise([make_sample(error="lost")], None, make_meta(cpu=MIB))
    assert "failed" in _text([lost], 100)
    assert "long-context" in _text([summarise([], None, make_meta(cpu=MIB))], 100)
    assert _text([], 100) == "Nothing was measured."


def test_names_are_not_markup(make_sample: Make, make_meta: Meta) -> None:
    meta = make_meta("off", None, {"model": "/models/[bold]x[/bold]"})
    assert "/models/[bold]x[/bold]" in _text([summarise([make_sample()], None, meta)], 100)


def _snapshot(name: str) -> str:
    return (Path(__file__).parent / "snapshots" / name).read_text(encoding="utf-8").rstrip("\n")


def _rule(text: str) -> str:
    return max(text.split(), key=len)
