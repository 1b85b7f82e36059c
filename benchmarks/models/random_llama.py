"""Makes a Llama of random weights. What it says means nothing.

    python benchmarks/models/random_llama.py FOLDER [--size 17m|tiny|1b|8b] [--device cpu]

`17m`, with the embedded model's tokenizer, is what the vLLM figures in docs/log.md were measured
with: small enough that a server prefills thousands of tokens in a second or two on two cores. The
others bring a tokenizer that is trained on the generated text in a second or two, so that they need
no package and no network; `1b` and `8b` have the shapes of the Llama 3 models, in bfloat16, and are
drawn on ``--device``: on a CPU that takes minutes.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Environment of vLLM in the benchmark's own process."""


_LLAMA_3 = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    "17m": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 688,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 16384,
        "vocab_size": 8192,
    },
    "1b": {
        **_LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16
    },
    "8b": {
        **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="17m", choices=SHAPES)
    parser.add_argument("--device", default="cpu", help="where weights are drawn")
    args = parser.parse_args()
    print(random_llama(args.folder, args.size, args.device))


def random_llama(folder: Path, size: str = "17m", device: str = "cpu") -> str:
    """Writes the model of that shape, its weights in one file, and its tokenizer; returns the
    folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _embedded_tokenizer() if size == "17m" else trained_tokenizer()
    shape = {"vocab_size": len(tokenizer), "tie_word_embeddings": False, **SHAPES[size]}
    begin, end = (1, 2) if size == "17m" else (0, 1)
    config = LlamaConfig(bos_token_id=begin, eos_token_id=end, **shape)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(config.dtype or default)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    if size == "17m":
        for weights in model.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=0.08)
    # One file: beyond 4 GiB it is sampled, not read whole, when its digest is taken.
    model.save_pretrained(folder, max_shard_size="64GB")
    tokenizer.save_pretrained(folder)
    return str(folder)


def _embedded_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from lmcache_cli.engines.transformers.models import embedded_source

    _, _, source, extra = embedded_source()
    return AutoTokenizer.from_pretrained(source, **extra)


def trained_tokenizer() -> Any:
    """Byte-level BPE of 8,192 tokens over the generated text: the same at each call."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from workloads import GeneratedCorpus

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(GeneratedCorpus(0).passages(), 3000), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def connector(**options: Any) -> dict[str, Any]:
    """vLLM's ``kv_transfer_config`` with our connector."""
    return {
        "kv_connector": "TieredKVConnector",
        "kv_connector_module_path": "cache_core.adapters.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": options,
    }


if __name__ == "__main__":
    main()
