"""What a model's ``config.json`` says of what its layers keep and of the work of a token."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cache_core.layout import Keeps
from lmcache_cli.engines.architecture import Architecture, LayerKind
from lmcache_cli.errors import UserError


def architecture_of(config: Mapping[str, Any], called: str) -> Architecture:
    """Returns the architecture that a model's ``config.json`` describes: attention of full width,
    with windows or local, grouped or latent (MLA), beside recurrent layers (gated delta nets,
    Mamba and Mamba 2), over dense layers or experts. Parameters are counted without norms and
    biases. Raises ``UserError`` naming the field that is missing, or that is not known."""
    return _Reader(config, called).architecture()


_FULL, _SLIDING, _LOCAL, _STATE, _DENSE, _SPARSE = "full", "sliding", "local", "state", "mlp", "moe"
_KINDS = {
    **dict.fromkeys(("full_attention", "attention", "indexed_attention", "*"), _FULL),
    "sliding_attention": _SLIDING,
    "chunked_attention": _LOCAL,
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "M"), _STATE),
    "mlp": _DENSE,
    "-": _DENSE,
    "moe": _SPARSE,
    "E": _SPARSE,
}
"""What a layer is, by what configurations call it."""
_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window_pattern": 2, "tie_word_embeddings": True},
    "gemma3_text": {"sliding_window_pattern": 6, "tie_word_embeddings": True},
    "gemma3": {"sliding_window_pattern": 6, "tie_word_embeddings": True},
    "gemma4_text": {
        "sliding_window_pattern": 6,
        "global_head_dim": 512,
        "tie_word_embeddings": True,
    },
    "gemma4": {"sliding_window_pattern": 6, "tie_word_embeddings": True},
    "qwen3_next": {"full_attention_interval": 4, "attn_output_gate": True},
    "qwen3_5_text": {"full_attention_interval": 4, "attn_output_gate": True},
    "qwen3_5_moe_text": {"full_attention_interval": 4, "attn_output_gate": True},
    "llama4_text": {"no_rope_layer_interval": 4, "attention_chunk_size": 8192},
    "nemotron_h": {"gated": False},
}
"""What a family has where its configuration leaves it out."""
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts")
_CHOSEN = ("num_experts_per_tok", "experts_per_token", "top_k_experts")
_KNOWN = frozenset(
    (
        *_EXPERTS, *_CHOSEN, "n_shared_experts", "shared_expert_intermediate_size",
        "expert_layer_period", "expert_layer_offset",
        "mamba_d_state", "mamba_d_conv", "mamba_d_head", "mamba_n_heads", "mamba_n_groups",
        "mamba_expand", "mamba_dt_rank", "mamba_num_heads", "mamba_head_dim", "ssm_state_size",
        "mamba_ssm_cache_dtype", "mamba_ssm_dtype", "linear_conv_kernel_dim", "conv_kernel",
        "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads",
        "linear_num_value_heads", "moe_latent_size", "index_head_dim", "index_n_heads",
        "index_topk", "num_kv_shared_layers", "moe_shared_expert_intermediate_size",
        # Of no weight for bytes or work.
        "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "mamba_hidden_act",
        "use_mamba_kernels", "use_mambapy", "use_conv_bias", "indexer_types",
        "indexer_rope_interleave", "mamba_inner_layernorms", "moe_shared_expert_overlap",
    )
)  # fmt: skip
"""Fields that look as if layers kept something, or had experts, and that are counted."""
_TELLING = re.compile(
    r"mamba|ssm|linear_(num|key|value|conv|attn)|conv_(l_|kernel|dim)|lru|rwkv|recurren|compress|"
    r"latent_size|^index|indexer|kv_shared|cross_attention_(layers|freq)|experts?(_|$)|moe_k$|"
    r"attn_type_list|state_size|moe_layer_interval|ngram|delta"
)
_QUIET = re.compile(r"router|bias|loss|coef|jitter|implementation|capacity|parallel|dtype|group")
_OTHER_SHAPES = (
    *("starcoder2", "phi", "gpt_neox", "gpt2", "gptj", "opt", "bloom", "falcon", "mpt", "arcee"),
    *("apertus", "nemotron"),
)
"""Families whose dense layers are not gated."""


class _Reader:
    """Reads one configuration."""

    def __init__(self, config: Mapping[str, Any], called: str) -> None:
        text = config.get("text_config") or config
        self.family = str(text.get("model_type") or config.get("model_type") or "")
        given = {name: value for name, value in text.items() if value is not None}
        if "tie_word_embeddings" in config:
            given["tie_word_embeddings"] = config["tie_word_embeddings"]
        self.text: dict[str, Any] = _FAMILIES.get(self.family, {}) | given
        self.called = called

    def field(self, *names: str) -> int:
        for name in names:
            if isinstance(self.text.get(name), int):
                return int(self.text[name])
        raise UserError(f"--model: the configuration of {self.called} has no {' or '.join(names)}")

    def optional(self, name: str, otherwise: int = 0) -> int:
        return self.field(name) if name in self.text else otherwise

    def architecture(self) -> Architecture:
        self._refuse_unknown()
        self.width, self.heads = self.field("hidden_size"), self.field("num_attention_heads")
        layers = self._layers()
        per_layer = self.optional("hidden_size_per_layer_input")
        rest = (
            self.field("vocab_size")
            * self.width
            * (1 if self.text.get("tie_word_embeddings") else 2)
        )
        aside = 0  # looked up, not multiplied
        if per_layer:
            aside = self.optional("vocab_size_per_layer_input") * len(layers) * per_layer
            rest += len(layers) * per_layer * 3 * self.width
        total, active = rest + aside, rest
        kinds: Counter[LayerKind] = Counter()
        for number, layer in enumerate(layers):
            weights, kind = self._mixer(layer, number, len(layers))
            whole, used = self._mlp(layer, number, len(layers))
            total, active = total + weights + whole, active + weights + used
            if kind is not None:
                kinds[kind] += 1
        counted = tuple(replace(kind, layers=count) for kind, count in kinds.items())
        sizes = self._widths()
        source = f"config.json of {self.called}"
        odd = any(kind.keeps != "all" or kind.extra_bytes for kind in counted)
        uneven = odd or sum(kind.layers for kind in counted) != len(layers) or len(counted) > 1
        return Architecture(
            self.called,
            float(total),
            float(active),
            len(layers),
            self.heads,
            source=source,
            kinds=counted if uneven else (),
            **sizes,
        )

    def _widths(self) -> dict[str, int]:
        if "kv_lora_rank" in self.text:
            rotary = self.field("qk_rope_head_dim")
            latent = self.field("kv_lora_rank") + rotary
            qk, v = self.field("qk_nope_head_dim") + rotary, self.field("v_head_dim")
            return {"kv_heads": 1, "head_dim": latent, "latent": latent, "qk_dim": qk, "v_dim": v}
        return {"kv_heads": self._kv_heads(), "head_dim": self._head_dim()}

    def _kv_heads(self) -> int:
        return self.optional("num_key_value_heads", self.heads)

    def _head_dim(self) -> int:
        return self.optional("head_dim", self.width // self.heads)

    def _layers(self) -> list[str]:
        """Returns what each layer is."""
        text = self.text
        pattern = text.get("hybrid_override_pattern")
        if pattern is None:
            named = (text.get(n) for n in ("layers_block_type", "layer_types", "block_types"))
            pattern = next((found for found in named if found), None)
        if pattern is not None:
            odd = sorted({str(kind) for kind in pattern if kind not in _KINDS})
            if odd:
                self._refuse([f"layers of {kind}" for kind in odd])
            return [_KINDS[kind] for kind in pattern]
        count = self.field("num_hidden_layers")
        if "attn_layer_period" in text:
            period, offset = self.field("attn_layer_period"), self.field("attn_layer_offset")
            return [_FULL if i % period == offset else _STATE for i in range(count)]
        if "attn_layer_indices" in text:
            return [_FULL if i in text["attn_layer_indices"] else _STATE for i in range(count)]
        if "full_attention_interval" in text:
            every = self.field("full_attention_interval")
            return [_STATE if (i + 1) % every else _FULL for i in range(count)]
        if "attention_chunk_size" in text and "no_rope_layer_interval" in text:
            every = self.field("no_rope_layer_interval")
            given = text.get("no_rope_layers") or [(i + 1) % every for i in range(count)]
            return [_LOCAL if rope else _FULL for rope in given]
        if not text.get("sliding_window") or not text.get("use_sliding_window", True):
            self._refuse([n for n in _STATEFUL if n in text])
            return [_FULL] * count
        every = self.optional("sliding_window_pattern", self.optional("_sliding_window_pattern"))
        if every:
            return [_SLIDING if (i + 1) % every else _FULL for i in range(count)]
        # Qwen2's: the first layers see everything.
        whole = self.optional("max_window_layers") if "use_sliding_window" in text else 0
        return [_FULL if i < whole else _SLIDING for i in range(count)]

    def _mixer(self, layer: str, number: int, layers: int) -> tuple[int, LayerKind | None]:
        """Returns a layer's weights apart from its MLP, and what it keeps."""
        if layer in (_DENSE, _SPARSE):
            return 0, None
        if layer == _STATE:
            return self._recurrent()
        width, text = self.width, self.text
        if "kv_lora_rank" in text:
            return self._latent(number)
        heads, dim = self._kv_heads(), self._head_dim()
        both = True
        if layer == _FULL and any(name in text for name in ("global_head_dim", "per_layer_config")):
            own = {int(n): of for n, of in (text.get("per_layer_config") or {}).items()}
            mine = own.get(number, {})
            dim = int(mine.get("head_dim", self.optional("global_head_dim", dim)))
            both = not text.get("attention_k_eq_v")
            if not both:
                own_heads = self.optional("num_global_key_value_heads", heads)
                heads = int(mine.get("num_key_value_heads", own_heads))
        shared = number >= layers - self.optional("num_kv_shared_layers")
        gate = 1 if text.get("attn_output_gate") else 0
        weights = width * dim * ((2 + gate) * self.heads + (0 if shared else (1 + both) * heads))
        if shared:
            return weights, None
        span = {_SLIDING: "sliding_window", _LOCAL: "attention_chunk_size"}.get(layer)
        keeps: Keeps = "window" if layer == _SLIDING else "local" if layer == _LOCAL else "all"
        seen = self.field(span) if span else None
        return weights, LayerKind(1, keeps, seen, items=2 * heads * dim, heads=heads)

    def _latent(self, number: int) -> tuple[int, LayerKind]:
        width, rank = self.width, self.field("kv_lora_rank")
        rotary, v = self.field("qk_rope_head_dim"), self.field("v_head_dim")
        plain = self.field("qk_nope_head_dim")
        down, queries = self.optional("q_lora_rank"), self.heads * (plain + rotary)
        weights = down * (width + queries) if down else width * queries
        weights += (
            width * (rank + rotary) + rank * self.heads * (plain + v) + self.heads * v * width
        )
        extra, keys = 0, self.optional("index_head_dim")
        # A layer may choose what the one before it did.
        if keys and (self.text.get("indexer_types") or {number: "full"})[number] == "full":
            indexing = self.field("index_n_heads")
            weights += (down or width) * indexing * keys + width * (keys + indexing)
            # vLLM keeps the indexer's keys in FP8, with a float32 scale for 128 of them.
            extra = keys + -(-keys // 128) * 4
        return weights, LayerKind(1, items=rank + rotary, heads=0, extra_bytes=extra)

    def _recurrent(self) -> tuple[int, LayerKind]:
        width, text = self.width, self.text
        kept = str(text.get("mamba_ssm_cache_dtype") or text.get("mamba_ssm_dtype") or "auto")
        item = {"float32": 4}.get(kept, 0)
        if "linear_num_value_heads" in text:
            heads, wide = self.field("linear_num_value_heads"), self.field("linear_value_head_dim")
            keys = self.field("linear_num_key_heads") * self.field("linear_key_head_dim")
            conv, kernel = 2 * keys + heads * wide, self.field("linear_conv_kernel_dim")
            weights = width * (2 * keys + 3 * heads * wide + 2 * heads) + conv * kernel
            state = heads * wide * self.field("linear_key_head_dim")
        elif "mamba_num_heads" in text or "mamba_n_heads" in text:
            heads = self.field("mamba_num_heads", "mamba_n_heads")
            inner = heads * self.field("mamba_head_dim", "mamba_d_head")
            size = self.field("ssm_state_size", "mamba_d_state")
            conv = inner + 2 * self.field("n_groups", "mamba_n_groups") * size
            kernel = self.field("conv_kernel", "mamba_d_conv")
            weights = width * (inner + conv + heads) + inner * width + conv * kernel
            state = inner * size
        else:
            size, conv = self.field("mamba_d_state"), self.field("mamba_expand") * width
            rank = text.get("mamba_dt_rank")
            steps = rank if isinstance(rank, int) else -(-width // 16)
            kernel = self.field("mamba_d_conv")
            weights = conv * (3 * width + 2 * steps + 3 * size + kernel)
            state = conv * size
        kind = LayerKind(
            1,
            "state",
            convolution_items=conv * (kernel - 1),
            state_items=state,
            state_item_bytes=item,
        )
        return weights, kind

    def _mlp(self, layer: str, number: int, layers: int) -> tuple[int, int]:
        """Returns the weights of a layer's MLP or experts, and those that a token passes."""
        text, width = self.text, self.width
        alone = any(name in text for name in ("hybrid_override_pattern", "layers_block_type"))
        if alone and self.family == "nemotron_h" and layer not in (_DENSE, _SPARSE):
            return 0, 0
        each = (3 if text.get("gated", True) else 2) * width
        if not self._sparse(layer, number):
            inner = self.field("intermediate_size", "moe_intermediate_size")
            if self.family.startswith("llama4"):
                inner = self.optional("intermediate_size_mlp", inner)
            if text.get("use_double_wide_mlp") and number >= layers - self.optional(
                "num_kv_shared_layers"
            ):
                inner *= 2
            both = each * (self.optional("shared_intermediate_size") or inner)
            return both, both
        experts = next(self.field(name) for name in _EXPERTS if text.get(name))
        inner = self.field("moe_intermediate_size", "intermediate_size")
        narrow = self.optional("moe_latent_size", width)
        one = each // width * narrow * inner
        own = width * experts + (2 * width * narrow if narrow != width else 0)
        own += each * self.optional("shared_expert_intermediate_size")
        own += each * self.optional("shared_intermediate_size")
        shared = self.optional("moe_shared_expert_intermediate_size")
        own += self.optional("n_shared_experts") * each * (shared or inner)
        if self.family.startswith("llama4"):
            own += each * inner
        if self.family.startswith("gemma4"):
            own += each * self.field("intermediate_size")
        return experts * one + own, self.field(*_CHOSEN) * one + own

    def _sparse(self, layer: str, number: int) -> bool:
        """Returns whether the layer has experts."""
        text = self.text
        if layer in (_DENSE, _SPARSE):
            return layer == _SPARSE
        if not any(text.get(name) for name in _EXPERTS):
            return False
        if text.get("mlp_layer_types"):
            return bool(text["mlp_layer_types"][number] == "sparse")
        if "expert_layer_period" in text:
            return number % self.field("expert_layer_period") == self.field("expert_layer_offset")
        if text.get("moe_layers"):
            return number in text["moe_layers"]
        if number in (text.get("mlp_only_layers") or ()) or number < self.optional(
            "first_k_dense_replace"
        ):
            return False
        every = self.optional("interleave_moe_layer_step", self.optional("decoder_sparse_step", 1))
        return not every or (number + 1) % every == 0

    def _refuse_unknown(self) -> None:
        """Raises ``UserError`` for a configuration whose KV or parameters would be counted
        wrong."""
        odd = [f"model_type {self.family}"] if self.family in _OTHER_SHAPES else []
        odd += [
            name
            for name, value in self.text.items()
            if value and value != 1 and _TELLING.search(name.lower()) and name not in _KNOWN
            and not _QUIET.search(name.lower())
        ]  # fmt: skip
        self._refuse(sorted(odd))

    def _refuse(self, odd: list[str]) -> None:
        if odd:
            raise UserError(
                f"--model: {self.called} has {', '.join(odd)}, which can't be sized yet; measure it"
                " with lmcache probe, or name a model of the catalogue that is like it"
            )


_STATEFUL = ("linear_num_key_heads", "mamba_d_state", "ssm_state_size", "no_rope_layers")
"""Fields of models with other layers, whose order must be known."""
