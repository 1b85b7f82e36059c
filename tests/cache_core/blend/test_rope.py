"""Rotation against recomputation at the other position, with the frequencies of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cache_core.blend.rope import ROPE_KINDS, Rope, RopeError, Style, check_shiftable

PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
}


def frequencies(kind: str, dim: int) -> np.ndarray:
    """As a model of that kind has them."""
    if kind == "default":
        return np.asarray(5e5 ** -(np.arange(0, dim, 2) / dim))
    config = LlamaConfig(head_dim=dim, rope_parameters=PARAMETERS[kind])
    found = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[0]
    return np.asarray(found.double().numpy())


def test_kinds_that_can_be_shifted_are_known() -> None:
    assert tuple(map(check_shiftable, PARAMETERS.values())) == ROPE_KINDS
    assert check_shiftable({}) == "default"


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope"},
        {"type": "mrope"},
        {"rope_type": "default", "mrope_section": [16, 24, 24]},
        {"rope_type": "spiral"},
    ],
)
def test_what_cannot_be_shifted_is_refused_by_name(parameters: dict[str, Any]) -> None:
    name = "mrope" if "mrope_section" in parameters else next(iter(parameters.values()))
    with pytest.raises(RopeError, match=name):
        check_shiftable(parameters)


def embedded(k: torch.Tensor, position: int, inv_freq: np.ndarray, style: Style) -> torch.Tensor:
    """RoPE by complex multiplication, pair by pair."""
    half = k.shape[-1] // 2
    pairs = [(i, i + half) if style == "neox" else (2 * i, 2 * i + 1) for i in range(half)]
    out = k.clone().double()
    for (a, b), frequency in zip(pairs, inv_freq, strict=True):
        z = torch.complex(k[..., a].double(), k[..., b].double())
        z = z * np.exp(1j * position * frequency)
        out[..., a], out[..., b] = z.real, z.imag
    return out


@given(
    kind=st.sampled_from(list(PARAMETERS)),
    style=st.sampled_from(["neox", "gptj"]),
    old=st.integers(0, 30_000),
    new=st.integers(0, 30_000),
    seed=st.integers(0, 99),
)
def test_a_moved_key_is_what_it_would_be_there(
    kind: str, style: Style, old: int, new: int, seed: int
) -> None:
    inv_freq = frequencies(kind, 16)
    k = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(seed))
    there = embedded(k, old, inv_freq, style).float()
    moved = Rope(inv_freq, style).rotate(there, new - old)
    torch.testing.assert_close(moved, embedded(k, new, inv_freq, style).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_rotation_by_nothing_is_a_bit_copy(dtype: torch.dtype) -> None:
    rope = Rope(frequencies("default", 16))
    k = torch.randn(2, 5, 16).to(dtype)
    assert torch.equal(rope.rotate(k, 0), k)
    some = rope.rotate(k, torch.tensor([0, 3, 0, -2, 0]))
    assert torch.equal(some[:, [0, 2, 4]], k[:, [0, 2, 4]])
    assert torch.equal(some[:, 1], rope.rotate(k[:, 1:2], 3)[:, 0])
    assert torch.equal(some[:, 3], rope.rotate(k[:, 3:4], -2)[:, 0])


def test_a_window_of_the_head_is_turned_alone_and_in_place() -> None:
    rope = Rope(frequencies("default", 8), "gptj", offset=24)
    k = torch.randn(4, 32)
    before = k.clone()
    out = rope.rotate(k, 7, in_place=True)
    assert out is k
    assert torch.equal(k[:, :24], before[:, :24])
    torch.testing.assert_close(
        k[:, 24:], Rope(frequencies("default", 8), "gptj").rotate(before[:, 24:], 7)
    )
    with pytest.raises(ValueError, match="24 to 32"):
        rope.rotate(torch.randn(4, 30), 1)
