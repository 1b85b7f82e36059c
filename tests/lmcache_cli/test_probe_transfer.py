"""``lmcache probe --transfer``: fits, the file, and what it says without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cache_core.transfer.cuda import CudaMissing, cuda_devices
from cache_core.transfer.planner import load_costs, save_costs
from lmcache_cli.probe.transfer import DIRECTIONS, RUN_BYTES, RUNS, WAYS, Moved, fitted

RUN = "from lmcache_cli.main import run; run()"
TRUTH = {
    ("d2h", "dma"): (8e-6, 1.5e-6, 55e9),
    ("d2h", "kernel"): (12e-6, 0.0, 45e9),
    ("h2d", "dma"): (8e-6, 2e-6, 54e9),
    ("h2d", "kernel"): (12e-6, 1e-9, 40e9),
}


def moves() -> list[Moved]:
    found = []
    for direction in DIRECTIONS:
        for way in WAYS:
            fixed, each, rate = TRUTH[direction, way]
            for runs in RUNS:
                for size in RUN_BYTES:
                    seconds = fixed + runs * each + runs * size / rate
                    found.append(Moved(direction, way, runs, size, seconds))
    return found


def test_costs_are_found_again_and_kept_per_gpu(tmp_path: Path) -> None:
    planner = fitted(moves())
    for key, (fixed, each, rate) in TRUTH.items():
        cost = planner.costs[key]  # type: ignore[index]
        assert [size.run_bytes for size in cost.sizes] == list(RUN_BYTES)
        for size in cost.sizes:
            assert size.fixed_s == pytest.approx(fixed, rel=1e-3)
            assert size.run_s == pytest.approx(each + size.run_bytes / rate, rel=1e-3)
    file = tmp_path / "new" / "transfer.json"
    save_costs(file, "GPU A", planner)
    save_costs(file, "GPU B", fitted(moves()))
    assert load_costs(file, "GPU A") == planner
    assert load_costs(file, "GPU C").costs == {}


def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    try:
        cuda_devices()
    except CudaMissing:
        pass
    else:
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "-c", RUN, "probe", "--transfer", "--out", str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert done.returncode == 4
    assert "--transfer needs a GPU" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
