"""What of vLLM's configuration is refused, and what salts the keys. Prints one JSON object."""

from __future__ import annotations

import json
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
    FullAttentionSpec,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from cache_core.adapters.vllm.identity import (
    Hashers,
    Unsupported,
    kv_shape,
    namespace,
    require_certificate,
)
from cache_core.adapters.vllm.metrics import ConnectorMetrics, ConnectorStats, observe
from cache_core.blend.certificate import Certificate

FULL = dict(block_size=32, num_kv_heads=2, head_size=64, dtype=torch.float32)


def groups(*specs: Any) -> Any:
    return SimpleNamespace(
        kv_cache_groups=[KVCacheGroupSpec([f"layer.{i}"], spec) for i, spec in enumerate(specs)]
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


def refusal(kv: Any, **parallel: int) -> str:
    try:
        kv_shape(config(**parallel), kv, 64)
    except Unsupported as error:
        return str(error)
    return "taken"


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
            require_certificate(file, config)
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
        Certificate(replace(subject, model=str(folder)), (), {}, {}).write(file)
        take(name, folder, str(file))
    take("dtype", scratch / "model yarn", str(scratch / "yarn.json"), "bfloat16")
    take("rope", scratch / "model yarn", str(scratch / "llama3.json"))
    subject = blend_subject("m", str(model), AutoConfig.from_pretrained(model), "float32")
    Certificate(subject, (), {}, {}).write(scratch / "weights.json")
    take("weights", model, str(scratch / "weights.json"))
    Certificate(subject, ("a gate",), {}, {}).write(scratch / "failed.json")
    take("failed", model, str(scratch / "failed.json"))
    take("none", model, "")
    return found


def main() -> None:
    model, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    full = FullAttentionSpec(**FULL)
    layout = kv_shape(config(), groups(full), 64).layout(64)
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
                "full": refusal(groups(full)),
                "hybrid": refusal(groups(full, SlidingWindowSpec(**FULL, sliding_window=64))),
                "window": refusal(groups(SlidingWindowSpec(**FULL, sliding_window=64))),
                "mla": refusal(groups(MLAAttentionSpec(**FULL))),
                "mamba": refusal(
                    groups(MambaSpec(block_size=32, shapes=((1,),), dtypes=(torch.float32,)))
                ),
                "context": refusal(groups(full), decode_context_parallel_size=2),
                "keys": [*keys, other],
                "metrics": exposed(),
                "histories": histories(),
                "certificates": certificates(model, scratch),
            }
        )
    )


if __name__ == "__main__":
    main()
