"""Moves K to another position: rotary embeddings add up, so K needs no recomputation.

A K row at position p is ``R(p) k``; ``R(new - old) R(old) k`` is what it would be at ``new``. torch
is imported with this file only. Not every model's RoPE can be shifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

Style = Literal["neox", "gptj"]


class Rope:
    """Rotates K, after RoPE, by differences of positions.

    ``inv_freq`` are radians per position, one for each pair, as the model's own. ``style`` says
    which items pair up: ``neox`` item i with i + dim/2, ``gptj`` item 2i with 2i + 1. ``offset`` is
    where the rotated part of a head begins: after MLA's latent, or 0 for a partial rotary head.
    Angles are computed in float64.
    """

    def __init__(self, inv_freq: ArrayLike, style: Style = "neox", offset: int = 0) -> None:
        if style not in ("neox", "gptj"):
            raise ValueError(f"RoPE style {style!r} is not known; it is 'neox' or 'gptj'")
        self.inv_freq = torch.from_numpy(np.array(inv_freq, dtype=np.float64))
        self._there: dict[torch.device, torch.Tensor] = {}
        self.style = style
        self.offset = offset
        self.dim = 2 * len(self.inv_freq)

    def rotate(
        self, k: torch.Tensor, delta: int | torch.Tensor, *, in_place: bool = False
    ) -> torch.Tensor:
        """Returns ``k`` ``[..., tokens, head_dim]`` moved by ``delta``, an int or int64
        ``[tokens]``.

        Computed in float32, or in float64 for K in float64. A token moved by 0 keeps its bits.
        Raises ``ValueError`` if the window exceeds the head.
        """
        if self.offset + self.dim > k.shape[-1]:
            raise ValueError(
                f"RoPE turns items {self.offset} to {self.offset + self.dim}"
                f" of a head that has {k.shape[-1]}"
            )
        out = k if in_place else k.clone()
        if isinstance(delta, int):
            if delta:
                # Filled, not copied: a GPU isn't waited for.
                self._turn(out, torch.full((1,), delta, device=k.device))
            return out
        moved = delta != 0
        if bool(moved.all()):
            self._turn(out, delta)
        elif bool(moved.any()):
            rows = torch.nonzero(moved)[:, 0]
            some = out.index_select(-2, rows)
            self._turn(some, delta[rows])
            out.index_copy_(out.dim() - 2, rows, some)
        return out

    def _turn(self, k: torch.Tensor, delta: torch.Tensor) -> None:
        wide = torch.float64 if k.dtype == torch.float64 else torch.float32
        angles = delta.to(torch.float64)[:, None] * self._frequencies(delta.device)
        cos, sin = angles.cos().to(wide), angles.sin().to(wide)
        window = k[..., self.offset : self.offset + self.dim]
        if self.style == "neox":
            first, second = window[..., : self.dim // 2], window[..., self.dim // 2 :]
        else:
            first, second = window[..., 0::2], window[..., 1::2]
        a, b = first.to(wide), second.to(wide)
        turned = a * cos - b * sin
        second.copy_(torch.addcmul(b * cos, a, sin))
        first.copy_(turned)

    def _frequencies(self, device: torch.device) -> torch.Tensor:
        """Returns ``inv_freq`` on the device, brought there once."""
        if device not in self._there:
            self._there[device] = self.inv_freq.to(device)
        return self._there[device]


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
