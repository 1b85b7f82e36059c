"""Models and accelerators by name, from ``catalogue.toml``: what decides the bytes of KV and the
work of prefill, and what makers say of their devices."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files

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
        """Returns the bytes of KV of one token over all ranks: GQA ``2 L h d b`` times max(1, TP /
        h), since ranks beyond the heads hold copies; MLA ``L (c + r) b`` on every rank."""
        if self.latent:
            return self.layers * self.latent * item_bytes * tensor_parallel
        copies = max(1.0, tensor_parallel / self.kv_heads)
        return round(2 * self.layers * self.kv_heads * self.head_dim * item_bytes * copies)

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
    """Returns the catalogue's model of that name. Raises ``UserError`` listing what is known."""
    found = ARCHITECTURES.get(name.lower().rpartition("/")[2])
    if found is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"--model: {name!r} is not in the catalogue; use one of {known}")
    return found


@dataclass(frozen=True, slots=True)
class Hardware:
    """An accelerator. ``flops`` are bfloat16 operations per second, ``memory_bytes_s`` and
    ``link_bytes_s`` bytes per second of the device's memory and of one direction of its link to the
    host. ``source`` is the maker's data sheet."""

    name: str
    flops: float
    memory_bytes_s: float
    memory_bytes: int
    link_bytes_s: float
    source: str


def _hardware(
    name: str, tflops: float, memory_gb_s: float, memory_gib: int, link_gb_s: float, source: str
) -> Hardware:
    memory = memory_gib * 2**30
    return Hardware(name, tflops * TERA, memory_gb_s * GIGA, memory, link_gb_s * GIGA, source)


_FOUND = tomllib.loads(files("lmcache_cli.tune").joinpath("catalogue.toml").read_text("utf-8"))
ARCHITECTURES = {found.name: found for found in (_architecture(**row) for row in _FOUND["model"])}
HARDWARE = {found.name: found for found in (_hardware(**row) for row in _FOUND["hardware"])}


def find_hardware(name: str) -> Hardware:
    """Returns the accelerator of that name. Raises ``UserError`` listing what is known."""
    found = HARDWARE.get(name.lower())
    if found is None:
        raise UserError(f"--hardware: {name!r} is not known; use one of {', '.join(HARDWARE)}")
    return found
