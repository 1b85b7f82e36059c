"""What a cold cache of content chunks must hit: the real matcher and Ledger, without bytes."""

from __future__ import annotations

from collections.abc import Mapping

from cache_core.admission import SecondTouch
from cache_core.cache import TieredCache
from cache_core.keys import Namespace
from cache_core.layout import KVLayout
from cache_core.policy import POLICIES
from cache_core.tiers import NullTier
from lmcache_cli.engines.blend.prompt import Prompts
from lmcache_cli.engines.engine import CacheSpec
from workloads.request import Request


class ContentOracle:
    """Predicts each request's hit tokens from a cold start, as
    :class:`lmcache_cli.bench.oracle.HitOracle` does for prefixes."""

    def __init__(
        self, spec: CacheSpec, capacity: Mapping[str, int | None], bos: int | None
    ) -> None:
        layout = KVLayout(1, 1, 1, "int8", spec.chunk_tokens)
        self._prompts = Prompts(Namespace(layout, "oracle"), spec.encoding, bos)
        self._full = spec.full_prefill
        self._cache = TieredCache(
            layout,
            [NullTier(name, chunks) for name, chunks in capacity.items()],
            policy=POLICIES[spec.policy],
            placement=spec.placement,
            admission={"disk": SecondTouch()} if spec.admission == "second-touch" else None,
            synchronous=True,
        )

    def expect(self, request: Request) -> int:
        """Hit tokens of the next request; remembers it."""
        if self._full:
            return 0
        prompt = self._prompts.of(request)
        pieces = (*prompt.exact, *prompt.pieces)
        hit, rows = self._cache.acquire_any([piece.key for piece in pieces])
        self._cache.release(hit)
        held = [pieces[row] for row in rows]
        there = set(hit.keys)
        self._cache.touch([piece.key for piece in held])
        missing = {p.key: p for p in pieces if p.key not in there}
        if missing:
            self._cache.store(list(missing), None)
            prompt.matcher.stored(prompt.ids, [p for p in missing.values() if p in prompt.pieces])
        if not all(piece.key in there for piece in prompt.exact):
            held = [piece for piece in held if piece not in prompt.exact]
        return sum(piece.stop - piece.start for piece in held)
