"""What vLLM's KV is: its layout, and everything that must be equal to share it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache_core.blend.passport import PassportError, Subject, checked_passport, rope_text
from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.weights import folder_digest


class Unsupported(ValueError):
    """A model or setting whose KV can't be kept here; the text names it."""


@dataclass(frozen=True, slots=True)
class KvShape:
    """One worker's KV. ``whole_blocks``: only whole blocks of ``block_tokens`` can be moved."""

    layer_names: tuple[str, ...]
    kv_heads: int
    head_dim: int
    dtype: str
    block_tokens: int
    whole_blocks: bool
    on_cpu: bool

    @property
    def format(self) -> str:
        """The order of a chunk's bytes, see :mod:`cache_core.adapters.vllm.blocks`."""
        if self.whole_blocks:
            return f"vllm: whole blocks of {self.block_tokens}"
        return "vllm-cpu: K[L][H][D][T] V[L][H][T][D]" if self.on_cpu else "vllm: [L][T][H][C]"

    def layout(self, chunk_tokens: int) -> KVLayout:
        """What one chunk is."""
        layers = len(self.layer_names)
        return KVLayout(layers, self.kv_heads, self.head_dim, self.dtype, chunk_tokens)


def kv_shape(config: Any, kv_cache_config: Any, chunk_tokens: int) -> KvShape:
    """Reads vLLM's configuration. Raises :class:`Unsupported` for what can't be kept: hybrid
    models, MLA, Mamba, sliding windows, quantised pages, context parallelism."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        kinds = ", ".join(sorted({type(g.kv_cache_spec).__name__ for g in groups}))
        raise Unsupported(f"hybrid models are not supported: this one keeps {kinds}")
    spec = groups[0].kv_cache_spec
    if type(spec).__name__ != "FullAttentionSpec":
        raise Unsupported(
            f"KV of the kind {type(spec).__name__} is not supported; this connector keeps full"
            " attention (FullAttentionSpec) alone"
        )
    if getattr(spec.kv_quant_mode, "name", "NONE") != "NONE":
        raise Unsupported(f"KV quantised per {spec.kv_quant_mode.name} is not supported")
    if spec.page_size_padded is not None or spec.num_head_slots not in (None, spec.num_kv_heads):
        raise Unsupported("padded KV pages are not supported")
    if spec.head_size_v not in (None, spec.head_size):
        raise Unsupported(f"V heads of {spec.head_size_v} beside K heads of {spec.head_size}")
    parallel = config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Unsupported(f"{name} > 1 is not supported: tokens are spread over ranks")
    on_cpu = config.device_config.device_type == "cpu"
    whole = on_cpu and not _plain_cpu(config, spec)
    if whole and chunk_tokens % spec.block_size:
        raise Unsupported(
            f"chunk_tokens {chunk_tokens} is no multiple of vLLM's block of {spec.block_size},"
            " and this CPU's attention keeps blocks that can only be moved whole"
        )
    return KvShape(
        tuple(groups[0].layer_names),
        spec.num_kv_heads,
        spec.head_size,
        _dtype_name(spec.dtype),
        spec.block_size,
        whole,
        on_cpu,
    )


def namespace(
    config: Any, layout: KVLayout, kv_format: str, salt: str, codec: str = "none"
) -> Namespace:
    """Everything of the engine that salts the keys, but for what a request brings."""
    model = config.model_config
    text = model.hf_text_config
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    parallel = config.parallel_config
    return Namespace(
        layout,
        model=str(model.model),
        revision=f"{model.revision or ''} {folder_digest(Path(str(model.model)))}",
        quantisation=str(model.quantization or ""),
        rope=json.dumps(rope, sort_keys=True, default=str) + str(getattr(text, "rope_theta", "")),
        tokenizer=str(model.tokenizer),
        shard=f"tp{parallel.tensor_parallel_size} pp{parallel.pipeline_parallel_size}",
        attention=kv_format,
        salt=salt,
        extra={
            "dtype": str(model.dtype),
            "cache_dtype": str(config.cache_config.cache_dtype),
            "overrides": json.dumps(_overrides(model), sort_keys=True, default=str),
            # Without a codec keys stay what they were.
            **({} if codec == "none" else {"codec": codec}),
        },
    )


def require_passport(file: str, model: Any) -> None:
    """Raises :class:`Unsupported` unless the file says that vLLM's model passed blend's gates."""
    text, name = model.hf_text_config, str(model.model)
    commit = getattr(model.hf_config, "_commit_hash", None)
    weights = folder_digest(Path(name)) or str(commit or "")
    rope = rope_text(getattr(text, "rope_parameters", None))
    subject = Subject(name, weights, _dtype_name(model.dtype), rope)
    lack = f"{name} has no blend_passport"
    if file:
        try:
            checked_passport(Path(file).expanduser(), subject)
            return
        except PassportError as error:
            lack = f"blend_passport: {error}"
    raise Unsupported(
        f"{lack}; run: lmcache verify --blend --model {name} --dtype {subject.dtype} --out FILE,"
        ' and set "blend_passport": "FILE" (or "blend_unverified": true)'
    )


class Hashers:
    """One hasher for each tenant (``cache_salt``) and adapter (LoRA)."""

    def __init__(self, base: Namespace) -> None:
        self._base = base
        self._known: dict[tuple[str, str], ChunkHasher] = {}

    def of(self, request: Any) -> ChunkHasher:
        """The hasher for one of vLLM's requests."""
        lora = request.lora_request
        # The path is part of it: vLLM may serve another adapter under a name again.
        adapter = "" if lora is None else f"{lora.lora_name}|{lora.lora_int_id}|{lora.lora_path}"
        key = (adapter, request.cache_salt or "")
        if key not in self._known:
            digest = "" if lora is None else folder_digest(Path(str(lora.lora_path)))
            extra = {**self._base.extra, "cache_salt": key[1]}
            name = f"{adapter.rpartition('|')[2]}|{digest}" if adapter else ""
            self._known[key] = ChunkHasher(replace(self._base, lora=name, extra=extra))
        return self._known[key]


def _overrides(model: Any) -> Mapping[str, Any]:
    found = getattr(model, "hf_overrides", None)
    return found if isinstance(found, Mapping) else {"set": str(bool(found))}


def _dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return "float8_e4m3fn" if name == "uint8" else name


def _plain_cpu(config: Any, spec: Any) -> bool:
    """Whether the CPU backend keeps K as [head_dim][tokens] and V as [tokens][head_dim]."""
    try:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        isa = _get_attn_isa(
            config.model_config.dtype,
            spec.block_size,
            spec.head_size,
            config.cache_config.cache_dtype,
        )
    except (ImportError, TypeError, AttributeError):
        return False
    return bool(isa == "vec")
