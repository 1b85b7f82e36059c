"""Scenarios with real vLLM: a model to run, and a process for each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_process import need_vllm, run_with_vllm

HERE = Path(__file__).parent

Scenario = Callable[..., Any]


@pytest.fixture(scope="session")
def vllm_needed() -> None:
    """Skips where vLLM is not installed; fails there if LMCACHE_REQUIRE asks for it."""
    need_vllm()


@pytest.fixture(scope="session")
def vllm_model(vllm_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama."""
    folder = tmp_path_factory.mktemp("model")
    code = (
        "import sys, torch\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "torch.manual_seed(0)\n"
        "model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, hidden_size=256,"
        " num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,"
        " intermediate_size=688, max_position_embeddings=16384, tie_word_embeddings=False))\n"
        # Larger weights than usual: logits lie far apart, so that greedy tokens mean something.
        "[torch.nn.init.normal_(p, std=0.08) for p in model.parameters() if p.ndim > 1]\n"
        "model.save_pretrained(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    _tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def scenario(vllm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Runs ``scenario_NAME.py MODEL SCRATCH ARGUMENTS`` and returns what it prints, from JSON."""
    scratch = tmp_path_factory.mktemp("scratch")

    def run(name: str, *arguments: str, timeout_s: float = 600) -> Any:
        script = HERE / f"scenario_{name}.py"
        said = run_with_vllm(script, str(vllm_model), str(scratch), *arguments, timeout_s=timeout_s)
        return json.loads(said.splitlines()[-1])

    return run


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(2048)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", eos_token="w2"
    ).save_pretrained(folder)
