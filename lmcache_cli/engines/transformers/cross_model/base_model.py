"""A base model beside the engine's own, and the check that its KV may be served to that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmcache_cli.engines.transformers.blend.runner import LayerRunner
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
