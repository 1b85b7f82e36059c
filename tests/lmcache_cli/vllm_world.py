"""A real ``vllm serve`` for tests, with a tiny model of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmcache_cli.engines.vllm.flags import platform
from lmcache_cli.engines.vllm.server import VllmServer, vllm_command, vllm_on_cpu
from tests.lmcache_cli.small_model import save_model
from tests.vllm_process import need_vllm

QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
ARGS = ["--enforce-eager", "--max-model-len", "2048", "--block-size", "32"]
BLOCK_TOKENS = 32
START_S = 900.0

_TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class VllmAddress:
    """Where it is, the folder of the model that it serves as ``tiny``, and the tokens of a block of
    its prefix cache."""

    url: str
    model: Path
    block_tokens: int = BLOCK_TOKENS


def tiny_model(folder: Path) -> Path:
    """A model that prefills fast and has KV worth reusing."""
    return save_model(
        folder,
        "llama",
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        head_dim=64,
        max_position_embeddings=4096,
    )


def chat_model(folder: Path) -> Path:
    """:func:`tiny_model` that chats in printable ASCII: a token of greedy output is a character,
    and every text has a length of its own."""
    from safetensors.torch import load_file, save_file
    from tokenizers import decoders
    from transformers import AutoTokenizer

    tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = _TEMPLATE
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    # The alphabet is sorted: ids 0 to 93 are "!" to "~".
    weights["lm_head.weight"][94:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextmanager
def running_vllm(folder: Path, *more: str) -> Iterator[VllmAddress]:
    """A server with its own prefix cache, and ``more`` flags, until the block is left."""
    need_vllm()
    model = chat_model(folder / "model")
    flags, environment = platform(vllm_on_cpu(), "auto")
    flags += ["--enable-prefix-caching", "--enable-prompt-tokens-details", *ARGS]
    flags += ["--served-model-name", "tiny", *more]
    server = VllmServer(
        [vllm_command(), "serve", str(model), *flags], environment | QUIET, folder / "vllm.log"
    )
    try:
        server.start(START_S, print)
        yield VllmAddress(server.url, model)
    finally:
        server.stop()
