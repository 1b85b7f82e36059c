"""The planner's choice, its fit and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache_core import _native
from cache_core.transfer.planner import CopyCost, Planner, RunCost, load_costs
from tests.cache_core.paged_world import Order

# As PCIe 5 is said to be: copy engines pay for each run, and fall off a cliff below 28 KiB.
DMA = CopyCost(
    tuple(
        RunCost(kib << 10, 5e-6, (kib << 10) / rate)
        for kib, rate in ((2, 1e9), (16, 8e9), (24, 12e9), (28, 50e9), (512, 55e9))
    )
)
KERNEL = CopyCost(tuple(RunCost(kib << 10, 10e-6, (kib << 10) / 40e9) for kib in (2, 24, 28, 512)))
PLANNER = Planner({("h2d", "dma"): DMA, ("h2d", "kernel"): KERNEL})


@pytest.mark.parametrize(
    ("runs", "run_bytes", "way"),
    [
        (1, 4096, "dma"),  # one run: what a call costs decides
        (1000, 4096, "kernel"),
        (1000, 24 << 10, "kernel"),
        (1000, 28 << 10, "dma"),
        (1000, 64 << 10, "dma"),
        (1000, 1 << 20, "dma"),
        (64, 1 << 10, "kernel"),
    ],
)
def test_the_cheaper_way_is_chosen(runs: int, run_bytes: int, way: str) -> None:
    cheaper = "dma" if DMA.seconds(runs, run_bytes) <= KERNEL.seconds(runs, run_bytes) else "kernel"
    assert PLANNER.choose("h2d", runs, run_bytes) == way == cheaper


def test_a_cost_between_and_beyond_what_was_measured() -> None:
    cost = CopyCost((RunCost(1000, 1.0, 2.0), RunCost(3000, 3.0, 4.0)))
    assert cost.seconds(10, 1000) == 21.0
    assert cost.seconds(10, 2000) == 2.0 + 30.0
    assert cost.seconds(10, 3000) == 43.0
    assert cost.seconds(10, 10) == 21.0  # no run is cheaper than the shortest that was measured
    assert cost.seconds(10, 6000) == 3.0 + 10 * 8.0  # at the rate of the longest


def test_without_measurements_runs_of_28_kib_go_by_dma() -> None:
    """Also for the direction that was not measured."""
    for planner in (PLANNER, Planner()):
        assert planner.choose("d2h", 10, 28 << 10) == "dma"
        assert planner.choose("d2h", 10, (28 << 10) - 1) == "kernel"


def test_a_fit_keeps_a_rate_for_each_length() -> None:
    """With a cliff that one line through all lengths would not show."""
    rng = np.random.default_rng(1)
    rates = {1 << 12: 5e9, 1 << 14: 8e9, 1 << 15: 50e9}
    samples = [
        (runs, size, (8e-6 + runs * size / rate) * rng.uniform(0.98, 1.02))
        for runs in (4, 100, 10_000)
        for size, rate in rates.items()
    ]
    cost = CopyCost.fit(samples)
    assert [size.run_bytes for size in cost.sizes] == sorted(rates)
    for size in cost.sizes:
        assert size.fixed_s >= 0
        assert size.run_bytes / size.run_s == pytest.approx(rates[size.run_bytes], rel=0.05)


def test_a_fit_has_no_negative_term() -> None:
    falling = CopyCost.fit([(1, 8, 2.0), (10, 8, 1.0)])
    assert falling.sizes[0].run_s == 0
    assert falling.sizes[0].fixed_s > 0
    steep = CopyCost.fit([(1, 8, 0.1), (10, 8, 10.0)])
    assert steep.sizes[0].fixed_s == 0
    assert steep.sizes[0].run_s > 0


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ([(1, 10, 1.0)], "two numbers of runs of 10 bytes"),
        ([(1, 10, 1.0), (1, 10, 1.0), (2, 20, 1.0), (3, 20, 1.0)], "two numbers of runs of 10"),
        ([], "needs run lengths"),
    ],
)
def test_a_fit_refuses(samples: list[tuple[int, int, float]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CopyCost.fit(samples)


def test_lengths_rise() -> None:
    with pytest.raises(ValueError, match="each longer than the one before"):
        CopyCost((RunCost(8, 0.0, 1.0), RunCost(8, 0.0, 1.0)))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"schema": "lmcache.transfer/2", "gpus": {"A": 1}}',
        '{"schema": "lmcache.transfer/2"}',
    ],
)
def test_a_foreign_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="is no file of lmcache probe --transfer"):
        load_costs(file, "A")


def test_a_file_of_an_older_version_is_to_be_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"schema": "lmcache.transfer/1", "gpus": {}}')
    with pytest.raises(ValueError, match="older lmcache; measure again"):
        load_costs(file, "A")


def pieces(slots: list[list[int]], order: Order, **layout: int) -> tuple[int, int]:
    bases = np.array([4096, 1 << 20], dtype=np.uint64)
    shape = {"block_stride": 4 * 64, "token_stride": 64, "head_stride": 32} | layout
    paged = _native.Paged(bases, bases[:0], 4, kv_heads=2, head_bytes=32, num_slots=40, **shape)
    table = np.array(slots, dtype=np.int64).reshape(len(slots), len(slots[0]) if slots else 0)
    return _native.pieces(paged, table, order)


@pytest.mark.parametrize(
    ("slots", "block_stride", "runs"),
    [
        ([[0, 1, 2, 3]], 512, 1),
        ([[2, 3, 4, 5]], 512, 2),
        ([[2, 3, 4, 5]], 256, 1),  # blocks touch
        ([[0, -1, 1, 2], [7, 6, 5, -1]], 256, 5),
        ([[-1, -1]], 256, 0),
        ([], 256, 0),
    ],
)
def test_pieces_are_counted(slots: list[list[int]], block_stride: int, runs: int) -> None:
    """Of two layers: runs of whole tokens, or of each of the two heads of each token."""
    tokens = sum(slot >= 0 for row in slots for slot in row)
    nbytes = tokens * 64 * 2
    assert pieces(slots, "NHD", block_stride=block_stride) == (2 * runs, nbytes)
    apart = {"token_stride": 32, "head_stride": 2048, "block_stride": 128}
    assert pieces(slots, "NHD", **apart) == (4 * tokens, nbytes)
    # A chunk that has heads first has each head's run in one piece.
    counted, total = pieces(slots, "HND", **(apart | {"block_stride": block_stride // 2}))
    assert (counted, total) == (4 * runs, nbytes)


def test_pieces_of_slots_that_are_not_there() -> None:
    with pytest.raises(IndexError, match="the engine has the slots"):
        pieces([[40]], "NHD")
