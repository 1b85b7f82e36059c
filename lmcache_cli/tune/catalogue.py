"""Models and accelerators by name: what decides the bytes of KV and the work of prefill, and what
makers say of their devices. Dense peaks without sparsity, one device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmcache_cli.errors import UserError

_BILLION = 10**9


@dataclass(frozen=True, slots=True)
class Architecture:
    """``active`` parameters are those that one token passes. ``qk_dim`` and ``v_dim`` are a query
    head's. ``latent`` is MLA's compressed width with its RoPE part (0: GQA, whose KV is
    ``kv_heads`` of ``head_dim``). ``source`` is the model's config.json on its maker's page."""

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
        """Bytes of KV of one token over all ranks: GQA ``2 L h d b`` times max(1, TP / h), since
        ranks beyond the heads hold copies; MLA ``L (c + r) b`` on every rank."""
        if self.latent:
            return self.layers * self.latent * item_bytes * tensor_parallel
        copies = max(1.0, tensor_parallel / self.kv_heads)
        return round(2 * self.layers * self.kv_heads * self.head_dim * item_bytes * copies)

    def token_flops(self) -> float:
        """Work of one token apart from attention: two operations per active parameter (Kaplan et
        al. 2020, section 2.1)."""
        return 2 * self.active

    def pair_flops(self) -> float:
        """Attention's work per pair of tokens: a product of Q and K and one with V."""
        qk, v = self.qk_dim or self.head_dim, self.v_dim or self.head_dim
        return 2.0 * self.layers * self.heads * (qk + v)


def _short(page: str) -> str:
    """The last part of a page's name, without the format and version of its files."""
    name = page.rpartition("/")[2].lower()
    return re.sub(r"-(hf|v0\.\d|base-\d+)$", "", name)


def _gqa(
    page: str, parameters: float, layers: int, heads: int, kv: int, dim: int, active: float = 0
) -> Architecture:
    name, source = _short(page), f"config.json of {page} on Hugging Face"
    total, used = parameters * _BILLION, (active or parameters) * _BILLION
    return Architecture(name, total, used, layers, heads, kv, dim, source)


def _mla(
    page: str, parameters: float, active: float, layers: int, heads: int, latent: int
) -> Architecture:
    return Architecture(
        _short(page),
        parameters * _BILLION,
        active * _BILLION,
        layers,
        heads,
        1,
        latent,
        f"config.json of {page} on Hugging Face: kv_lora_rank 512, qk_rope_head_dim 64",
        latent=latent,
        qk_dim=192,
        v_dim=128,
    )


ARCHITECTURES = {
    found.name: found
    for found in (
        _gqa("HuggingFaceTB/SmolLM2-135M", 0.1345, 30, 9, 3, 64),
        _gqa("meta-llama/Llama-3.2-1B", 1.236, 16, 32, 8, 64),
        _gqa("meta-llama/Llama-3.2-3B", 3.213, 28, 24, 8, 128),
        _gqa("meta-llama/Llama-3.1-8B", 8.030, 32, 32, 8, 128),
        _gqa("meta-llama/Llama-2-70b-hf", 68.98, 80, 64, 8, 128),
        _gqa("meta-llama/Llama-3.1-70B", 70.55, 80, 64, 8, 128),
        _gqa("meta-llama/Llama-3.1-405B", 405.9, 126, 128, 8, 128),
        _gqa("mistralai/Mistral-7B-v0.3", 7.248, 32, 32, 8, 128),
        _gqa("mistralai/Mistral-Small-24B-Base-2501", 23.57, 40, 32, 8, 128),
        _gqa("mistralai/Mixtral-8x7B-v0.1", 46.70, 32, 32, 8, 128, active=12.88),
        _gqa("Qwen/Qwen2.5-7B", 7.616, 28, 28, 4, 128),
        _gqa("Qwen/Qwen2.5-32B", 32.76, 64, 40, 8, 128),
        _gqa("Qwen/Qwen2.5-72B", 72.71, 80, 64, 8, 128),
        _gqa("Qwen/Qwen3-8B", 8.191, 36, 32, 8, 128),
        _gqa("Qwen/Qwen3-32B", 32.76, 64, 64, 8, 128),
        _gqa("Qwen/Qwen3-30B-A3B", 30.53, 48, 32, 4, 128, active=3.35),
        _gqa("Qwen/Qwen3-235B-A22B", 235.1, 94, 64, 4, 128, active=22.2),
        _mla("deepseek-ai/DeepSeek-V2-Lite", 15.71, 2.66, 27, 16, 576),
        _mla("deepseek-ai/DeepSeek-V3", 671.0, 37.6, 61, 128, 576),
    )
}


