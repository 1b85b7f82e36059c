"""TTFT under load: a discrete-event run over a trace's arrivals.

The engine batches continuously, as vLLM does with chunked prefill (Agrawal et al. 2024, section
4): each step computes one token for every request that is decoding and fills the rest of its token
budget with prompts, first come first served. Hits are loaded by one queue per tier, beside the
engine; a prompt's computing begins when its KV is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmcache_cli.tune.cost import Cost

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when, its prompt's and its answer's tokens, and its hits by tier."""

    at_s: float
    prompt: int
    output: int
    hits: Mapping[str, int]


@dataclass(slots=True)
class _Active:
    number: int
    rest: int  # prompt tokens still to compute
    cached: int  # tokens that are there
    output: int


def first_token_times(
    arrivals: Sequence[Arrival],
    cost: Cost,
    chunk_tokens: int,
    *,
    budget: int = 8192,
    most: int = 256,
) -> Seconds:
    """TTFT of each request in seconds, ``[n]``, in order. ``arrivals`` ascend in time. A step has
    at most ``budget`` tokens and ``most`` requests."""
    ready = _loaded(arrivals, cost, chunk_tokens)
    order = deque(sorted(range(len(arrivals)), key=lambda i: (ready[i], i)))
    ttft = np.zeros(len(arrivals))
    prefilling: deque[_Active] = deque()
    decoding: list[_Active] = []
    now = 0.0
    prefill = cost.prefill
    while order or prefilling or decoding:
        while order and ready[order[0]] <= now and len(prefilling) + len(decoding) < most:
            i = order.popleft()
            cached = min(sum(arrivals[i].hits.values()), arrivals[i].prompt - 1)
            rest = arrivals[i].prompt - cached
            prefilling.append(_Active(i, rest, cached, max(1, arrivals[i].output)))
        if not prefilling and not decoding:
            now = max(now, float(ready[order[0]]))
            continue
        room = max(1, budget - len(decoding))
        seconds = prefill.a + (cost.decode_s if decoding else 0.0)
        done: list[_Active] = []
        while prefilling and room > 0:
            head = prefilling[0]
            count = min(head.rest, room)
            seconds += prefill.saved(count, head.cached)
            head.rest -= count
            head.cached += count
            room -= count
            if head.rest:
                break
            done.append(prefilling.popleft())
        now += seconds
        for one in decoding:
            one.output -= 1
        decoding = [one for one in decoding if one.output > 0]
        for one in done:
            ttft[one.number] = now - arrivals[one.number].at_s
            one.output -= 1
        decoding += [one for one in done if one.output > 0]
        if not done and not prefilling and decoding:
            now = _skip(decoding, order, ready, now, prefill.a + cost.decode_s)
    return ttft


def _skip(
    decoding: list[_Active], order: deque[int], ready: Seconds, now: float, step_s: float
) -> float:
    """Nothing happens until the next arrival or the end of an answer: many steps at once."""
    steps = min(one.output for one in decoding) - 1
    if order:
        steps = min(steps, int((float(ready[order[0]]) - now) / step_s))
    if steps <= 0:
        return now
    for one in decoding:
        one.output -= steps
    return now + steps * step_s


def _loaded(arrivals: Sequence[Arrival], cost: Cost, chunk_tokens: int) -> Seconds:
    """When each request's KV is there: tiers serve one load at a time."""
    free: dict[str, float] = {}
    ready = np.array([one.at_s for one in arrivals], dtype=np.float64)
    for i, one in enumerate(arrivals):
        for tier, tokens in one.hits.items():
            if tokens:
                start = max(one.at_s, free.get(tier, 0.0))
                free[tier] = start + cost.load_s(tier, tokens, chunk_tokens)
                ready[i] = max(ready[i], free[tier])
    return ready
