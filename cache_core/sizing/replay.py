"""Runs the Ledger itself over a trace, without bytes: what curves can't tell, and their proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.groups import PromptGroups, slowest_tiers
from cache_core.layout import Group
from cache_core.ledger import Ledger
from cache_core.plan import NOWHERE, PLACEMENTS, Move, Placement
from cache_core.policies import POLICIES, Admission, PolicyMaker, belady
from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import hit_curves


@dataclass(frozen=True)
class LedgerReplay:
    """The result of a replay. ``hits`` int32 ``[requests, tiers]``: chunks of each request's
    leading held run that each tier served (of a sample: its own). ``rate`` is the share of chunks
    that were replayed; ``hit_rate`` is over all prompt tokens, 0 to 1."""

    policy: str
    hits: NDArray[np.int32]
    hit_rate: float
    rate: float = 1.0
    written: tuple[int, ...] = ()
    """The number of chunks that went into each tier; scaled up where sampled."""


def replay_ledger(
    references: AccessTrace,
    capacities: Sequence[int | None],
    policy: str = "lru",
    placement: Placement = "write_on_insertion",
    rate: float = 1.0,
    seed: int = 0,
    admission: Sequence[Admission | None] | None = None,
    on_request: Callable[[int], None] | None = None,
) -> LedgerReplay:
    """Looks up and admits each request in turn, from an empty cache on. ``policy`` is one of
    ``POLICIES``, or ``belady``, which knows the trace's future.

    With ``rate`` < 1 a sample of the chunks runs through tiers of that share of the capacity, and
    the hits are scaled up with SHARDS_adj's correction. ``admission`` is the Ledger's, new and for
    this replay only; ``on_request`` is called with the number of each request before it is served,
    for admissions with a clock. Raises ``ValueError`` naming what is not known.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement {placement!r} is not known; use {' or '.join(PLACEMENTS)}")
    named = references.prefixes()
    sample = named if rate >= 1 else named.sampled(rate, seed)
    bounds = [None if c is None else max(round(c * rate), 1 if c else 0) for c in capacities]
    maker = policy_maker(policy, sample)
    hits, written = _native.replay(
        sample.ids,
        sample.offsets,
        bounds if maker.evicts else [None] * len(bounds),
        maker.name,
        maker.future,
        placement == "write_on_eviction",
        list(admission or [None] * len(bounds)),
        on_request,
    )
    if rate >= 1:
        tokens = _tokens(named, hits.sum(axis=1))
    else:
        found = int(hits.sum()) + len(named.ids) * rate - len(sample.ids)
        tokens = min(max(found / rate, 0.0), len(named.ids)) * named.chunk_tokens
    scaled = tuple(round(count / min(rate, 1.0)) for count in written)
    return LedgerReplay(policy, hits, tokens / max(named.tokens, 1), min(rate, 1.0), scaled)


def one_order(groups: Sequence[Group]) -> bool:
    """Returns whether one order of chunks decides every hit, as curves ask of it: all layers keep
    all that came before."""
    return all(group.keeps == "all" for group in groups)


