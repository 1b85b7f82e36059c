"""The embedded engine: a Hugging Face causal LM in this process, with our cache under it."""

from __future__ import annotations

from cache_core.blend.certificate import Subject
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.capacity import chunks_per_tier
from lmcache_cli.engines.transformers.blend.session import BlendSession
from lmcache_cli.engines.transformers.cross_model.forward import CrossModelBase
from lmcache_cli.engines.transformers.cross_model.session import CrossModelSession
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from lmcache_cli.engines.transformers.models import blend_subject
from lmcache_cli.engines.transformers.open_cache import open_cache
from lmcache_cli.engines.transformers.session import TransformersSession
from lmcache_cli.errors import UserError


class TransformersEngine(ModelRunner):
    """An engine (:class:`lmcache_cli.engines.engine.Engine`) in this process that serves one
    request at a time."""

    interleaves = True

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        return chunks_per_tier(spec, self.layout(spec.chunk_tokens))

    def blend_subject(self) -> Subject:
        """Returns the subject of a certificate for blend of this model. Reads all weights of a
        folder."""
        loaded = self.loaded
        return blend_subject(loaded.id, loaded.source, loaded.config, loaded.dtype)

    def session_bytes(self) -> int:
        return 0

    def open(self, spec: CacheSpec, max_tokens: int) -> TransformersSession:
        if max_tokens > self.max_context:
            raise UserError(
                f"a request of {max_tokens} tokens (prompt and output) exceeds {self.model}'s"
                f" context of {self.max_context}; lower --context-tokens or use another --model"
            )
        self.reserve(max_tokens)
        if spec.shared is not None:
            return CrossModelSession(self, self.shared_base(spec.shared.base), spec, max_tokens)
        if spec.blend is not None:
            self.layers()  # refuses a model before memory is taken for its tiers
        cache = None
        if spec.reuse:
            cache = open_cache(spec, self.namespace(spec), self.loaded.device)
        if spec.blend is not None and cache is not None:
            try:
                return BlendSession(self, spec, cache)
            except BaseException:
                cache.close()
                raise
        return TransformersSession(self, spec, cache)

    def shared_base(self, name: str) -> CrossModelBase:
        """Returns the model ``name``, whose KV this one may be served. Loads it once."""
        self.layers()  # refuses a model before a second one is loaded
        return self.once(f"base model {name}", lambda: CrossModelBase(self, name))
