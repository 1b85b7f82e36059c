"""Reuse of another model's KV: its settings, and the hits to expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cache_core.keys import ChunkHasher, Namespace
from lmcache_cli.engines.cache_spec import CacheSpec, SharedSettings
from lmcache_cli.engines.transformers.cross_model.layers import layer_groups
from lmcache_cli.errors import UserError
from lmcache_cli.modes.mode import Oracle, Sweep
from lmcache_cli.modes.prefix import HitOracle, Prefix, varied
from lmcache_cli.sizes import parse_list
from workloads.request import Request

_MANY_LAYERS = 10_000


class Shared(Prefix):
    """The mode ``shared``: our tiers with another model's KV in them."""

    uses = ("shared_from", "recompute_layers")

    def specs(self, sweep: Sweep) -> list[CacheSpec]:
        base, layers = sweep.options.shared_from, sweep.options.recompute_layers
        if base is None:  # another model's KV is taken only where both are asked for
            raise UserError("--reuse shared and --shared-from MODEL go together")
        ways = [
            CacheSpec(1, shared=SharedSettings(base, chosen))
            for chosen in parse_list(layers, "--recompute-layers", layer_set)
        ]
        return varied(super().specs(sweep), ways)

    def facts(self, spec: CacheSpec) -> Mapping[str, Any]:
        return {"state": "base", "shared": asdict(spec.shared) if spec.shared else {}}

    def cold(
        self, spec: CacheSpec, capacities: Mapping[str, int | None], bos: int | None
    ) -> Oracle:
        return CrossModelOracle(spec, capacities)


def layer_set(text: str, flag: str) -> str:
    """Returns the text, if it is spelt as a set of layers; whether a model has them all is seen
    later."""
    try:
        layer_groups(text, _MANY_LAYERS)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
    return text


class CrossModelOracle(HitOracle):
    """An oracle of hits in a cache where another model's chunks stand under keys of their own."""

    def __init__(self, spec: CacheSpec, capacity: Mapping[str, int | None]) -> None:
        super().__init__(spec, capacity)
        self._theirs = ChunkHasher(Namespace(self._cache.layout, "oracle's base"))

    def share(self, request: Request) -> None:
        self._cache.store(self._theirs.keys(request.token_ids).prefix, None)

    def expect(self, request: Request) -> int:
        """Returns the hit tokens of the next request, its own chunks first; remembers it, if
        nothing of the other model's is in it."""
        most = (len(request.token_ids) - 1) // self._size
        keys = self._hasher.keys(request.token_ids).prefix
        own = len(self._cache.lookup(keys[:most]))
        theirs = self._theirs.keys(request.token_ids).prefix[own:most]
        more = len(self._cache.lookup(theirs))
        self._cache.touch([*keys[:own], *theirs[:more]])
        if not more:
            self._cache.store(keys, None)
        return (own + more) * self._size
