"""Families of models whose layers keep different things, in real vLLM: the connector changes no
token, and loads no more than is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cache_core.adapters.conftest import HERE
from tests.vllm_process import ROOT, need_vllm, run_with_vllm

pytestmark = pytest.mark.vllm

MAKE = ROOT / "benchmarks/models/random_model.py"
# Blocks for two or three requests of eight: vLLM has to wait, evict and preempt.
CRAMPED = {"max_num_batched_tokens": 256, "max_model_len": 1100, "max_num_seqs": 8}
FAMILIES: dict[str, tuple[int, str, list[list[Any]]]] = {
    "mistral-sliding": (60, "4MiB", [["window", 512, 4, 32]]),
    "gpt-oss": (100, "4MiB", [["window", 128, 2, 32], ["all", None, 2, 32]]),
    "gemma3": (225, "6MiB", [["window", 512, 1, 32]] * 5 + [["all", None, 1, 32]]),
}
"""vLLM's blocks, the cpu tier, and the groups of layers that are to be found, by family."""
LONG, CHUNK, WINDOW = 4001, 32, 128
Family = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Runs ``scenario_families.py`` with a model of the family."""
    need_vllm()
    models = tmp_path_factory.mktemp("models")

    def run(
        kind: str,
        settings: dict[str, Any],
        cpu_size: str,
        disk: Mapping[str, str] | None = None,
        **more: int,
    ) -> dict[str, Any]:
        folder = models / kind
        if not folder.exists():
            command = [sys.executable, str(MAKE), kind, str(folder)]
            subprocess.run(command, check=True, capture_output=True)
        options = {"chunk_tokens": CHUNK, "cpu_size": cpu_size, "weights": "fixed"}
        options |= disk or {}
        given = {"settings": settings, "options": options, **more}
        script = HERE / "scenario_families.py"
        said = run_with_vllm(script, str(folder), json.dumps(given), timeout_s=1200)
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found

    return run


@pytest.mark.parametrize("kind", FAMILIES)
def test_tokens_are_those_of_vllm_alone(family: Family, kind: str) -> None:
    blocks, cpu_size, groups = FAMILIES[kind]
    settings = CRAMPED | {"num_gpu_blocks_override": blocks}
    found = family(kind, settings, cpu_size, requests=40, alone=4, long=0)
    assert sorted(map(str, found["groups"])) == sorted(map(str, groups))
    assert found["failed"] == []
    assert found["different"] == [] and found["compared"] == 40
    assert found["different alone"] == []
    assert found["counts"]["hit_tokens:cpu"] > 2000
    assert found["preempted"] > 0


@pytest.mark.parametrize("kind", ["gemma4", "llama4", "qwen3-moe", "glm4-moe"])
def test_tokens_of_other_families_are_the_same(family: Family, kind: str) -> None:
    """Layers with longer heads, spans of local attention, experts."""
    settings = CRAMPED | {"num_gpu_blocks_override": 200}
    found = family(kind, settings, "16MiB", requests=12, alone=4, long=0)
    assert found["different"] == found["different alone"] == found["failed"] == []
    assert found["counts"]["hit_tokens:cpu"] > 0


def test_recurrent_states_are_loaded(family: Family) -> None:
    """vLLM's own prefix cache, which states need, is emptied before requests are asked alone."""
    settings = CRAMPED | {"num_gpu_blocks_override": 200, "dtype": "bfloat16"}
    settings |= {"enable_prefix_caching": True, "mamba_cache_mode": "align"}
    found = family("qwen3-next", settings, "64MiB", requests=24, alone=24, long=0)
    assert [group[0] for group in found["groups"]] == ["state"] * 3 + ["all"]
    assert found["different alone"] == found["failed"] == []
    assert found["hit alone"] > 2000


@pytest.mark.parametrize("kind", [*FAMILIES, "llama"])
def test_a_hundred_mixed_requests(family: Family, kind: str, tmp_path: Path) -> None:
    """With a disk below DRAM for a few requests: what waits is moved up meanwhile."""
    blocks, cpu_size, _ = FAMILIES.get(kind, (60, "2MiB", []))
    settings = CRAMPED | {"num_gpu_blocks_override": blocks}
    disk = {"disk_size": "256MiB", "disk_path": str(tmp_path)}
    found = family(kind, settings, cpu_size, disk, requests=100, alone=4, long=0)
    assert found["failed"] == []
    assert found["different"] == [] and found["compared"] == 100
    assert found["different alone"] == []
    counts = found["counts"]
    assert counts["hit_tokens:cpu"] > 2000 and counts["hit_tokens:disk"] > 0
    assert counts["prefetch_used_chunks"] > 0
    assert found["preempted"] > 0


def test_a_draft_models_own_layers_are_kept_too(family: Family) -> None:
    settings = CRAMPED | {"num_gpu_blocks_override": 120}
    found = family("llama", settings, "64MiB", requests=12, alone=2, long=0, draft=2)
    assert found["layers"] == 2 * 4
    assert found["different"] == found["different alone"] == found["failed"] == []
    assert found["counts"]["hit_tokens:cpu"] > 500


def test_a_hit_of_mla_is_what_a_hit_of_vllms_own_is(tmp_path: Path) -> None:
    """Where vLLM would not hit itself, as what it computes behind a hit is not what it computes
    without one: MLA on a CPU, which is refused there."""
    need_vllm()
    folder = tmp_path / "model"
    command = [sys.executable, str(MAKE), "deepseek", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    said = run_with_vllm(HERE / "scenario_mla.py", str(folder), timeout_s=1200)
    found = json.loads(said.splitlines()[-1])
    assert found["hit"] == 64 + 96 + 112 + 192 + 288
    assert found["blocks"] > 0 and found["other bytes"] == 0
    assert found["cold alike"] and found["hits alike"]


def test_a_long_hit_loads_full_layers_and_one_window(family: Family) -> None:
    """4,000 tokens of a gpt-oss: 125 chunks of the layers that keep all, 4 of those that don't."""
    settings = {"max_num_batched_tokens": 1024, "max_model_len": 4200}
    settings["num_gpu_blocks_override"] = 400
    found = family("gpt-oss", settings, "64MiB", requests=1, alone=0, long=LONG)
    sizes = dict(zip((g[0] for g in found["groups"]), found["chunk bytes"], strict=True))
    window = -(-(WINDOW - 1) // CHUNK)
    assert found["loaded"] == LONG // CHUNK * sizes["all"] + window * sizes["window"]
    assert found["waste"] == 1.0, "a slab holds no more than a chunk"
