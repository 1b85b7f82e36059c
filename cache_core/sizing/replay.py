"""Runs the Ledger itself over a trace, without bytes: what curves can't tell, and their proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.plan import PLACEMENTS, Placement
from cache_core.policies import POLICIES, Admission, PolicyMaker
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
