"""Defines what scheduler side and worker side send each other, through vLLM's own channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from cache_core.layout import Group
from cache_core.plan import Hit, Plan

BlockIds = NDArray[np.int32]
Grown = tuple[str, Sequence[Sequence[int]], int, bool]
"""A request that was given blocks: its id, the blocks of each group of layers, its computed tokens,
and whether these are all the blocks that it has, from token 0 on."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Facts of a step that vLLM's scheduler knows alone. ``tables`` returns the blocks that a
    request has right now, of each group of layers; None for one that has no part in the step.
    ``states`` are the recurrent states that the step leaves behind, of each request: the group, the
    block, and the tokens after which the state is that. The step copies to the blocks
    ``copied``."""

    tables: Callable[[str], Sequence[Sequence[int]] | None]
    states: Mapping[str, Sequence[tuple[int, int, int]]] = field(default_factory=dict)
    copied: Sequence[int] = ()


NO_OFFER = Offer(lambda _: None)


@dataclass(frozen=True, slots=True)
class BlendPiece:
    """Chunks of a segment, the first at token ``first``: tokens ``start`` .. ``stop`` are wanted,
    with K turned by ``shift`` positions."""

    hit: Hit
    first: int
    start: int
    stop: int
    shift: int


@dataclass(frozen=True, slots=True)
class BlendSpec:
    """The blend of a load: pieces, and then tokens to compute on top of them: ids and positions,
    ``[n]``."""

    pieces: tuple[BlendPiece, ...]
    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """A load of a pinned hit for one request: tokens ``start`` .. ``end`` of it are wanted; its
    first chunk begins at token ``first``. ``blocks`` are vLLM's blocks of the request from token 0
    on, ``[n]``; where groups of layers have blocks of their own, a row for each chunk that was
    wanted, ``[n, 1 + m]``: its group, and its blocks, -1 to leave one out. The load comes after the
    saves ``after``, which still read some of them."""

    id: int
    request: str
    epoch: int
    hit: Hit
    first: int
    start: int
    end: int
    blocks: BlockIds
    in_step: bool
    blend: BlendSpec | None = None
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SaveSpec:
    """A save: a plan to carry out after the step's forward pass. Move ``index`` counts the
    request's chunks. ``offset`` is where the first of them begins, in tokens from the first of
    ``blocks`` on: less than 0 where only blocks of later chunks are given. ``blocks`` are as in
    :class:`LoadSpec`; of rows, ``index`` counts those. ``staged`` is the number of the
    :class:`FetchSpec` that has read the chunks: then ``blocks`` says which of them, ``[n]``."""

    id: int
    request: str
    epoch: int
    plan: Plan
    blocks: BlockIds
    offset: int = 0
    staged: int = -1


@dataclass(frozen=True, slots=True)
class FetchSpec:
    """A read of a pinned hit of one tier to the worker's memory, for the save that names it as
    ``staged``. It is reported like a load."""

    id: int
    hit: Hit


@dataclass(frozen=True, slots=True)
class EncodeSpec:
    """An order to compute ``tokens`` ``[n]`` alone, from position 0 on, in the save's blocks, and
    to save them; and to see how far the segment's chunks ``rows``, all of ``length`` tokens, are
    from what the request computed in its blocks ``context`` from token ``start`` on. Their
    ``keys`` name them alone; that ``counts``. If they are ``full``, what is saved is the average
    over all contexts. The contexts of chunks to ``forget`` are not needed any more."""

    save: SaveSpec
    tokens: NDArray[np.int32]
    context: BlockIds
    start: int
    length: int
    rows: tuple[int, ...] = ()
    keys: tuple[bytes, ...] = ()
    counts: float = 0.0
    full: bool = False
    forget: tuple[bytes, ...] = ()


@dataclass(slots=True)
class StepMeta(KVConnectorMetadata):
    """The scheduler side's message to workers, once per step. ``plans`` need nothing of the engine.
    The step comes after the saves ``after``, which still read blocks that it writes to. Keys are of
    weights of that ``generation``. A ``timed`` step is reported whatever there is to say."""

    step: int
    generation: int = 0
    loads: list[LoadSpec] = field(default_factory=list)
    saves: list[SaveSpec] = field(default_factory=list)
    encodes: list[EncodeSpec] = field(default_factory=list)
    fetches: list[FetchSpec] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    after: set[int] = field(default_factory=set)
    timed: bool = False


@dataclass(frozen=True, slots=True)
class LoadDone:
    """The report of a load that has ended: ``chunks`` leading ones were read. ``gone`` are those
    that a tier will never give: (key, tier). ``asked`` says of each tier that was read whether it
    could not give a chunk now."""

    id: int
    chunks: int
    gone: tuple[tuple[bytes, int], ...]
    seconds: float
    asked: tuple[tuple[int, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class SaveDone:
    """The report of a part of a save that has ended: of its plan's writing moves (those with a
    target, by their order there) the ``settled`` ones, and whether they succeeded; ``free``: it
    needs vLLM's blocks no more. Each is reported once, in any order: tiers take their time, each
    its own."""

    id: int
    settled: tuple[tuple[int, bool], ...]
    free: bool = False


@dataclass(frozen=True, slots=True)
class SeenDone:
    """The report of what an encoding's chunks were seen to lack: an array ``[tokens]`` for each of
    its ``rows``."""

    id: int
    lacks: tuple[NDArray[np.float32], ...]


@dataclass(slots=True)
class WorkerReport(KVConnectorWorkerMetadata):
    """A worker's report to the scheduler side. Every rank reports every load, and every part of
    every save, not all in the same step. ``outdated`` is the latest generation whose weights are
    known to be gone."""

    step: int
    outdated: int = -1
    loads: list[LoadDone] = field(default_factory=list)
    saves: list[SaveDone] = field(default_factory=list)
    seen: list[SeenDone] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Returns whether the report says nothing but that the step is over."""
        return not (self.loads or self.saves or self.seen) and self.outdated < 0

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerReport:
        """Returns the reports of two ranks as one."""
        outdated = max(self.outdated, other.outdated)
        loads, saves, seen = (
            getattr(self, name) + getattr(other, name) for name in ("loads", "saves", "seen")
        )
        return WorkerReport(self.step, outdated, loads, saves, seen)


