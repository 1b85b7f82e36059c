"""The connector's worker on emulated GPUs, with vLLM's own messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cuda_emulation.build import build
from tests.vllm_process import need_vllm, run_with_vllm

pytestmark = pytest.mark.vllm

HERE = Path(__file__).parent


def test_loads_and_the_engine_wait_for_each_other() -> None:
    """In all orders: no step that is still queued overwrites what was loaded, and none that comes
    after reads what was there before."""
    need_vllm()
    build()  # not within the time of the run
    found = json.loads(run_with_vllm(HERE / "scenario_cuda_worker.py").splitlines()[-1])
    assert list(found) == ["between", "in step", "layerwise"]
    for kind, right in found.items():
        assert len(right) > 8, kind
        assert all(right), kind
