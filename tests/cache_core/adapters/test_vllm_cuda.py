"""The connector's worker on emulated GPUs, with vLLM's own messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_emulation.build import build

pytestmark = pytest.mark.vllm

HERE = Path(__file__).parent


def test_loads_and_the_engine_wait_for_each_other(vllm_needed: None) -> None:
    """In all orders: no step that is still queued overwrites what was loaded, and none that comes
    after reads what was there before."""
    build()  # not within the time of the run
    done = subprocess.run(
        [sys.executable, str(HERE / "scenario_cuda_worker.py")],
        capture_output=True, text=True, timeout=300, cwd=HERE.parents[2],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == ["between", "in step", "layerwise"]
    for kind, right in found.items():
        assert len(right) > 8, kind
        assert all(right), kind
