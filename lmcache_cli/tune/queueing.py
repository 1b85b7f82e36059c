"""TTFT under load: a discrete-event run over requests.

The engine batches continuously, as vLLM does with chunked prefill (Agrawal et al. 2024, section
4): each step computes one token for every request that is decoding and fills the rest of its token
budget with prompts, first come first served. Hits are loaded by one queue per tier, beside the
engine; a prompt's computing begins when its KV is there. An engine that serves in turn (the
embedded one) loads, computes and decodes one request before it looks at the next.

In an open loop requests come when they come; in a closed loop each of ``clients`` sends its next
request when its last is answered.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lmcache_cli.tune.cost import RequestCost

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when it comes, its prompt's and its answer's tokens, and its hits by tier."""

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
    cost: RequestCost,
    chunk_tokens: int,
    *,
    clients: int | None = None,
    budget: int = 8192,
    most: int = 256,
) -> Seconds:
    """Returns the TTFT of each request in seconds, ``[n]``, in order. ``arrivals`` ascend in time;
    with ``clients`` (closed loop) their times are not looked at. A step has at most ``budget``
    tokens and ``most`` requests."""
    if cost.serving == "in_turn":
        return _in_turn(arrivals, cost, chunk_tokens, clients)
    return _Batches(arrivals, cost, chunk_tokens, clients, budget, most).run()


def _in_turn(
    arrivals: Sequence[Arrival], cost: RequestCost, chunk_tokens: int, clients: int | None
) -> Seconds:
    ttft = np.zeros(len(arrivals))
    finished: list[float] = []
    now = 0.0
    for i, one in enumerate(arrivals):
        due = one.at_s
        if clients is not None:
            due = finished[i - clients] if i >= clients else 0.0
        first = max(now, due) + cost.service_s(one.prompt, one.hits, chunk_tokens)
        ttft[i] = first - due
        now = first + cost.decoding_s(one.prompt, max(0, one.output - 1))
        finished.append(now)
    return ttft


@dataclass(slots=True)
class _Batches:
    arrivals: Sequence[Arrival]
    cost: RequestCost
    chunk_tokens: int
    clients: int | None
    budget: int
    most: int
    due: Seconds = field(init=False)
    free: dict[str, float] = field(init=False, default_factory=dict)
    """The time at which each tier has loaded all that was asked of it."""
    waiting: list[tuple[float, int]] = field(init=False, default_factory=list)
    """A heap of the waiting requests: (when its KV is there, its number)."""
    sent: int = field(init=False, default=0)

    def run(self) -> Seconds:
        arrivals, cost = self.arrivals, self.cost
        self.due = np.array([one.at_s for one in arrivals], dtype=np.float64)
        for _ in range(len(arrivals) if self.clients is None else self.clients):
            self._send(None if self.clients is None else 0.0)
        ttft = np.zeros(len(arrivals))
        prefilling: deque[_Active] = deque()
        decoding: list[_Active] = []
        now, waiting, prefill = 0.0, self.waiting, cost.prefill
        while waiting or prefilling or decoding:
            while waiting and waiting[0][0] <= now and len(prefilling) + len(decoding) < self.most:
                _, i = heapq.heappop(waiting)
                cached = min(sum(arrivals[i].hits.values()), arrivals[i].prompt - 1)
                rest = arrivals[i].prompt - cached
                prefilling.append(_Active(i, rest, cached, max(1, arrivals[i].output)))
            if not prefilling and not decoding:
                now = max(now, waiting[0][0])
                continue
            room = max(1, self.budget - len(decoding))
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
            for one in (*decoding, *done):
                one.output -= 1
            for one in done:
                ttft[one.number] = now - self.due[one.number]
            running = [*decoding, *done]
            decoding = [one for one in running if one.output > 0]
            if self.clients is not None:
                for _ in range(len(running) - len(decoding)):
                    self._send(now)
            if not done and not prefilling and decoding:
                now = _skip(decoding, waiting, now, prefill.a + cost.decode_s)
        return ttft

    def _send(self, at: float | None) -> None:
        """Lets the next request come ``at`` (None: at its own time), and queues its load."""
        i = self.sent
        if i >= len(self.arrivals):
            return
        self.sent += 1
        if at is not None:
            self.due[i] = at
        ready = came = float(self.due[i])
        for tier, tokens in self.arrivals[i].hits.items():
            if tokens:
                start = max(came, self.free.get(tier, 0.0))
                self.free[tier] = start + self.cost.load_s(tier, tokens, self.chunk_tokens)
                ready = max(ready, self.free[tier])
        heapq.heappush(self.waiting, (ready, i))


def _skip(
    decoding: list[_Active], waiting: list[tuple[float, int]], now: float, step_s: float
) -> float:
    """Takes the steps until the next arrival or the end of an answer at once, as nothing happens in
    them; returns the time after them."""
    steps = min(one.output for one in decoding) - 1
    if waiting:
        steps = min(steps, int((waiting[0][0] - now) / step_s))
    if steps <= 0:
        return now
    for one in decoding:
        one.output -= steps
    return now + steps * step_s
