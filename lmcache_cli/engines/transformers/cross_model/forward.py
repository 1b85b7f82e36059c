"""The two forwards of reuse between models: the base's, that keeps what a fine-tune may need, and
the fine-tune's, over the base's KV.

After DroidSpeak (Liu et al., NSDI 2026, arXiv:2411.02820, sections 3.2 and 4): a prefix's KV comes
from another model of the same architecture, and only some contiguous groups of layers are computed
again for it. A group that does not begin at layer 0 begins with the base's hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmcache_cli.engines.transformers.blend.runner import LayerRunner, following
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from lmcache_cli.engines.transformers.models import LoadedModel, load_model
from lmcache_cli.errors import CellError

if TYPE_CHECKING:
    from cache_core.keys import Namespace
    from lmcache_cli.engines.cache_spec import CacheSpec


EMBEDDED = "embedded"
"""The embedded model's name on the command line."""


class CrossModelBase:
    """The model whose KV ``engine``'s model is served. Only who holds one can make its keys: the
    namespace of a key has the model and a digest of its weights.

    Raises ``CellError`` for a model of another architecture, and what loading a model raises.
    """

    def __init__(self, engine: ModelRunner, name: str) -> None:
        own = engine.loaded
        if own.device.type != "cpu":
            raise CellError("another model's KV is reused with --device cpu only, so far")
        wanted = None if name == EMBEDDED else name
        self.loaded = load_model(wanted, str(own.device), own.dtype)
        if (self.loaded.id, self.loaded.revision) == (own.id, own.revision):
            raise CellError(
                f"the base {own.id} is the model itself; --reuse prefix reuses its KV exactly"
            )
        refuse_unlike_models(self.loaded, own)
        self.runner = LayerRunner(self.loaded)
        self._engine = engine

    def namespace(self, spec: CacheSpec) -> Namespace:
        """Returns the namespace of the base's chunks: what an engine of that model uses itself."""
        return self._engine.namespace(spec, self.loaded)


def refuse_unlike_models(base: LoadedModel, own: LoadedModel) -> None:
    """Raises ``CellError`` that names what differs, if KV of ``base`` has another meaning or shape
    than ``own``'s."""
    theirs, ours = _architecture(base), _architecture(own)
    for name, value in theirs.items():
        if value != ours[name]:
            shown = f" ({value} and {ours[name]})" if len(f"{value}{ours[name]}") < 120 else ""
            raise CellError(
                f"{base.id} is no base of {own.id}: {name} differ{shown};"
                " share between fine-tunes of one model only"
            )


def _architecture(loaded: LoadedModel) -> dict[str, Any]:
    config = loaded.config
    return {
        "the families": config.model_type,
        "the numbers of layers": config.num_hidden_layers,
        "the attention heads": config.num_attention_heads,
        "the KV heads": loaded.kv_heads,
        "the head dimensions": loaded.head_dim,
        "the hidden widths": config.hidden_size,
        "the RoPE parameters": loaded.rope,
        "the sizes of the vocabulary": config.vocab_size,
        "the tokenizers": loaded.tokenizer_digest,
        "the dtypes": loaded.dtype,
    }


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
