"""What of vLLM's configuration is refused, and what salts the keys. Prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from vllm.lora.request import LoRARequest
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVQuantMode,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
)

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.identity import (
    Hashers,
    Unsupported,
    namespace,
    require_certificate,
)
from cache_core.adapters.vllm.kv_shape import GroupedShape, shape_of
from cache_core.adapters.vllm.metrics import ConnectorMetrics, ConnectorStats, observe
from cache_core.blend.certificate import BlendTerms, Certificate, certificate_name

FULL = dict(block_size=32, num_kv_heads=2, head_size=64, dtype=torch.float32)


def groups(*specs: Any, **facts: Any) -> Any:
    return SimpleNamespace(
        kv_cache_groups=[
            KVCacheGroupSpec([f"layer.{i}"], spec, **facts) for i, spec in enumerate(specs)
        ],
        kv_cache_tensors=[],
        num_blocks=8,
    )


def config(**parallel: int) -> Any:
    text = SimpleNamespace(rope_parameters={"rope_theta": 1e4, "rope_type": "default"})
    return SimpleNamespace(
        device_config=SimpleNamespace(device_type="cpu"),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=1, pipeline_parallel_size=1, **parallel
        ),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        model_config=SimpleNamespace(
            dtype=torch.float32,
            model="none",
            revision=None,
            quantization=None,
            hf_text_config=text,
            tokenizer="none",
            hf_overrides={},
        ),
    )


def taken(kv: Any, options: dict[str, Any] | None = None, **given: Any) -> str:
    """What is kept of each group, in order; or why it is refused."""
    chosen = ConnectorOptions.parse({"chunk_tokens": 48} | (options or {}))
    facts = ("drafts", "use_mla", "own_cache")
    described = config(**{name: each for name, each in given.items() if name not in facts})
    described.speculative_config = given.get("drafts")
    described.model_config.use_mla = given.get("use_mla", False)
    described.cache_config.enable_prefix_caching = given.get("own_cache", False)
    try:
        shape = shape_of(described, kv, chosen)
    except Unsupported as error:
        return str(error)
    if not isinstance(shape, GroupedShape):
        return "all, token by token"
    kept = (f"{group.keeps} {group.span or ''}".strip() for group in shape.groups)
    return f"{', '.join(kept)}; chunks of {shape.chunk_tokens}"


def kinds() -> dict[str, str]:
    """What becomes of each kind of KV."""
    full = FullAttentionSpec(**FULL)
    window = SlidingWindowSpec(**FULL, sliding_window=64)
    state: dict[str, Any] = {"block_size": 64, "shapes": ((4,),), "dtypes": (torch.float32,)}
    aligned = MambaSpec(**state, mamba_cache_mode="align")
    quantised = FullAttentionSpec(**FULL, kv_quant_mode=KVQuantMode.FP8_PER_TOKEN_HEAD)
    latent = {**FULL, "num_kv_heads": 1}
    replayed = SlidingWindowMLASpec(**latent, sliding_window=64, bounded_replay=True)
    return {
        "full": taken(groups(full)),
        "hybrid": taken(groups(full, window)),
        "window": taken(groups(window)),
        "local": taken(groups(full, ChunkedLocalAttentionSpec(**FULL, attention_chunk_size=96))),
        "mla": taken(groups(MLAAttentionSpec(**latent))),
        "mla window": taken(groups(SlidingWindowMLASpec(**latent, sliding_window=64))),
        "quantised": taken(groups(quantised)),
        "padded": taken(groups(FullAttentionSpec(**FULL, page_size_padded=1 << 16))),
        "mamba": taken(groups(full, aligned)),
        "mamba, not aligned": taken(groups(full, MambaSpec(**state))),
        "mamba, drafts": taken(groups(full, aligned), drafts=object()),
        "cross": taken(groups(CrossAttentionSpec(**FULL))),
        "replayed": taken(groups(MLAAttentionSpec(**latent), replayed)),
        "not causal": taken(groups(FullAttentionSpec(**FULL, non_causal=True))),
        "on the host": taken(groups(full, window, host_resident=True)),
        "mla, cpu": taken(groups(MLAAttentionSpec(**latent)), use_mla=True),
        "mla, amx": taken(groups(MLAAttentionSpec(**latent)), use_mla=True, own_cache=True),
        "context": taken(groups(full), decode_context_parallel_size=2),
        "layerwise": taken(groups(full, window), {"layerwise": True}),
        "codec": taken(groups(full, window), {"codec": "int8"}),
        "sync": taken(groups(full, window), {"load": "sync"}),
        "blend": taken(groups(full, window), {"blend": True}),
    }


def request(salt: str | None = None, lora: Path | None = None) -> Any:
    adapter = None
    if lora is not None:
        lora.mkdir()
        (lora / "adapter_model.bin").write_text(lora.name)
        adapter = LoRARequest(lora.name, len(lora.name), str(lora))
    return SimpleNamespace(cache_salt=salt, lora_request=adapter)


def exposed() -> str:
    """What Prometheus is shown after two intervals."""
    registry = CollectorRegistry()
    kinds: Any = {kind: partial(kind, registry=registry) for kind in (Counter, Gauge, Histogram)}
    vllm = SimpleNamespace(kv_transfer_config=None)
    metrics = ConnectorMetrics(vllm, kinds, ["engine"], {0: ["0"]})
    stats = ConnectorStats(data={"hit_tokens:cpu": 64.0, "prefill_seconds_saved": 1.5})
    metrics.observe(stats.aggregate(ConnectorStats(data={"hit_tokens:cpu": 6.0})).data)
    metrics.observe({"hit_tokens:cpu": 30.0, "read_bytes:disk": 5.0})
    metrics.observe({"uncached_requests:adapter_unknown": 2.0})
    metrics.observe(histories()["together"])
    return str(generate_latest(registry).decode())


def histories() -> dict[str, Any]:
    """Two ranks and the scheduler over two steps, as vLLM puts their figures together."""

    def step(*parts: dict[str, float]) -> ConnectorStats:
        first, *more = (ConnectorStats(data=dict(part)) for part in parts)
        for other in more:
            first = first.aggregate(other)
        return first

    ranks: list[dict[str, float]] = [{}, {}]
    for rank, seconds in enumerate(([0.02, 0.02, 0.1, 0.1, 0.1], [0.02, 99.0])):
        for each in seconds:
            observe(ranks[rank], "load_seconds:disk", each)
    scheduler: dict[str, float] = {"held_chunks:disk": 7.0, "pinned_chunks": 3.0}
    observe(scheduler, "lookup_seconds", 1e-5)
    one = step(*ranks, scheduler)
    two = step({}, {"held_chunks:disk": 4.0, "evictions:disk": 2.0})
    many: dict[str, float] = {}
    for number in range(100_000):
        observe(many, "load_seconds:disk", 10 ** (number / 12_500 - 6))
    both = step(one.data, two.data)
    return {"together": both.data, "log": both.reduce(), "carried": len(many)}


def certificates(model: Path, scratch: Path) -> dict[str, str]:
    """What becomes of vLLM's own configuration under a certificate that transformers' gave."""
    from transformers import AutoConfig, LlamaConfig
    from vllm.engine.arg_utils import EngineArgs

    from lmcache_cli.engines.transformers.models import blend_subject

    found: dict[str, str] = {}

    def take(name: str, folder: Path, file: str, dtype: str = "float32") -> None:
        config = EngineArgs(model=str(folder), dtype=dtype, max_model_len=64).create_model_config()
        try:
            require_certificate(file, config, 0.14)
            found[name] = "taken"
        except Unsupported as error:
            found[name] = str(error)

    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    for kind in ({}, yarn, llama3):
        name = str(kind.get("rope_type", "default"))
        folder, file = scratch / f"model {name}", scratch / f"{name}.json"
        LlamaConfig(
            architectures=["LlamaForCausalLM"],
            num_hidden_layers=2,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5, **kind},
        ).save_pretrained(folder)
        subject = blend_subject("m", str(folder), AutoConfig.from_pretrained(folder), "float32")
        # Without weights the name would have to be the same.
        Certificate(replace(subject, model=str(folder)), BlendTerms(0.14), (), (), {}).write(file)
        take(name, folder, str(file))
    take("dtype", scratch / "model yarn", str(scratch / "yarn.json"), "bfloat16")
    take("rope", scratch / "model yarn", str(scratch / "llama3.json"))
    subject = blend_subject("m", str(model), AutoConfig.from_pretrained(model), "float32")
    Certificate(subject, BlendTerms(0.14), (), (), {}).write(scratch / "weights.json")
    take("weights", model, str(scratch / "weights.json"))
    Certificate(subject, BlendTerms(0.14), ("a gate",), (), {}).write(scratch / "failed.json")
    take("failed", model, str(scratch / "failed.json"))
    os.environ["HOME"] = str(scratch)
    take("none", model, "")
    terms = BlendTerms(0.14)
    place = scratch / ".cache" / "lmcache-bench" / "blend" / certificate_name(subject, terms)
    Certificate(subject, terms, (), (), {}).write(place)
    take("its own place", model, "")
    return found


def main() -> None:
    model, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    shape = shape_of(config(), groups(FullAttentionSpec(**FULL)), ConnectorOptions())
    layout = shape.layout(64)
    base = namespace(config(), layout, "format", "salt")
    hashers = Hashers(base)
    asked = [request(), request("a"), request("b")]
    asked += [request(None, scratch / "one"), request(None, scratch / "three")]
    tokens = list(range(64))
    keys = [hashers.of(one).keys(tokens).prefix[0].hex() for one in (*asked, *asked)]
    other = Hashers(replace(base, attention="another")).of(request()).keys(tokens).prefix[0].hex()
    print(
        json.dumps(
            {
                "kinds": kinds(),
                "keys": [*keys, other],
                "metrics": exposed(),
                "histories": histories(),
                "certificates": certificates(model, scratch),
            }
        )
    )


if __name__ == "__main__":
    main()
