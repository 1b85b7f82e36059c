"""The embedded engine: a Hugging Face causal LM in this process, with our cache under it."""

from __future__ import annotations

from collections.abc import Mapping

from cache_core.blend.certificate import Subject
from cache_core.cache import TieredCache
from cache_core.groups import GroupedCache, GroupedLoad, kept_rows
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.capacity import chunks_per_tier
from lmcache_cli.engines.transformers.blend.session import BlendSession
from lmcache_cli.engines.transformers.cross_model.forward import CrossModelBase
from lmcache_cli.engines.transformers.cross_model.session import CrossModelSession
from lmcache_cli.engines.transformers.kv_buffer import KvBuffer
from lmcache_cli.engines.transformers.layer_groups import GroupedBuffer, States
from lmcache_cli.engines.transformers.model_runner import ModelRunner
from lmcache_cli.engines.transformers.models import blend_subject, configured_bos
from lmcache_cli.engines.transformers.open_cache import open_cache
from lmcache_cli.engines.transformers.session import WAIT_S, Prefilled, TransformersSession
from lmcache_cli.errors import UserError
from workloads import Request


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

    def blend_bos(self) -> int | None:
        return configured_bos(self.bos, self.loaded.text_config)

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
                return BlendSession(self, spec, cache, self.blend_bos())
            except BaseException:
                cache.close()
                raise
        return (GroupedSession if self.loaded.grouped else TransformersSession)(self, spec, cache)

    def shared_base(self, name: str) -> CrossModelBase:
        """Returns the model ``name``, whose KV this one may be served. Loads it once."""
        self.layers()  # refuses a model before a second one is loaded
        return self.once(f"base model {name}", lambda: CrossModelBase(self, name))


class GroupedSession(TransformersSession):
    """A session over a model whose layers keep different things."""

    def __init__(self, engine: ModelRunner, spec: CacheSpec, cache: TieredCache | None) -> None:
        super().__init__(engine, spec, cache)
        self._groups = engine.groups(spec.chunk_tokens)
        self._grouped = GroupedCache(cache, self._groups) if cache is not None else None
        self._points: list[int] = []
        self._kept: dict[int, States] = {}

    def capacities(self) -> Mapping[str, int | None]:
        return {}  # what a hit needs is no run of chunks: it is not foretold

    def clear(self) -> None:
        super().clear()
        if self._grouped is not None:
            self._grouped.clear()

    def _prefill(self, request: Request, buffer: KvBuffer) -> Prefilled:
        engine, now = self.engine, self.engine.now
        assert isinstance(buffer, GroupedBuffer)
        ids, size = request.token_ids, self.spec.chunk_tokens
        began = now()
        keys: tuple[bytes, ...] = ()
        loaded = GroupedLoad(0, {}, 0, 0.0)
        self._points, self._kept = [], {}
        if self._grouped is not None:
            keys = tuple(self._hasher.keys(ids).prefix)
            reusable = (len(ids) - 1) // size
            groups = self._groups
            loaded = self._grouped.load(
                keys[:reusable], lambda rows: buffer.rows(rows, groups, size), WAIT_S
            )
            self._points = self._grouped.points(len(keys), reusable, loaded)
        ready = now()
        past = loaded.chunks * size
        buffer.seek(past)
        if past:
            buffer.resume()
        # States are there only between two forwards: one ends wherever they are kept.
        for point in self._points if buffer.recurrent else ():
            if point * size > past:
                logits = engine.forward(buffer, ids[past : point * size], past)
                past = point * size
            self._kept[point] = buffer.states()
        if past < len(ids):
            logits = engine.forward(buffer, ids[past:], past)
        stored = 0
        if self._grouped is not None:
            rows = kept_rows(self._groups, len(keys), self._points, size)
            stored = self._grouped.prompts.nbytes(set(rows) - set(loaded.rows))
        hits = {name: count * size for name, count in loaded.by_tier.items()}
        lookup = ready - began - loaded.seconds
        return Prefilled(logits, loaded, hits, lookup, ready, stored, keys)

    def _after(self, request: Request, buffer: KvBuffer, served: Prefilled) -> None:
        assert isinstance(buffer, GroupedBuffer)
        if self._grouped is not None and served.keys:
            size, kept, groups = self.spec.chunk_tokens, self._kept, self._groups
            buffer.pending = self._grouped.store(
                served.keys,
                self._points,
                lambda rows: buffer.rows(rows, groups, size, kept),
            )
