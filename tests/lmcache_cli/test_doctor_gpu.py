"""``lmcache doctor`` runs the kernels where there is a GPU: on emulated ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache_core import _native
from cache_core.transfer import gpu
from cache_core.transfer.gpu import CopyStreams
from lmcache_cli.doctor import Finding, check_cuda_kernels
from tests.cache_core.emulated_cuda import NO_MEMORY, Emulation, emulated


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulation]:
    if not _native.CUDA.startswith("built"):
        # Emulated GPUs have kernels whatever this build has.
        monkeypatch.setattr("lmcache_cli.doctor.import_module", _as_if_built)
    with emulated() as found:
        yield found


def _as_if_built(name: str) -> Any:
    if name == "cache_core._native":
        return type("Native", (), {"CUDA": "built by CUDA 13.0 for 80-real"})
    __import__(name)
    return sys.modules[name]


def test_kernels_that_ran_are_ok(emulation: Emulation) -> None:
    check = check_cuda_kernels()
    assert (check.status, check.fix) == ("ok", None)
    assert check.found.startswith("built by CUDA")
    assert check.found.endswith("; ran on emulated GPU")
    assert emulation.counts().written > 0
    assert emulation.counts().batches > 0
    # Both GPUs were tried.
    assert [emulation.has_context(i) for i in (0, 1)] == [True, True]


def test_without_a_gpu_they_are_built_and_not_run(emulation: Emulation) -> None:
    emulation.calls.emulation_devices(0)
    check = check_cuda_kernels()
    assert check.status == "warn"
    assert check.found.endswith("; not run: the driver sees no GPU")
    assert check.fix == "run where nvidia-smi lists a GPU"


def test_each_call_that_fails_is_told(emulation: Emulation) -> None:
    found: list[Finding] = []
    for call in range(1, 500):
        emulation.reset()
        emulation.calls.emulation_devices(1)
        emulation.fail_call(call, NO_MEMORY)
        found.append(check_cuda_kernels())
        if not emulation.failed:
            break
    emulation.fail_call(0, 0)
    assert found[-1].status == "ok"
    bad = [check for check in found if check.status != "ok"]
    assert len(bad) > 20
    for check in bad:
        assert check.status == "warn"
        assert check.fix
        assert "failed on GPU" in check.found or "not run" in check.found


def test_a_kernel_that_ends_the_context_is_told(emulation: Emulation) -> None:
    emulation.fail_work(3)
    check = check_cuda_kernels()
    assert check.status == "warn"
    assert "failed on GPU 0 (emulated GPU)" in check.found
    assert check.fix


class Spoilt:
    """A transfer one of whose verbs does nothing."""

    def __init__(self, whole: Any, name: str) -> None:
        self._whole = whole
        setattr(self, name, lambda *_: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


class Spoiling:
    def __init__(self, context: Any, name: str) -> None:
        self._context, self._name = context, name

    def __enter__(self) -> Spoilt:
        return Spoilt(self._context.__enter__(), self._name)

    def __exit__(self, *error: Any) -> Any:
        return self._context.__exit__(*error)


@pytest.mark.parametrize("name", ["gather", "scatter", "gather_dma", "scatter_dma"])
def test_wrong_bytes_are_told(
    emulation: Emulation, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by = "copy engines" if name.endswith("_dma") else "kernels"
    way = CopyStreams.way

    class Ways(CopyStreams):
        def way(self, which: str) -> Any:
            return Spoiling(way(self, which), name)

    monkeypatch.setattr(gpu, "CopyStreams", Ways)
    check = check_cuda_kernels()
    assert check.status == "warn"
    wrong = f"wrong bytes on GPU 0 (emulated GPU): pinned chunks by {by}, staged chunks by {by}"
    assert wrong in check.found
    assert check.fix


PROGRAM = "import cache_core.transfer.gpu, sys; print('torch' in sys.modules)"


def test_the_trial_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60,
    )  # fmt: skip
    assert done.stdout == "False\n", done.stderr
