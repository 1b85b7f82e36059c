"""TTFT under load: a discrete-event run over requests.

The engine batches continuously, as vLLM does with chunked prefill (Agrawal et al. 2024, section
4): each step computes one token for every request that is decoding and fills the rest of its token
budget with prompts, first come first served. A request is looked up when its turn comes: it hits
what the engine computed before, not what another request of the same moment is still to compute.
Hits are loaded by one queue per tier, beside the engine; a prompt's computing begins when its KV is
there. An engine that serves in turn (the embedded one) loads, computes and decodes one request
before it looks at the next.

In an open loop requests come when they come; in a closed loop each of ``clients`` sends its next
request when its last is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from lmcache_cli.tune.cost import RequestCost

Seconds = NDArray[np.float64]
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
BATCH_TOKENS = 8192
"""The tokens of a step: vLLM's ``max_num_batched_tokens`` on large cards."""
BATCH_REQUESTS = 256
"""The most requests that run at a time: ``max_num_seqs``."""


@dataclass(frozen=True)
class Arrivals:
    """Requests as they come: ``at_s`` float64 ``[n]`` ascends; ``prompt`` and ``output`` are
    tokens, int64 ``[n]``. ``chunks`` int64 ``[references]`` names the full chunks of their prompts
    by numbers below their count, request i those of ``offsets[i]`` to before ``offsets[i + 1]``.
    Engine ``replica[i]`` of ``replicas`` serves request i; engines have names of their own for
    chunks. Where the last tier is all engines', ``pooled`` are its names for them."""

    at_s: Seconds
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    chunks: NDArray[np.int64]
    offsets: NDArray[np.int64]
    chunk_tokens: int
    replica: NDArray[np.int64] | None = None
    replicas: int = 1
    pooled: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self.at_s)


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a run. ``ttft`` and ``e2e`` are seconds from each request's coming, ``[n]``;
    ``hits`` its tokens by tier, ``[n, tiers]``, without those that another was still computing.
    ``gaps`` are the times between two tokens of an answer, to half a per cent, and ``counts`` how
    often each was. The engine, of several the busiest, computed for ``busy_s`` seconds. When a
    request was looked up, the others had ``answers`` tokens of answers on the device (the mean);
    ``most_running`` requests ran at once."""

    ttft: Seconds
    e2e: Seconds
    hits: NDArray[np.int64]
    gaps: Seconds
    counts: NDArray[np.int64]
    busy_s: float
    answers: float = 0.0
    most_running: int = 1

    def latencies(self) -> dict[str, float]:
        """Returns the mean and percentiles: ``ttft.p90`` and the like, in seconds."""
        given = {
            "ttft": percentiles(self.ttft, PERCENTILES),
            "itl": percentiles(self.gaps, PERCENTILES, self.counts),
            "e2e": percentiles(self.e2e, PERCENTILES),
        }
        return {f"{kind}.{n}": v for kind, of in given.items() for n, v in of.items()}


def serve_requests(
    arrivals: Arrivals,
    hits: NDArray[np.int32],
    tiers: Sequence[str],
    cost: RequestCost,
    *,
    times: int = 1,
    clients: int | None = None,
    budget: int = BATCH_TOKENS,
    most: int = BATCH_REQUESTS,
) -> Served:
    """Runs all requests. ``hits`` ``[n, tiers]`` are chunks of each request's leading held run that
    each of ``tiers`` serves, if no two requests are under way at a time; a first tier ``device`` is
    the engine's own and takes no loading. Tiers load chunks ``times`` as long. With ``clients``
    (closed loop) times of arrival are not looked at. A step has at most ``budget`` tokens and
    ``most`` requests, which together have no more KV than the device has room for."""
    if cost.serving == "in_turn":
        return _in_turn(arrivals, hits, tiers, cost, times, clients)
    loads = [(0.0, 0.0, 0.0)] * len(tiers)
    for i, name in enumerate(tiers):
        if name != "device":
            tier = cost.tiers[name]
            per_token = cost.token_bytes / tier.bytes_per_s
            loads[i] = tier.call_s, tier.fixed_s / times, per_token
    prefill = cost.prefill
    found = _native.serve(
        arrivals.at_s,
        arrivals.prompt,
        arrivals.output,
        np.ascontiguousarray(hits, np.int32),
        arrivals.chunks,
        arrivals.offsets,
        np.array(loads, np.float64).reshape(len(tiers), 3),
        arrivals.chunk_tokens,
        np.array([prefill.a, prefill.b, prefill.c, cost.decode_s, cost.decode_token_s]),
        cost.overlap,
        bool(tiers) and tiers[0] == "device",
        budget,
        most,
        cost.device.tokens if cost.device is not None else -1,
        clients or 0,
        cost.stages,
        arrivals.replicas,
        arrivals.replica,
        arrivals.pooled,
    )
    return Served(
        found["ttft"],
        found["e2e"],
        found["hits"].astype(np.int64) * arrivals.chunk_tokens,
        found["gaps"],
        found["counts"],
        found["busy_s"],
        found["answers"],
        found["most_running"],
    )


def _in_turn(
    arrivals: Arrivals,
    hits: NDArray[np.int32],
    tiers: Sequence[str],
    cost: RequestCost,
    times: int,
    clients: int | None,
) -> Served:
    count = len(arrivals)
    ttft, e2e = np.zeros(count), np.zeros(count)
    finished: list[float] = []
    now = busy = 0.0
    tokens = hits.astype(np.int64) * arrivals.chunk_tokens
    gaps: list[float] = []
    for i in range(count):
        due = float(arrivals.at_s[i])
        if clients is not None:
            due = finished[i - clients] if i >= clients else 0.0
        prompt, more = int(arrivals.prompt[i]), max(0, int(arrivals.output[i]) - 1)
        served = dict(zip(tiers, map(int, tokens[i]), strict=True))
        began = max(now, due)
        first = began + cost.service_s(prompt, served, times * arrivals.chunk_tokens)
        decoding = cost.decoding_s(prompt, more)
        now = first + decoding
        busy += now - began
        ttft[i], e2e[i] = first - due, now - due
        gaps.append(decoding / more if more else 0.0)
        finished.append(now)
    counts = np.maximum(0, arrivals.output - 1)
    return Served(ttft, e2e, tokens, np.array(gaps), counts, busy)


def percentiles(
    values: Seconds, at: dict[str, float], counts: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Returns the ``mean`` and the percentiles ``at`` (name to 0 .. 100) of values, interpolated
    linearly; with ``counts``, of each value so many times, the next higher one. Empty for none."""
    if counts is None:
        if not len(values):
            return {}
        found = np.percentile(values, list(at.values())).tolist()
        return {"mean": float(values.mean()), **dict(zip(at, found, strict=True))}
    if not counts.sum():
        return {}
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(counts[order])
    places = [int(np.searchsorted(sums, q / 100 * sums[-1])) for q in at.values()]
    found = [float(values[order[min(place, len(order) - 1)]]) for place in places]
    mean = float((values * counts).sum() / counts.sum())
    return {"mean": mean, **dict(zip(at, found, strict=True))}
