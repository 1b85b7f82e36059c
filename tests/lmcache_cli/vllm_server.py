"""A real vLLM server with a tiny random model, on the loopback interface."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.cache_core.servers import free_port

_START_S = 300.0
# The CPU attention kernels take head sizes from 32 on.
_SIZES = dict(
    vocab_size=256, hidden_size=256, num_hidden_layers=2, head_dim=64, max_position_embeddings=8192
)
_TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


class VllmServer:
    """``vllm serve`` with the completions, chat and tokenize endpoints. Skips the test if vLLM is
    not here, fails it if ``LMCACHE_REQUIRE`` names vllm."""

    def __init__(self, folder: Path, *options: str) -> None:
        if importlib.util.find_spec("vllm") is None:
            if "vllm" in os.environ.get("LMCACHE_REQUIRE", ""):
                pytest.fail("LMCACHE_REQUIRE names vllm, which is not installed")
            pytest.skip("vllm is not installed")
        self.model = _save(folder / "model")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "vllm.log"
        settings = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(self.model)]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--enforce-eager", "--enable-prompt-tokens-details"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *options], env=os.environ | settings, stdout=log, stderr=log
            )
        self._wait()

    def end(self) -> None:
        """SIGTERM, so that its workers end too."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self.end()
        raise RuntimeError(f"vllm serve did not start:\n{self._log.read_text()[-3000:]}")


def _save(folder: Path) -> Path:
    """Bytes as tokens, so that every text has a length of its own. Greedy output is printable
    ASCII, so that its text has as many tokens as were generated."""
    from safetensors.torch import load_file, save_file
    from tokenizers import decoders
    from transformers import AutoTokenizer

    from tests.lmcache_cli.small_model import save_model

    save_model(folder, "llama", **_SIZES)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = _TEMPLATE
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    # The alphabet is sorted: ids 0 to 93 are "!" to "~".
    weights["lm_head.weight"][94:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