def find_architecture(name: str) -> Architecture:
    """Raises ``UserError`` listing what is known."""
    found = ARCHITECTURES.get(name.lower().rpartition("/")[2])
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"--model: {name!r} is not in the catalogue; use one of {known}")
    return found


TERA, GIGA = 10**12, 10**9


# One direction of a PCIe slot with 16 lanes, after its line code (PCIe CEM 4.0 and 5.0).
_PCIE4, _PCIE5 = 31.5, 63.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """``flops`` are bfloat16 operations per second, ``memory_bytes_s`` and ``link_bytes_s`` bytes
    per second of the device's memory and of one direction of its link to the host. ``source`` is
    the maker's data sheet."""

    name: str
    flops: float
    memory_bytes_s: float
    memory_bytes: int
    link_bytes_s: float
    source: str


def _make(name: str, tflops: float, gb_s: float, gib: int, link: float, source: str) -> Hardware:
    return Hardware(name, tflops * TERA, gb_s * GIGA, gib * 2**30, link * GIGA, source)


HARDWARE = {
    hardware.name: hardware
    for hardware in (
        _make("a10", 125, 600, 24, _PCIE4, "NVIDIA A10 data sheet, 2021"),
        _make("a40", 149.7, 696, 48, _PCIE4, "NVIDIA A40 data sheet, 2021"),
        _make("a100-40g", 312, 1555, 40, _PCIE4, "NVIDIA A100 data sheet, 2020"),
        _make("a100-80g", 312, 2039, 80, _PCIE4, "NVIDIA A100 80GB SXM data sheet, 2021"),
        _make("l4", 121, 300, 24, _PCIE4, "NVIDIA L4 data sheet, 2023 (half of its sparse peak)"),
        _make("l40s", 362, 864, 48, _PCIE4, "NVIDIA L40S data sheet, 2023"),
        _make("h100", 989.4, 3350, 80, _PCIE5, "NVIDIA H100 SXM data sheet, 2022"),
        _make("h100-pcie", 756, 2000, 80, _PCIE5, "NVIDIA H100 PCIe data sheet, 2022"),
        _make("h200", 989.4, 4800, 141, _PCIE5, "NVIDIA H200 SXM data sheet, 2023"),
        _make("gh200", 989.4, 4000, 96, 450, "NVIDIA GH200 data sheet, 2023 (NVLink-C2C)"),
        _make("b200", 2250, 8000, 180, _PCIE5, "NVIDIA DGX B200 data sheet, 2024, per GPU"),
        _make("gb200", 2500, 8000, 186, 450, "NVIDIA GB200 NVL72 page, 2024 (NVLink-C2C)"),
        _make("mi300x", 1307.4, 5300, 192, _PCIE5, "AMD Instinct MI300X data sheet, 2023"),
    )
}


def find_hardware(name: str) -> Hardware:
    """Raises ``UserError`` listing what is known."""
    found = HARDWARE.get(name.lower())
    if found is None:
        raise UserError(f"--hardware: {name!r} is not known; use one of {', '.join(HARDWARE)}")
    return found
