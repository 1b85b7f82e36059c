"""The blended forward: some rows of a prompt over KV that is partly reused."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmcache_cli.engines.transformers.blend.runner import LayerRunner, Projected, spans_of

Positions = NDArray[np.int64]


@torch.inference_mode()
def blend(runner: LayerRunner, ids: Tensor, buffer: Tensor, at: Positions) -> Tensor:
    """Runs the rows at the ascending positions ``at`` of a prompt of ``ids``, its last token among
    them, and returns the logits ``[vocabulary]`` of that.

    ``buffer`` ``[layers, 2, kv_heads, capacity, d]``, on the model's device as ``ids``, holds the
    reused KV and gets the computed one: each layer's before its attention. Which rows run is known
    on the host before layer 0, so a GPU is not waited for.
    """
    rows = torch.from_numpy(at).to(buffer.device)
    spans = spans_of(at, buffer)
    hidden, angles = runner.embed(ids[rows]), runner.angles(rows)
    for layer in range(len(runner.layers)):
        new = runner.project(layer, hidden, angles)
        _write(buffer[layer], at, rows, new)
        hidden = runner.attend(layer, new.q, buffer[layer], spans, hidden)
    return runner.logits(hidden[-1:])[0]


def _write(plane: Tensor, at: Positions, rows: Tensor, new: Projected) -> None:
    first, last = int(at[0]), int(at[-1])
    if last - first + 1 == len(at):
        plane[0, :, first : last + 1], plane[1, :, first : last + 1] = new.k, new.v
    else:
        plane[0].index_copy_(1, rows, new.k)
        plane[1].index_copy_(1, rows, new.v)
