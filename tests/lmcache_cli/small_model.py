"""Random-weight models of the supported families, as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

FAMILIES = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "mistral": transformers.MistralConfig,
}


def save_model(folder: Path, family: str, **changes: object) -> Path:
    """A model of two layers and a context of 256 with a byte tokenizer."""
    sizes: dict[str, object] = dict(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    )
    if family == "mistral":
        sizes["sliding_window"] = None
    torch.manual_seed(0)
    config = FAMILIES[family](**(sizes | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    # Bytes as tokens: a vocabulary of few words would make every prompt one unknown token.
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(folder)
    return folder
