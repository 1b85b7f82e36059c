"""The blended forward: some rows of a prompt over KV that is partly reused."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_core.blend.selection import KV, Reused, Selection
from lmcache_cli.engines.transformers.blend.runner import LayerRunner, Projected, spans_of
from lmcache_cli.engines.transformers.kv_buffer import wait_for

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlendResult:
    """The outcome of a blended forward: ``logits`` ``[vocabulary]`` of the last token, reused
    tokens that are recomputed to the top, token-layers that were run, and the seconds that choosing
    took."""

    logits: Tensor
    recomputed: int
    token_layers: int
    selecting_s: float


@torch.inference_mode()
def blend(
    runner: LayerRunner, prompt: Reused, buffer: Tensor, fresh: Positions, selection: Selection
) -> BlendResult:
    """Runs the rows that ``selection`` chooses and ``fresh``, the ascending positions of what is
    not cached, the last token among them.

    ``buffer`` ``[layers, 2, kv_heads, capacity, d]``, on the model's device as ``prompt.ids``,
    holds the reused KV and gets the computed one: each layer's before its attention. A row that is
    dropped at a layer has its new KV up to that layer and its reused KV above it.

    Which rows run is known on the host throughout, so a GPU is waited for only where a selection
    has looked at what a layer computed.
    """
    layers, device = len(runner.layers), buffer.device
    began = time.perf_counter()
    chosen = selection.begin(prompt).numpy()
    at = np.sort(np.concatenate([chosen, fresh]))
    # Where fresh rows stand among the rows, so that a selection sees its own only.
    ours = np.isin(at, chosen, assume_unique=True)
    rows = torch.from_numpy(at).to(device)
    spans = spans_of(at, buffer)
    selecting = time.perf_counter() - began
    hidden = runner.embed(prompt.ids[rows])
    cos, sin = runner.angles(rows)
    token_layers = 0
    for layer in range(layers):
        new = runner.project(layer, hidden, (cos, sin))
        q = new.q
        plane = buffer[layer]
        kept = None
        if ours.any() and _narrows(selection, layer):
            wait_for(device)  # what follows is the selection's time, not that of the layers before
            began = time.perf_counter()
            kept = _kept(selection, layer, at, ours, new, plane, prompt)
            _write(plane, at, rows, new)
            if kept is not None:
                at, ours = at[kept], ours[kept]
                index = torch.from_numpy(kept).to(device)
                rows, hidden, q = rows[index], hidden[index], q[:, index]
                cos, sin, spans = cos[index], sin[index], spans_of(at, buffer)
            selecting += time.perf_counter() - began
        else:
            _write(plane, at, rows, new)
        token_layers += len(at)
        hidden = runner.attend(layer, q, plane, spans, hidden)
    logits = runner.logits(hidden[-1:])[0]
    return BlendResult(logits, int(ours.sum()), token_layers, selecting)


def _narrows(selection: Selection, layer: int) -> bool:
    narrows = getattr(selection, "narrows", None)
    return narrows is None or bool(narrows(layer))


def _kept(
    selection: Selection,
    layer: int,
    at: Positions,
    ours: NDArray[np.bool_],
    new: Projected,
    plane: Tensor,
    prompt: Reused,
) -> NDArray[np.intp] | None:
    """Returns which of the rows ``at`` to go on with, ascending, or None for all."""
    rows = torch.from_numpy(at).to(plane.device)
    see = getattr(selection, "see", None)
    if see is not None:
        keys = plane[0, :, : len(prompt.ids)].clone()
        keys[:, rows] = new.k
        see(layer, new.q[:, np.searchsorted(at, prompt.question) :], keys)
    # [kv_heads, rows, d] to the selections' [rows, kv_heads, d]; fancy rows are copies.
    mine = torch.from_numpy(np.flatnonzero(ours)).to(plane.device)
    own = rows[mine]
    computed = KV(new.k[:, mine].transpose(0, 1), new.v[:, mine].transpose(0, 1))
    old = KV(plane[0, :, own].transpose(0, 1), plane[1, :, own].transpose(0, 1))
    chosen = on_host(selection.narrow(layer, own, computed, old))
    if chosen.all():
        return None
    keep = np.ones(len(at), dtype=np.bool_)
    keep[ours] = chosen
    return np.flatnonzero(keep)


def on_host(chosen: Tensor) -> NDArray[np.bool_]:
    """Copies ``chosen`` to the host: the one thing in a blended forward that a GPU is waited
    for."""
    found: NDArray[np.bool_] = chosen.cpu().numpy()
    return found


def _write(plane: Tensor, at: Positions, rows: Tensor, new: Projected) -> None:
    first, last = int(at[0]), int(at[-1])
    if last - first + 1 == len(at):
        plane[0, :, first : last + 1], plane[1, :, first : last + 1] = new.k, new.v
    else:
        plane[0].index_copy_(1, rows, new.k)
        plane[1].index_copy_(1, rows, new.v)
