"""The two forwards of reuse between models: the base's, that keeps what a fine-tune may need, and
the fine-tune's, over the base's KV.

After DroidSpeak (Liu et al., NSDI 2026, arXiv:2411.02820, sections 3.2 and 4): a prefix's KV comes
from another model of the same architecture, and only some contiguous groups of layers are computed
again for it. A group that does not begin at layer 0 begins with the base's hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcache_cli.engines.transformers.blend.runner import LayerRunner, following


@dataclass(frozen=True, slots=True)
class Computed:
    """The outcome of a prefill: ``logits`` ``[vocabulary]`` of the last token, and the token-layers
    that were run to their end. A group's last layer is not, for the prefix: its K and V are all
    that is wanted of it."""

    logits: Tensor
    token_layers: int


@torch.inference_mode()
def prefill(runner: LayerRunner, ids: Tensor, kv: Tensor, hidden: Mapping[int, Tensor]) -> Tensor:
    """Prefills ``ids`` into ``kv`` ``[layers, 2, kv_heads, capacity, d]`` from its first row on.
    Writes the input of each layer that ``hidden`` names into its tensor ``[tokens, width]``, the
    first tokens of it. Returns the last token's logits, ``[vocabulary]``."""
    rows = torch.arange(len(ids), device=runner.device)
    x, angles = runner.embed(ids), runner.angles(rows)
    for layer in range(len(runner.layers)):
        if layer in hidden:
            kept = hidden[layer]
            kept.copy_(x[: len(kept)])
        new = runner.project(layer, x, angles)
        kv[layer, 0, :, : len(ids)], kv[layer, 1, :, : len(ids)] = new.k, new.v
        x = runner.attend(layer, new.q, kv[layer], following(0, len(ids)), x)
    return runner.logits(x[-1:])[0]


@torch.inference_mode()
def prefill_over(
    runner: LayerRunner,
    ids: Tensor,
    kv: Tensor,
    shared: range,
    groups: tuple[range, ...],
    hidden: Mapping[int, Tensor],
) -> Computed:
    """Runs a prompt whose rows ``shared`` of ``kv`` ``[layers, 2, kv_heads, capacity, d]`` are the
    base's; rows before are the model's own, rows after are computed in all layers, and must not be
    none.

    ``groups`` are the layers computed again for the shared rows, whose KV they overwrite;
    ``hidden`` has the base's input ``[len(shared), width]`` of each group's first layer, but of
    layer 0. With all layers it is a full prefill, to the bit, if ``shared`` begins at 0.
    """
    first, cut, n = shared.start, shared.stop, len(ids)
    starts = {group.start for group in groups}
    # The topmost layer runs as in a full prefill, of which it then is a part.
    ends = {group.stop - 1 for group in groups} - {len(runner.layers) - 1}
    rows = torch.arange(first, n, device=runner.device)
    cos, sin = runner.angles(rows)
    x, start = runner.embed(ids[cut:]), cut
    token_layers = 0
    for layer in range(len(runner.layers)):
        if layer in starts:
            before = hidden[layer] if layer else runner.embed(ids[first:cut])
            x, start = torch.cat([before, x]), first
        skip = start - first
        new = runner.project(layer, x, (cos[skip:], sin[skip:]))
        kv[layer, 0, :, start:n], kv[layer, 1, :, start:n] = new.k, new.v
        q = new.q
        if layer in ends:
            q, x, start = q[:, cut - first :], x[cut - first :], cut
        token_layers += n - start
        x = runner.attend(layer, q, kv[layer], following(start, n), x)
    return Computed(runner.logits(x[-1:])[0], token_layers)
