"""Makes a small model of random weights of a family, with a tokenizer: to try what serves it.

    python benchmarks/models/random_model.py KIND FOLDER

Kinds are families by what their layers keep: all KV (llama, qwen3-moe, glm4-moe), a window of it
(mistral-sliding), windows beside full attention (gemma3, gemma4, gpt-oss), spans beside full
attention (llama4), one latent for all heads (deepseek, deepseek-v32 with an indexer's keys beside
it), recurrent states beside attention (qwen3-next, qwen3.5, granite-hybrid, nemotron-h, jamba).
What a model says means nothing. The tokenizer is trained on the generated text in a second or two,
so that neither package nor network is needed. docs/models.md says what each can be used with.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from random_llama import trained_tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 128,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 512,  # with RoPE 576, as DeepSeek has it: kernels know no other
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
}
_DELTA = {
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 128,  # vLLM has no kernel for less
    "linear_value_head_dim": 128,
}
_TURNS = ["sliding_attention", "full_attention"]
WINDOW = 512
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3-moe": ("Qwen3MoeConfig", {"head_dim": 64, **_EXPERTS}),
    "mistral-sliding": ("MistralConfig", {"sliding_window": WINDOW, "head_dim": 64}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": WINDOW,
            "num_hidden_layers": 6,
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            "head_dim": 64,
            "sliding_window": 128,
            "layer_types": _TURNS * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {
            "head_dim": 64,
            "sliding_window": WINDOW,
            "num_hidden_layers": 6,
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
            "per_layer_config": {"05": {"head_dim": 128}},
            "vocab_size_per_layer_input": 8192,
            "hidden_size_per_layer_input": 32,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            "head_dim": 64,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 512,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
        },
    ),
    "glm4-moe": (
        "Glm4MoeConfig",
        {"head_dim": 64, "first_k_dense_replace": 1, **_ROUTED},
    ),
    "deepseek": (
        "DeepseekV3Config",
        {
            **_LATENT,
            **_ROUTED,
            "first_k_dense_replace": 1,
            "topk_method": "noaux_tc",  # vLLM asks for it; transformers knows no other
        },
    ),
    "deepseek-v32": (
        "DeepseekV32Config",
        {
            **_LATENT,
            **_ROUTED,
            "index_head_dim": 128,
            "index_n_heads": 4,
            "index_topk": 4096,
            "mlp_layer_types": ["dense", *["sparse"] * 3],
        },
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        {**_DELTA, "shared_expert_intermediate_size": 128, **_EXPERTS},
    ),
    "qwen3.5": ("Qwen3_5TextConfig", _DELTA),
    "granite-hybrid": (
        "GraniteMoeHybridConfig",
        {
            "mamba_n_heads": 8,
            "mamba_d_state": 32,
            "shared_intermediate_size": 256,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["mamba", "mamba", "mamba", "attention"],
        },
    ),
    "nemotron-h": (
        "NemotronHConfig",
        {
            "head_dim": 64,
            "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "n_groups": 2,
            "ssm_state_size": 32,
            "moe_intermediate_size": 128,
            "moe_shared_expert_intermediate_size": 128,
            **_ROUTED,
        },
    ),
    "jamba": (
        "JambaConfig",
        {
            "num_experts": 4,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "mamba_dt_rank": 16,
            "use_mamba_kernels": False,
        },
    ),
}
"""The configuration class of transformers and what differs from the common shape, by kind."""


def random_model(kind: str, folder: Path) -> str:
    """Writes the model, its weights in float32, and its tokenizer; returns the folder."""
    import torch
    import transformers

    name, shape = KINDS[kind]
    config = getattr(transformers, name)(**_COMMON | shape)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for weights in model.parameters():
        # Larger weights than usual: logits lie far apart, so that greedy tokens mean something.
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.08)
    model.save_pretrained(folder)
    trained_tokenizer().save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(random_model(args.kind, args.folder))


if __name__ == "__main__":
    main()
