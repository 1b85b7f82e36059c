"""What an engine is to the bench: it opens sessions, and a session serves requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from cache_core.blend.passport import Subject
from cache_core.ledger import Placement
from cache_core.outcomes import TierCounters
from reports.quality import Quality
from reports.sample import Sample
from workloads.request import Request

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
    passport: Path | None = None
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


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive: ``concurrency`` clients that each wait for their answer (closed loop),
    or None: at the requests' own arrival times (open loop)."""

    concurrency: int | None = 1


class Session(Protocol):
    """One cell: an engine with a cache of its own, or with none."""

    def ready(self) -> None:
        """Brings up what serves, outside of all numbers. Raises ``UserError`` if it can't."""

    def serve(self, requests: Sequence[Request], load: Load) -> Iterator[Sample]:
        """Serves the requests in order and yields one sample each, also for a failed one. Cell,
        repeat and workload of the samples are the caller's to fill in."""

    def settle(self) -> None:
        """Waits until everything that was stored is written."""

    def held_chunks(self) -> int:
        """Chunks in the cache: 0 is a cold start."""

    def capacities(self) -> Mapping[str, int | None]:
        """Chunks that each tier has room for; None is unbounded. Empty: hits can't be foretold."""

    def clear(self) -> None:
        """Empties the cache and its counters."""

    def counters(self) -> Mapping[str, TierCounters]:
        """Per tier, since the last clear."""

    def chunk_bytes(self) -> int:
        """Bytes of one chunk."""

    def troubles(self) -> Mapping[str, Mapping[str, int]]:
        """Per tier, what went wrong beneath it (damage, timeouts, ...), since it was opened."""

    def close(self) -> None:
        """Frees the cache; the engine stays."""


@runtime_checkable
class Judging(Protocol):
    """A session whose answers are not those of a full prefill."""

    def judge(self, request: Request) -> Quality:
        """How far the answer to the request that it served last is from a full prefill's."""


@runtime_checkable
class Blending(Protocol):
    """An engine that can reuse KV at any place, if the model stands it."""

    def blend_subject(self) -> Subject:
        """What the model's passport for blend must be of."""


@runtime_checkable
class Sharing(Protocol):
    """A session that reuses what another model has computed."""

    def share(self, requests: Sequence[Request]) -> None:
        """That model serves these prompts first, outside of all numbers."""


class Engine(Protocol):
    """A model that is ready to serve. Token ids are of its own tokenizer."""

    name: str
    model: str
    max_context: int
    bos: int | None
    encode: Callable[[str], Sequence[int]]
    frame: tuple[str, str]
    """What the model's chat template puts before and behind a user's turn; empty without one."""
    interleaves: bool
    """Whether its sessions can take turns request by request, all of them ready."""

    def token_bytes(self) -> int:
        """Bytes of KV per token."""

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        """Chunks per tier by size alone. Raises ``UserError`` for one that holds no chunk."""

    def open(self, spec: CacheSpec, max_tokens: int) -> Session:
        """A session whose requests have up to ``max_tokens`` tokens, prompt and output. Raises
        ``UserError`` if the model's context is shorter, ``MemoryError`` if the tiers don't fit."""

    def session_bytes(self) -> int:
        """Memory that each session takes beside its tiers."""

    def warm_up(self, tokens: int) -> None:
        """Runs a prompt outside of all numbers: of that length, the longest to come, where what
        is made ready depends on it, else of one that is soon done."""

    def facts(self) -> dict[str, object]:
        """What describes the engine in a run file."""

    def now(self) -> float:
        """Seconds on the engine's own clock (a virtual one in the simulator)."""

    def close(self) -> None:
        """Frees the model."""
