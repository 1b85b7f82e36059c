"""Models and accelerators by name, from ``catalogue.toml``, and models by their ``config.json``:
what decides the bytes of KV and the work of prefill, and what makers say of their devices."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

from lmcache_cli.errors import UserError

TERA, GIGA = 10**12, 10**9


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's architecture. ``active`` parameters are those that one token passes. ``qk_dim`` and
    ``v_dim`` are a query head's. ``latent`` is MLA's compressed width with its RoPE part (0: GQA,
    whose KV is ``kv_heads`` of ``head_dim``). ``source`` is the model's config.json on its maker's
    page."""

    name: str
    parameters: float
    active: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    source: str
    latent: int = 0
    qk_dim: int = 0
    v_dim: int = 0

    def kv_bytes(self, item_bytes: int = 2, tensor_parallel: int = 1) -> int:
        """Returns the bytes of KV of one token on the devices of all ranks: GQA ``2 L h d b`` times
        max(1, TP / h), since ranks beyond the heads hold copies; MLA ``L (c + r) b`` on every
        rank."""
        if self.latent:
            return self.stored_bytes(item_bytes) * tensor_parallel
        copies = max(1.0, tensor_parallel / self.kv_heads)
        return round(2 * self.layers * self.kv_heads * self.head_dim * item_bytes * copies)

    def stored_bytes(self, item_bytes: int = 2, tensor_parallel: int = 1) -> int:
        """Returns the bytes of KV of one token in tiers below the device: MLA's once, since all
        ranks have the same."""
        if self.latent:
            return self.layers * self.latent * item_bytes
        return self.kv_bytes(item_bytes, tensor_parallel)

    def token_flops(self) -> float:
        """Returns the work of one token apart from attention: two operations per active parameter
        (Kaplan et al. 2020, section 2.1)."""
        return 2 * self.active

    def pair_flops(self) -> float:
        """Returns attention's work per pair of tokens: a product of Q and K and one with V."""
        qk, v = self.qk_dim or self.head_dim, self.v_dim or self.head_dim
        return 2.0 * self.layers * self.heads * (qk + v)


def _short(page: str) -> str:
    """Returns the last part of a page's name, without the format and version of its files."""
    name = page.rpartition("/")[2].lower()
    return re.sub(r"-(hf|v0\.\d|base-\d+)$", "", name)


def _architecture(
    page: str, billions: float, active: float | None = None, **sizes: int
) -> Architecture:
    source = f"config.json of {page} on Hugging Face"
    parameters = billions * GIGA
    used = parameters if active is None else active * GIGA
    return Architecture(_short(page), parameters, used, source=source, **sizes)


def find_architecture(name: str) -> Architecture:
    """Returns the catalogue's model of that name, or what the ``config.json`` says that ``name``
    is, or that is in that folder, or of that Hugging Face id on this machine. Raises ``UserError``
    listing what is known, or naming the field of a configuration that it can't do without."""
    path = _config_path(name)
    if path is None:
        short = _short(name)
        found = ARCHITECTURES.get(short) or ARCHITECTURES.get(_TUNED.sub("", short))
        if found is not None:
            return found
        path, called = _cached_config(name), _short(name)
    else:
        called = path.parent.name if path.name == "config.json" else path.stem
    if path is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"--model: {name!r} is not in the catalogue, and no folder or id with a config.json"
            f" here; use one of {known}"
        )
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large for a configuration")
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--model: {path} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"--model: {path} is no model's configuration")
    return architecture_of(config, called)


def _config_path(name: str) -> Path | None:
    """Returns the configuration that ``name`` is, or that is in this folder; None if it is no such
    path."""
    try:
        path = Path(name).expanduser().resolve()
        if path.is_dir():
            path = path / "config.json"
        return path if path.is_file() else None
    except (OSError, RuntimeError):  # a name that no file can have, a home that is not there
        return None


