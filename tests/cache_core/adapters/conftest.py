"""Scenarios with real vLLM: a model to run, and a process for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_process import run_with_vllm

HERE = Path(__file__).parent

Scenario = Callable[..., Any]


@pytest.fixture(scope="session")
def vllm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama."""
    folder = tmp_path_factory.mktemp("model")
    run_with_vllm(HERE / "make_model.py", str(folder))
    return folder


@pytest.fixture(scope="session")
def scenario(vllm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Runs ``scenario_NAME.py MODEL SCRATCH ARGUMENTS`` and returns what it prints, from JSON."""
    scratch = tmp_path_factory.mktemp("scratch")

    def run(name: str, *arguments: str, timeout_s: float = 600) -> Any:
        script = HERE / f"scenario_{name}.py"
        said = run_with_vllm(script, str(vllm_model), str(scratch), *arguments, timeout_s=timeout_s)
        return json.loads(said.splitlines()[-1])

    return run
