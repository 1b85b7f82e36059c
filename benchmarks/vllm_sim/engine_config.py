"""A configuration of vLLM that is all that a simulation needs of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.vllm_sim.layers import HEAD_DIM, KINDS, spec_of
from benchmarks.vllm_sim.runner import VOCABULARY
from benchmarks.vllm_sim.settings import Settings


def engine_config(settings: Settings, scratch: Path) -> tuple[Any, Any]:
    """vLLM's configuration with the connector, and that of the KV of the settings' kind of model.
    Tiers keep their files in ``scratch``."""
    from vllm.config.kv_events import KVEventsConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    options = dict(settings.options)
    if "disk_size" in options:
        options["disk_path"] = str(scratch / "disk")
    more: dict[str, Any] = {}
    if settings.drafts:
        more["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": settings.drafts,
            "prompt_lookup_max": 3,
            "prompt_lookup_min": 1,
        }
    if settings.kv_events:
        more["kv_events_config"] = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
    config = EngineArgs(
        model=str(model_folder(scratch)),
        dtype="float32",
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=2048,
        block_size=settings.block_tokens,
        enable_prefix_caching=settings.prefix_caching,
        max_num_batched_tokens=settings.budget,
        max_num_seqs=8,
        scheduling_policy="priority" if settings.priorities else "fcfs",
        kv_transfer_config={
            "kv_connector": "TieredKVConnector",
            "kv_connector_module_path": "cache_core.adapters.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": options,
        },
        enforce_eager=True,
        **more,
    ).create_engine_config()
    config.scheduler_config.async_scheduling = settings.asynchronous
    config.cache_config.num_gpu_blocks = settings.blocks
    layers = KINDS[settings.kind]
    if any(group.kind == "state" for group in layers):
        config.cache_config.mamba_cache_mode = "align"
    config.cache_config.block_size = settings.block_tokens * max(group.times for group in layers)
    groups = [
        KVCacheGroupSpec([f"layer {number}"], spec_of(group, settings.block_tokens))
        for number, group in enumerate(layers)
    ]
    return config, KVCacheConfig(settings.blocks, [], groups)


def model_folder(scratch: Path, positions: int = 4096) -> Path:
    """A configuration, which is all that is needed of a model that reads so many tokens."""
    folder = scratch / "model"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HEAD_DIM,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": positions,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def set_environment() -> None:
    """What vLLM reads when it is imported: call it first."""
    os.environ.update(
        {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
    )