@dataclass(frozen=True, slots=True)
class TiersOpened(KVConnectorHandshakeMetadata):
    """One rank's open tiers: the bytes of a chunk in them, capacities in chunks (None: unbounded),
    and what each holds from before. ``watched`` says whether the rank would notice a change of its
    weights. ``groups`` are those of a model whose layers keep different things; ``tables`` are
    vLLM's numbers for them."""

    chunk_bytes: int
    capacities: Sequence[int | None]
    recovered: Sequence[Sequence[bytes]]
    watched: bool = False
    groups: tuple[Group, ...] = ()
    tables: tuple[int, ...] = ()


def grown(output: Any) -> Iterator[Grown]:
    """Yields the requests that a ``SchedulerOutput`` gives blocks."""
    for new in output.scheduled_new_reqs:
        yield new.req_id, new.block_ids, new.num_computed_tokens, True
    cached = output.scheduled_cached_reqs
    for row, blocks in enumerate(cached.new_block_ids):
        if blocks is not None:
            name = cached.req_ids[row]
            anew = name in cached.resumed_req_ids
            yield name, blocks, cached.num_computed_tokens[row], anew


def offered(output: Any) -> Offer:
    """Returns what a ``SchedulerOutput`` says of blocks beside :func:`grown`."""
    state = output.kv_connector_block_state
    copied = tuple(copy.dst_block_id for copy in output.kv_cache_block_copies or ())
    if state is None:
        return replace(NO_OFFER, copied=copied)
    return Offer(state.get_block_ids, state.boundary_state_offloads, copied)