def replay_groups(
    references: AccessTrace,
    groups: Sequence[Group],
    capacities: Sequence[int | None],
    policy: str = "lru",
    placement: Placement = "write_on_insertion",
    usable: Sequence[int] | NDArray[np.int64] | None = None,
    admission: Sequence[Admission | None] | None = None,
    on_request: Callable[[int], None] | None = None,
    requests: int | None = None,
) -> LedgerReplay:
    """Looks up and admits each request in turn as :class:`cache_core.groups.GroupedCache` does:
    ``capacities`` and ``written`` are in chunks of groups, hits in the prompt's chunks. ``usable``
    are the most chunks of each request that a hit can have; without it, all.

    A sample of chunks says nothing of windows and states, which need certain ones; ``requests``
    replays so many leading requests only. ``belady`` knows what a cache without a bound uses.
    Otherwise as :func:`replay_ledger`.
    """
    named = references.prefixes()
    part = named if requests is None else named.first(requests)
    prompts = part.ledger_keys()
    most = [len(keys) for keys in prompts]
    if usable is not None:
        most = [int(n) for n in usable[: len(part)]]
    used: list[list[bytes]] = []
    if policy == "belady":
        free = Ledger([None], POLICIES["lru"])
        used = [names for *_, names in _replayed(free, prompts, most, groups, references)]
    maker = belady(used) if policy == "belady" else policy_maker(policy, named)
    ledger = Ledger(list(capacities), maker, placement, admission)
    hits = np.zeros((len(prompts), len(capacities)), dtype=np.int32)
    written = [0] * len(capacities)
    for row, (tiers, moves, _) in enumerate(
        _replayed(ledger, prompts, most, groups, references, on_request)
    ):
        for tier in tiers:
            hits[row, tier] += 1
        for move in moves:
            if move.target != NOWHERE:
                written[move.target] += 1
    hit_rate = _tokens(part, hits.sum(axis=1)) / max(part.tokens, 1)
    rate = len(part) / max(len(named), 1)
    scaled = tuple(round(chunks / rate) for chunks in written) if len(part) else tuple(written)
    return LedgerReplay(policy, hits, hit_rate, rate, scaled)


def _replayed(
    ledger: Ledger,
    prompts: Sequence[Sequence[bytes]],
    most: Sequence[int],
    groups: Sequence[Group],
    references: AccessTrace,
    on_request: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[int], tuple[Move, ...], list[bytes]]]:
    """Yields for each request the tier of each chunk of its hit, the moves of its admission and the
    names that it used."""
    known = PromptGroups(groups, references.chunk_tokens)
    for row, keys in enumerate(prompts):
        if on_request is not None:
            on_request(row)
        wanted = keys[: most[row]]
        # Asked for one by one: of hundreds of groups most names need not be asked for.
        chunks, rows = known.reach(wanted, ledger.__contains__)
        tiers = ledger.held(known.names(wanted, rows)).tiers
        points = known.points(len(keys), len(wanted), known.seen(wanted), chunks)
        known.remember(keys)
        names = known.names(keys, known.kept(len(keys), points))
        served = slowest_tiers(chunks, rows, tiers)
        moves = ledger.prepare_store(names).moves
        ledger.complete_store(moves, stored=True)
        yield served, moves, names


def hit_rates(
    references: AccessTrace,
    capacities: Sequence[int],
    policies: Sequence[str] = ("belady",),
    sample_above: int = 1_000_000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Returns the hit rate of one tier at each capacity: ``lru`` from its curve, the other
    ``policies`` by replays, and the ``ceiling``, which keeps everything. Replays of more than
    ``sample_above`` references are sampled down to about as many."""
    curve = hit_curves(references, ["prefix"])["prefix"]
    rate = min(1.0, sample_above / max(len(references.ids), 1))
    rates = {"lru": [curve.hit_rate(c) for c in capacities]}
    for policy in policies:
        if policy != "lru":
            replays = (
                replay_ledger(references, [c], policy, rate=rate, seed=seed) for c in capacities
            )
            rates[policy] = [r.hit_rate for r in replays]
    return rates | {"ceiling": [curve.ceiling] * len(capacities)}


def policy_maker(policy: str, references: AccessTrace) -> PolicyMaker:
    """Returns the maker of a policy's orders by name, Belady's for exactly these requests. Raises
    ``ValueError`` naming the known ones."""
    if policy == "belady":
        future = _native.Future.numbered(references.ids, references.offsets)
        return PolicyMaker("belady", future=future)
    if policy not in POLICIES:
        known = ", ".join([*POLICIES, "belady"])
        raise ValueError(f"policy {policy!r} is not known; use one of {known}")
    return POLICIES[policy]


def _tokens(references: AccessTrace, chunks: NDArray[np.int64]) -> float:
    """Returns the tokens of so many leading chunks of each request."""
    whole = chunks * references.chunk_tokens
    if references.prompt_tokens is not None:
        whole = np.minimum(whole, references.prompt_tokens)
    return float(whole.sum())
