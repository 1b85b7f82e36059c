"""Predicts what a cold cache must hit: the real Ledger, fed the same requests, with tiers without
bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cache_core.cache import TieredCache
from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.policies import POLICIES, SecondTouch
from cache_core.tiers import NullTier
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.modes.mode import Mode, Oracle, Sweep
from workloads.request import Request


class HitOracle:
    """An oracle (:class:`lmcache_cli.modes.mode.Oracle`) of hits of prefixes."""

    def __init__(self, spec: CacheSpec, capacity: Mapping[str, int | None]) -> None:
        self._size = spec.chunk_tokens
        self._cache = TieredCache(
            # Only sharing matters here, not the shape of the KV.
            KVLayout(1, 1, 1, "int8", spec.chunk_tokens),
            [NullTier(name, chunks) for name, chunks in capacity.items()],
            policy=POLICIES[spec.policy],
            placement=spec.placement,
            admission={"disk": SecondTouch()} if spec.admission == "second-touch" else None,
            synchronous=True,
        )
        self._namespace = Namespace(self._cache.layout, "oracle")
        self._hasher = ChunkHasher(self._namespace)

    def expect(self, request: Request) -> int:
        """Returns the hit tokens of the next request and remembers it."""
        keys = self._hasher.keys(request.token_ids).prefix
        usable = keys[: (len(request.token_ids) - 1) // self._size]
        hit = len(self._cache.lookup(usable))
        self._cache.store(keys, None)
        return hit * self._size

    def share(self, request: Request) -> None:
        """Leaves this cache as it is: another model's chunks are not in it."""


class Prefix(Mode):
    """The mode ``prefix``: our tiers, of which prefixes are served."""

    def specs(self, sweep: Sweep) -> list[CacheSpec]:
        return [
            replace(sweep.spec(chunk, tiers), mode=self.name)
            for tiers in sweep.tiers(self.name)
            for chunk in sweep.chunk_tokens
        ]

    def oracle(
        self, spec: CacheSpec, capacities: Mapping[str, int | None], bos: int | None
    ) -> Oracle | None:
        # A budget of writes depends on the clock: what it admits can't be foretold.
        if not capacities or spec.admission == "bytes-per-day":
            return None
        return self.cold(spec, capacities, bos)

    def cold(
        self, spec: CacheSpec, capacities: Mapping[str, int | None], bos: int | None
    ) -> Oracle:
        """Returns the oracle of a cache that admits by rule, not by the clock."""
        return HitOracle(spec, capacities)


def varied(specs: Iterable[CacheSpec], ways: Sequence[CacheSpec]) -> list[CacheSpec]:
    """Returns each spec with the settings of blend, or of another model's KV, of each of ``ways``;
    and with a folder of its own."""
    return [
        replace(
            spec,
            blend=way.blend,
            shared=way.shared,
            folder=spec.folder and spec.folder.with_name(f"{spec.folder.name}_{spec.mode}-{i}"),
        )
        for spec in specs
        for i, way in enumerate(ways)
    ]
