"""A real ``vllm serve`` for tests, with a tiny model of random weights."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmcache_cli.engines.vllm_modes import platform
from lmcache_cli.engines.vllm_server import VllmServer, on_cpu, vllm_command
from tests.lmcache_cli.small_model import save_model

QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
ARGS = ["--enforce-eager", "--max-model-len", "2048", "--block-size", "32"]
BLOCK_TOKENS = 32
START_S = 300.0


@dataclass(frozen=True)
class VllmAddress:
    """Where it is, and the tokens of a block of its prefix cache."""

    url: str
    model: Path
    block_tokens: int = BLOCK_TOKENS


def need_vllm() -> None:
    """Skips the test where vLLM is not installed; fails it where LMCACHE_REQUIRE names vllm."""
    if importlib.util.find_spec("vllm") is None:
        why = "vllm is not installed (pip install vllm)"
        if "vllm" in os.environ.get("LMCACHE_REQUIRE", ""):
            pytest.fail(why)
        pytest.skip(why)


def tiny_model(folder: Path) -> Path:
    """A model that prefills fast and has KV worth reusing."""
    return save_model(
        folder,
        "llama",
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        head_dim=64,
        max_position_embeddings=4096,
    )


@contextmanager
def running_vllm(folder: Path) -> Iterator[VllmAddress]:
    """A server with its own prefix cache, until the block is left."""
    need_vllm()
    model = tiny_model(folder / "model")
    flags, environment = platform(on_cpu(), "auto")
    flags += ["--enable-prefix-caching", "--enable-prompt-tokens-details", *ARGS]
    server = VllmServer(
        [vllm_command(), "serve", str(model), *flags], environment | QUIET, folder / "vllm.log"
    )
    try:
        server.start(START_S, print)
        yield VllmAddress(server.url, model)
    finally:
        server.stop()
