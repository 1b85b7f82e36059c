"""The settings of one cell's cache, as engines get them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache_core.blend.certificate import DEFAULT_RATIO
from cache_core.ledger import Placement


@dataclass(frozen=True, slots=True)
class BlendSettings:
    """The settings of blend: ``ratio`` is the share of reused tokens that is recomputed,
    ``encoding`` names the tokens after which segments are encoded. ``certificate`` is the model's,
    for an engine whose processes check it themselves; None: unverified."""

    ratio: float = DEFAULT_RATIO
    encoding: str = "auto"
    certificate: Path | None = None

    @property
    def full_prefill(self) -> bool:
        """Returns whether blend recomputes all: nothing that could be loaded would be used."""
        return self.ratio >= 1


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """The settings of reuse between models: ``base`` is the model whose KV is reused, an id, a
    folder or ``embedded``; ``recompute_layers`` are the layers that are computed again."""

    base: str
    recompute_layers: str = "none"


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """The settings of one cell's cache. ``mode`` is the name of its reuse mode, ``foreign`` marks a
    cache that is not ours: we measure it, and can't foretell its hits. ``tiers`` maps tier name to
    bytes, fastest first; empty means none of ours. ``blend`` and ``shared`` are set in these modes
    only.

    ``folder`` is the disk tier's, ``remote`` the remote tier's URL or plugin (its size is 0: as
    much as the server takes). ``admission`` is for the disk tier, whose writes ``bytes_per_day``
    may bound. ``lasting``: the cache keeps what earlier runs of the same ``salt`` left in it.
    """

    chunk_tokens: int
    tiers: Mapping[str, int] = field(default_factory=dict)
    policy: str = "lru"
    placement: Placement = "write_on_insertion"
    salt: str = ""
    folder: Path | None = None
    remote: str = ""
    admission: str = "none"
    bytes_per_day: int = 0
    lasting: bool = False
    mode: str = "prefix"
    latency_s: float = 0.0
    """Seconds that each read from and write to a tier takes in addition."""
    codec: str = "none"
    """The name of the codec in which all tiers but the device tier keep chunks."""
    foreign: bool = False
    blend: BlendSettings | None = None
    shared: SharedSettings | None = None

    @property
    def reuse(self) -> bool:
        """Returns whether the cache keeps anything between requests."""
        return bool(self.tiers) or self.foreign

    @property
    def ours(self) -> bool:
        """Returns whether the cache that keeps KV between requests is ours."""
        return self.reuse and not self.foreign

    @property
    def bounded(self) -> bool:
        """Returns whether the sizes of the tiers count: ``unbounded`` simulates tiers without a
        limit."""
        return self.policy != "unbounded"