def _cached_config(name: str) -> Path | None:
    """Returns the configuration of a Hugging Face id that is in the cache of this machine."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def architecture_of(config: Mapping[str, Any], called: str) -> Architecture:
    """Returns the architecture that a model's ``config.json`` describes: attention of full width,
    grouped or latent (MLA), over dense layers or experts. Parameters are counted without norms and
    biases. Windows count as full attention. Raises ``UserError`` naming the field that is missing,
    or that says that the model keeps something else than KV."""
    text = config.get("text_config") or config

    def field(*names: str) -> int:
        for name in names:
            if isinstance(text.get(name), int):
                return int(text[name])
        raise UserError(f"--model: the configuration of {called} has no {' or '.join(names)}")

    def optional(name: str, otherwise: int = 0) -> int:
        return otherwise if text.get(name) is None else field(name)

    _refuse_unknown(config, text, called)
    width, layers = field("hidden_size"), field("num_hidden_layers")
    heads = field("num_attention_heads")
    latent = qk = v = 0
    if text.get("kv_lora_rank"):
        rank, rotary = field("kv_lora_rank"), field("qk_rope_head_dim")
        qk, v, latent = field("qk_nope_head_dim") + rotary, field("v_head_dim"), rank + rotary
        down = optional("q_lora_rank")
        queries = down * (width + heads * qk) if down else width * heads * qk
        kv_heads, dim = 1, latent
        attention = queries + width * latent + rank * heads * (qk - rotary + v) + heads * v * width
    else:
        kv_heads, dim = optional("num_key_value_heads", heads), optional("head_dim", width // heads)
        attention = 2 * width * dim * (heads + kv_heads)
    experts = next((field(name) for name in _EXPERTS if text.get(name)), 0)
    dense = 3 * width * field("intermediate_size", "moe_intermediate_size")
    sparse, used, sparse_layers = 0, 0, 0
    if experts:
        one = 3 * width * field("moe_intermediate_size", "intermediate_size")
        own = 3 * width * optional("shared_expert_intermediate_size")
        own += one * optional("n_shared_experts") + width * experts
        sparse, used = experts * one + own, field(*_CHOSEN) * one + own
        sparse_layers = layers - optional("first_k_dense_replace")
    # Left out where it is what the family has: Gemma ties.
    ties = str(text.get("model_type", "")).startswith("gemma")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", ties))
    rest = field("vocab_size") * width * (1 if tied else 2) + layers * attention
    rest += (layers - sparse_layers) * dense
    source = f"config.json of {called}"
    if text.get("sliding_window") and text.get("use_sliding_window", True):
        source += f" (its window of {text['sliding_window']} tokens counts as full attention)"
    sizes = {"latent": latent, "qk_dim": qk, "v_dim": v}
    total, active = (float(rest + sparse_layers * each) for each in (sparse, used))
    return Architecture(called, total, active, layers, heads, kv_heads, dim, source, **sizes)


def _refuse_unknown(config: Mapping[str, Any], text: Mapping[str, Any], called: str) -> None:
    """Raises ``UserError`` for a configuration whose KV or parameters would be counted wrong."""
    kinds = {kind for name in ("layer_types", "block_types") for kind in text.get(name) or ()}
    kinds -= {"full_attention", "sliding_attention", "chunked_attention"}
    odd = [f"layers of {kind}" for kind in sorted(map(str, kinds))]
    odd += [name for name in _STATES if text.get(name) is not None]
    odd += [name for name in _UNCOUNTED if text.get(name)]
    odd += ["decoder_sparse_step"] if text.get("decoder_sparse_step", 1) != 1 else []
    family = str(text.get("model_type") or config.get("model_type") or "")
    odd += [f"model_type {family}"] if family in _OTHER_SHAPES else []
    known = {*_EXPERTS, *_CHOSEN}
    counts = (name for name in text if "num_experts" in name or "n_experts" in name)
    odd += [name for name in counts if name not in known and text[name]]
    if odd:
        raise UserError(
            f"--model: {called} has {', '.join(odd)}, which can't be sized yet; measure it with"
            " lmcache probe, or name a model of the catalogue that is like it"
        )


_MOST_BYTES = 16 << 20
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts")
_CHOSEN = ("num_experts_per_tok", "experts_per_token")
_STATES = (
    *("linear_num_key_heads", "mamba_d_state", "ssm_state_size", "state_size", "conv_L_cache"),
    *("lru_width", "attn_type_list"),
)
"""Fields of models that keep states beside KV."""
_UNCOUNTED = (
    *("mlp_only_layers", "interleave_moe_layer_step", "moe_layers", "moe_layer_interval"),
    *("num_kv_shared_layers", "global_head_dim", "index_head_dim", "moe_k"),
)
"""Fields that say which layers have experts, or that layers keep more or less than others do."""
_OTHER_SHAPES = (
    *("starcoder2", "phi", "gpt_neox", "gpt2", "gptj", "opt", "bloom", "falcon", "mpt", "arcee"),
    *("apertus", "nemotron", "llama4", "llama4_text"),
)
"""Families whose dense layers are not gated, or whose configuration leaves experts out."""
_TUNED = re.compile(r"-(instruct|chat|it|base)$")


@dataclass(frozen=True, slots=True)
class Hardware:
    """An accelerator. ``flops`` are bfloat16 operations per second, ``fp8_flops`` those of 8 bits
    (0: it has none), ``memory_bytes_s`` and ``link_bytes_s`` bytes per second of its memory and of
    one direction of its link to the host. ``source`` is the maker's data sheet; ``price`` is
    dollars an hour on demand (0: not known), as ``price_source`` had it."""

    name: str
    flops: float
    memory_bytes_s: float
    memory_bytes: int
    link_bytes_s: float
    source: str
    fp8_flops: float = 0.0
    price: float = 0.0
    price_source: str = ""


def _hardware(
    name: str,
    tflops: float,
    memory_gb_s: float,
    memory_gib: float,
    link_gb_s: float,
    source: str,
    fp8_tflops: float = 0.0,
    price: float = 0.0,
    price_source: str = "",
) -> Hardware:
    memory = int(memory_gib * 2**30)
    rates = tflops * TERA, memory_gb_s * GIGA, memory, link_gb_s * GIGA
    return Hardware(name, *rates, source, fp8_tflops * TERA, price, price_source)


_FOUND = tomllib.loads(files("lmcache_cli.tune").joinpath("catalogue.toml").read_text("utf-8"))
ARCHITECTURES = {found.name: found for found in (_architecture(**row) for row in _FOUND["model"])}
HARDWARE = {found.name: found for found in (_hardware(**row) for row in _FOUND["hardware"])}


_FORMS = ("sxm", "sxm5", "hgx", "nvl")
_NICKNAMES = {
    "a100": "a100-80g",
    "a100-40gb": "a100-40g",
    "a100-80gb": "a100-80g",
    "5090": "rtx-5090",
    "rtx5090": "rtx-5090",
    "rtx-pro-6000-blackwell": "rtx-pro-6000",
    **{f"{name}-{form}": name for name in ("h100", "h200", "b200", "b300") for form in _FORMS},
}
_ROW = {"tflops", "memory_gb_s", "memory_gib", "link_gb_s", "fp8_tflops", "price"}


def find_hardware(name: str) -> Hardware:
    """Returns the accelerator of that name, or that a TOML file describes: ``tflops``,
    ``memory_gb_s``, ``memory_gib``, ``link_gb_s``, and if it likes ``fp8_tflops`` and ``price``.
    Raises ``UserError`` listing what is known, or naming what the file lacks."""
    if name.lower().endswith(".toml"):
        return _own_hardware(Path(name).expanduser())
    short = re.sub(r"[\s_]+", "-", name.lower().removeprefix("nvidia ").removeprefix("amd "))
    found = HARDWARE.get(_NICKNAMES.get(short, short))
    if found is None:
        known = ", ".join(HARDWARE)
        raise UserError(
            f"--hardware: {name!r} is not known; use one of {known}, or a TOML file of your card"
        )
    return found


def _own_hardware(path: Path) -> Hardware:
    try:
        row = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--hardware: {path} can't be read: {error}") from error
    numbers = {key: row.get(key, 0.0) for key in sorted(_ROW)}
    for key, value in numbers.items():
        fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < inf
        if not fine or (not value and key not in ("fp8_tflops", "price")):
            raise UserError(
                f"--hardware: {path} needs {key}, a number above 0, as in {key} = 100.0"
            )
    if odd := row.keys() - _ROW - {"name", "source"}:
        raise UserError(
            f"--hardware: {path} has {', '.join(sorted(odd))}; what it may have is"
            f" {', '.join(sorted(_ROW))}"
        )
    source = str(row.get("source", f"as {path.name} has it"))
    return _hardware(str(row.get("name", path.stem)), source=source, **numbers)
