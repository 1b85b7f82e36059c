"""One cell's cache, as engines are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache_core.ledger import Placement

FOREIGN_MODES = ("server", "vllm", "offload", "lmcache")
"""Reuse by a cache that is not ours: we measure it, and can't foretell its hits."""


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """One cell's cache. ``mode`` is its reuse mode. ``tiers`` maps tier name to bytes, fastest
    first; empty means none of ours.

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
    ratio: float = 0.15
    """Of mode blend, as the rest: the share of reused tokens that are recomputed."""
    selection: str = "hkvd"
    check_layer: int = 1
    narrow_layers: int = 1
    encoding: str = "auto"
    certificate: Path | None = None
    """Of the model, for an engine whose processes check it themselves; None: unverified."""
    latency_s: float = 0.0
    """What each read from and write to a tier takes in addition."""
    shared_from: str = ""
    """Of mode shared, as the next: the base model's id or folder, or ``embedded``."""
    recompute_layers: str = "none"
    codec: str = "none"
    """How all tiers but the device tier keep chunks."""

    @property
    def reuse(self) -> bool:
        """Whether anything is kept between requests."""
        return bool(self.tiers) or self.mode in FOREIGN_MODES

    @property
    def full_prefill(self) -> bool:
        """Whether blend recomputes all: nothing that could be loaded would be used."""
        return self.selection == "full" or (self.ratio >= 1 and self.selection != "none")

    @property
    def ours(self) -> bool:
        """Whether it is our cache that keeps it."""
        return self.reuse and self.mode not in FOREIGN_MODES

    @property
    def bounded(self) -> bool:
        """Whether the sizes of the tiers count: `unbounded` simulates tiers without a limit."""
        return self.policy != "unbounded"
