"""The transfer benchmark's time limit, its file and its exit codes; its rates are no test's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cache_core.transfer.cuda import CudaMissing, cuda_devices

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "transfer.py"


def seen() -> bool:
    try:
        return bool(cuda_devices())
    except CudaMissing:
        return False


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(seen(), reason="a GPU is here: then it measures")
def test_the_gpu_alone_without_one_is_something_missing() -> None:
    done = run("--gpu")
    assert done.returncode == 4
    assert done.stdout.startswith("No GPU: ")


def test_what_there_was_no_time_for_is_named_in_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "moves.json"
    done = run("--cpu", "--mib", "4", "--repeats", "1", "--limit", "0", "--json", str(file))
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    assert not document["complete"] and document["cpu"] == []
    assert document["left_out"][0] == "cpu, 1 threads, 1/1, 2048 bytes"
    assert len(set(document["left_out"])) == len(document["left_out"])
