"""The blended forward: some rows of a prompt over KV that is partly reused."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from cache_core.blend.selection import KV, Reused, Selection
from lmcache_cli.engines.blend.runner import LayerRunner


@dataclass(frozen=True, slots=True)
class Blended:
    """``logits`` ``[vocabulary]`` of the last token, reused tokens that are recomputed to the top,
    token-layers that were run, and the seconds that choosing took."""

    logits: Tensor
    recomputed: int
    token_layers: int
    selecting_s: float


@torch.inference_mode()
def blend(
    runner: LayerRunner, prompt: Reused, arena: Tensor, fresh: Tensor, selection: Selection
) -> Blended:
    """Runs the rows that ``selection`` chooses and ``fresh``, the ascending positions of what is
    not cached, the last token among them.

    ``arena`` ``[layers, 2, kv_heads, capacity, d]`` holds the reused KV and gets the computed one:
    each layer's before its attention. A row that is dropped at a layer has its new KV up to that
    layer and its reused KV above it.
    """
    layers = len(runner.layers)
    began = time.perf_counter()
    chosen = selection.begin(prompt)
    rows = torch.cat([chosen.to(fresh.device), fresh]).sort().values
    # Where fresh rows stand among the rows, so that a selection sees its own only.
    ours = torch.isin(rows, chosen.to(rows.device), assume_unique=True)
    selecting = time.perf_counter() - began
    hidden = runner.embed(prompt.ids[rows])
    cos, sin = runner.angles(rows)
    token_layers = 0
    for layer in range(layers):
        new = runner.project(layer, hidden, (cos, sin))
        q = new.q
        plane = arena[layer]
        began = time.perf_counter()
        keep = _kept(selection, layer, rows, ours, new.k, new.v, plane, q, prompt)
        selecting += time.perf_counter() - began
        _write(plane, rows, new.k, new.v)
        if keep is not None:
            rows, ours, hidden, q = rows[keep], ours[keep], hidden[keep], q[:, keep]
            cos, sin = cos[keep], sin[keep]
        token_layers += len(rows)
        hidden = runner.attend(layer, q, plane, rows, hidden)
    logits = runner.logits(hidden[-1:])[0]
    return Blended(logits, int(ours.sum()), token_layers, selecting)


def _kept(
    selection: Selection,
    layer: int,
    rows: Tensor,
    ours: Tensor,
    k: Tensor,
    v: Tensor,
    plane: Tensor,
    q: Tensor,
    prompt: Reused,
) -> Tensor | None:
    """The rows to go on with, boolean, or None for all."""
    narrows = getattr(selection, "narrows", None)
    if narrows is not None and not narrows(layer):
        return None
    at = rows[ours]
    if not len(at):
        return None
    see = getattr(selection, "see", None)
    if see is not None:
        keys = plane[0, :, : len(prompt.ids)].clone()
        keys[:, rows] = k
        see(layer, q[:, rows >= prompt.question], keys)
    # [kv_heads, rows, d] to the selections' [rows, kv_heads, d]; fancy rows are copies.
    new = KV(k[:, ours].transpose(0, 1), v[:, ours].transpose(0, 1))
    old = KV(plane[0, :, at].transpose(0, 1), plane[1, :, at].transpose(0, 1))
    chosen = selection.narrow(layer, at, new, old)
    if bool(chosen.all()):
        return None
    keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    keep[ours] = chosen.to(rows.device)
    return keep


def _write(plane: Tensor, rows: Tensor, k: Tensor, v: Tensor) -> None:
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        plane[0, :, first : last + 1], plane[1, :, first : last + 1] = k, v
    else:
        plane[0].index_copy_(1, rows, k)
        plane[1].index_copy_(1, rows, v)
