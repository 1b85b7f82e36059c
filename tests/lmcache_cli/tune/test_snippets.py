"""Configuration to paste: its names are those of the systems that it is for."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from typing import Any

import pytest

from cache_core.adapters.vllm.config import ConnectorOptions
from lmcache_cli.tune.candidates import GIB, TierConfiguration
from lmcache_cli.tune.report_sections import snippets
from tests.lmcache_cli.tune.test_device import cost

# lmcache/v1/config.py of LMCache/LMCache at 000620e37eb7 (2026), as far as a snippet may name it.
LMCACHE = {
    "chunk_size": int,
    "local_cpu": bool,
    "max_local_cpu_size": float,
    "local_disk": str,
    "max_local_disk_size": float,
    "remote_url": str,
    "remote_serde": str,
}
# python/sglang/srt/server_args.py of SGLang, 2026, as its own tests and pages name them.
SGLANG = {
    "--tp-size",
    "--pp-size",
    "--enable-hierarchical-cache",
    "--hicache-size",
    "--hicache-write-policy",
}
STACKS = (
    TierConfiguration((("device", GIB), ("cpu", 64 * GIB)), 64),
    TierConfiguration((("cpu", 64 * GIB), ("disk", 400 * GIB)), 64, "write_on_eviction"),
    TierConfiguration((("disk", 400 * GIB),), 32, policy="arc", admission="second-touch"),
    TierConfiguration((("cpu", 64 * GIB), ("remote", 1024 * GIB)), 256),
)


@pytest.fixture(params=[(1, 1), (4, 1), (4, 2)], ids=str)
def found(request: pytest.FixtureRequest) -> list[dict[str, str]]:
    devices, stages = request.param
    return [snippets(stack, cost(100, devices=devices, stages=stages)) for stack in STACKS]


def arguments(text: str) -> dict[str, str]:
    words = shlex.split(text)
    flags = [word for word in words if word.startswith("--")]
    return {flag: words[words.index(flag) + 1] for flag in flags if flag != words[-1]}


def test_our_options_are_ours(found: list[dict[str, str]]) -> None:
    for stack, made in zip(STACKS, found, strict=True):
        given = arguments(made["this connector in vLLM"])
        config = json.loads(given["--kv-transfer-config"])
        options = ConnectorOptions.parse(config["kv_connector_extra_config"])
        assert options.chunk_tokens == stack.chunk_tokens and options.policy == stack.policy
        assert set(options.tier_names) == set(stack.bought)


@pytest.mark.vllm
def test_vllms_options_are_vllms(found: list[dict[str, str]]) -> None:
    pytest.importorskip("vllm")
    from inspect import getsource

    from vllm.config import KVTransferConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.kv_offload.cpu import spec

    known = {field.name for field in fields(EngineArgs)}
    seen = 0
    for made in found:
        for title, text in made.items():
            if "--kv-transfer-config" not in text:
                continue
            seen += 1
            given = arguments(text)
            assert {flag[2:].replace("-", "_") for flag in given} <= known
            config: dict[str, Any] = json.loads(given["--kv-transfer-config"])
            KVTransferConfig(**config)  # refuses what it does not know
            if "native" in title:
                assert config["kv_connector"] in KVConnectorFactory._registry
                [name] = config["kv_connector_extra_config"]
                assert f'"{name}"' in getsource(spec)
    assert seen > len(STACKS)


def test_names_of_lmcache_and_sglang(found: list[dict[str, str]]) -> None:
    import yaml

    for made in found:
        for title, text in made.items():
            if title.startswith("LMCache"):
                for name, value in yaml.safe_load(text).items():
                    assert isinstance(value, LMCACHE[name]), name
            if title.startswith("SGLang"):
                assert set(re.findall(r"--\S+", text)) <= SGLANG


def test_ranks_of_a_pipeline_have_their_layers_of_it() -> None:
    made = snippets(STACKS[0], cost(100, devices=4, stages=2))
    ours = made["this connector in vLLM"]
    assert ours.startswith("--tensor-parallel-size 4 --pipeline-parallel-size 2 --kv-transfer")
    assert f'"cpu_size": {8 * GIB}' in ours
    assert "--tp-size 4 --pp-size 2 " in made["SGLang HiCache"]
    assert "max_local_cpu_size: 8.0" in made["LMCache (YAML)"]
    latent = snippets(STACKS[0], cost(100, devices=4, stages=2, latent=True))
    copies = "each of 4 ranks keeps a copy of MLA's KV, so tiers take 4 times what is predicted"
    assert list(latent) == [f"this connector in vLLM ({copies} here)", "LMCache (YAML)"]
    # each rank of a stage has what the stage's layers have of it
    assert f'"cpu_size": {32 * GIB}' in latent[f"this connector in vLLM ({copies} here)"]
    alone = snippets(STACKS[0], cost(100, latent=True))
    assert list(alone) == ["this connector in vLLM", "LMCache (YAML)"]
    assert "max_local_cpu_size: 32.0" in latent["LMCache (YAML)"]
    assert all("\n" not in text for title, text in made.items() if "YAML" not in title)


def test_a_pool_is_named_where_there_is_one() -> None:
    made = snippets(STACKS[3], cost(100))
    assert '"remote": "redis://POOL:6379"' in made["this connector in vLLM"]
    assert "remote_url: redis://POOL:6379" in made["LMCache (YAML)"]
    assert set(made) == {"this connector in vLLM", "LMCache (YAML)"}
