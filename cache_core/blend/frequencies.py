"""Computes RoPE frequencies from a model's parameters, and says which RoPE can be shifted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frequencies = NDArray[np.float64]

ROPE_KINDS = ("default", "linear", "llama3", "yarn")
_REFUSED = {
    "dynamic": "its frequencies depend on the prompt's length",
    "longrope": "it has two sets of frequencies, for short and long prompts",
}


class RopeError(ValueError):
    """K under this RoPE can't be moved to another position; the text says why in one line."""


def check_shiftable(parameters: Mapping[str, Any]) -> str:
    """Returns the kind of RoPE, of :data:`ROPE_KINDS`. Raises :class:`RopeError` if it can't be
    shifted.

    ``parameters`` are Hugging Face's ``rope_parameters`` (or ``rope_scaling``). M-RoPE is known by
    ``mrope_section``: a text token's three positions move together, an image's do not.
    """
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if kind == "mrope" or parameters.get("mrope_section"):
        raise RopeError("RoPE type 'mrope' can't be shifted: its three positions may move apart")
    if kind in _REFUSED:
        raise RopeError(f"RoPE type {kind!r} can't be shifted: {_REFUSED[kind]}")
    if kind not in ROPE_KINDS:
        raise RopeError(f"RoPE type {kind!r} is not known; blend knows {', '.join(ROPE_KINDS)}")
    return kind


def frequencies(parameters: Mapping[str, Any], dim: int, max_position: int = 0) -> Frequencies:
    """Returns radians per position of each of the ``dim // 2`` pairs, float64.

    ``max_position`` is ``max_position_embeddings``, for YaRN configurations that leave out
    ``original_max_position_embeddings``. Raises :class:`RopeError` for a kind that can't be
    shifted.
    """
    kind = check_shiftable(parameters)
    base = float(parameters.get("rope_theta", 10_000.0))
    plain = base ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if kind == "default":
        return plain
    factor = float(parameters["factor"])
    if kind == "linear":
        # Positions are interpolated: Chen et al. 2023, section 3.2.
        return plain / factor
    original = float(parameters.get("original_max_position_embeddings") or max_position)
    if kind == "llama3":
        return _llama3(plain, factor, original, parameters)
    return _yarn(plain, factor, original, parameters, base, dim)


def _llama3(
    plain: Frequencies, factor: float, original: float, parameters: Mapping[str, Any]
) -> Frequencies:
    """Scales by wavelength as Llama 3.1 does (apply_scaling in Meta's llama-models, model.py)."""
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    slow = np.where(wavelength > original / low, plain / factor, between)
    return np.where(wavelength < original / high, plain, slow)


def _yarn(
    plain: Frequencies,
    factor: float,
    original: float,
    parameters: Mapping[str, Any],
    base: float,
    dim: int,
) -> Frequencies:
    """Applies YaRN's ramp between interpolated and kept frequencies (Peng et al. 2023, section
    3.2). Its factor on the attention is in K already, and a rotation keeps it."""

    def pair_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = pair_of(float(parameters.get("beta_fast") or 32.0))
    high = pair_of(float(parameters.get("beta_slow") or 1.0))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (np.arange(dim // 2) - low) / max(high - low, 1e-3)
    interpolated = np.clip(ramp, 0.0, 1.0)
    mixed: Frequencies = plain * (1 - interpolated) + plain / factor * interpolated
    return mixed
