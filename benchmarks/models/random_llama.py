"""Makes a Llama of random weights, 17M parameters, with the embedded model's tokenizer.

It is what the vLLM figures in docs/log.md were measured with: small enough that a server prefills
thousands of tokens in a second or two on two cores. What it says means nothing.

    python benchmarks/models/random_llama.py FOLDER
"""

from __future__ import annotations

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(random_llama(parser.parse_args().folder))


def random_llama(folder: Path) -> str:
    """Writes the model and its tokenizer; returns the folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lmcache_cli.engines.models import embedded_source

    _, _, source, extra = embedded_source()
    tokenizer = AutoTokenizer.from_pretrained(source, **extra)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=688,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.08)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


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
