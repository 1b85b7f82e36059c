"""The planner's choice, its fit and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache_core.transfer.cuda import run_lengths
from cache_core.transfer.planner import Cost, Planner, load_costs

DMA, KERNEL = Cost(5e-6, 2e-6, 50e9), Cost(10e-6, 0.0, 40e9)
PLANNER = Planner({("h2d", "dma"): DMA, ("h2d", "kernel"): KERNEL})


@pytest.mark.parametrize(
    ("runs", "run_bytes", "way"),
    [(1, 4096, "dma"), (1000, 4096, "kernel"), (1000, 1 << 20, "dma"), (4, 1 << 10, "kernel")],
)
def test_the_cheaper_way_is_chosen(runs: int, run_bytes: int, way: str) -> None:
    nbytes = runs * run_bytes
    cheaper = "dma" if DMA.seconds(runs, nbytes) <= KERNEL.seconds(runs, nbytes) else "kernel"
    assert PLANNER.choose("h2d", runs, run_bytes) == way == cheaper


def test_without_measurements_long_runs_go_by_dma() -> None:
    """Also for the direction that was not measured."""
    for planner in (PLANNER, Planner()):
        assert planner.choose("d2h", 10, 64 << 10) == "dma"
        assert planner.choose("d2h", 10, 8 << 10) == "kernel"


def test_a_fit_has_no_negative_term() -> None:
    rng = np.random.default_rng(1)
    samples = [
        (runs, runs * size, runs * size / 30e9 * rng.uniform(0.9, 1.1))
        for runs in (1, 100, 10_000)
        for size in (1 << 12, 1 << 16)
    ]
    cost = Cost.fit(samples)
    assert cost.fixed_s >= 0
    assert cost.run_s >= 0
    assert cost.bytes_per_s == pytest.approx(30e9, rel=0.15)


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ([(1, 10, 1.0)], "three moves"),
        ([(1, 10, 1.0), (1, 10, 1.0), (1, 10, 1.0)], "different shapes"),
    ],
)
def test_a_fit_refuses(samples: list[tuple[int, int, float]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Cost.fit(samples)


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "lmcache.transfer/1", "gpus": {"A": 1}}'])
def test_a_foreign_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="is no file of lmcache probe --transfer"):
        load_costs(file, "A")


@pytest.mark.parametrize(
    ("slots", "touching", "expected"),
    [
        ([[0, 1, 2, 3]], False, (1, 4)),
        ([[2, 3, 4, 5]], False, (2, 4)),
        ([[2, 3, 4, 5]], True, (1, 4)),
        ([[0, -1, 1, 2], [7, 6, 5, -1]], True, (5, 6)),
        ([[-1, -1]], True, (0, 0)),
        ([], True, (0, 0)),
    ],
)
def test_runs_are_counted(
    slots: list[list[int]], touching: bool, expected: tuple[int, int]
) -> None:
    table = np.array(slots, dtype=np.int64).reshape(len(slots), len(slots[0]) if slots else 0)
    assert run_lengths(table, touching, 4) == expected
