"""Judges requests under many stacks of tiers: exact hits from one pass or the Ledger itself, times
from runs over the arrivals."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import ceil, inf, isinf

import numpy as np
from numpy.typing import NDArray

from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import HitCurve, Kind, Routing, TierCurves, hit_curves
from cache_core.sizing.prefill_cost import PrefillCost
from cache_core.sizing.replay import LedgerReplay, one_order
from cache_core.tiers.disk.format import chunks_under
from lmcache_cli.tune.candidates import Goal, Prices, StackOutcome, TierConfiguration
from lmcache_cli.tune.cost import RequestCost
from lmcache_cli.tune.holding import Chunking, Fleet, Route, replay_stack, usable
from lmcache_cli.tune.queueing import Arrivals, Seconds, Served, serve_requests
from workloads.traces.arrays import TraceArrays

_DAY_S = 86_400
_LEAST_DURATION_S = 1.0
_KEPT_REPLAYS = 256
_UNNAMED_CHUNK = 16
"""Tokens of a chunk where a trace has lengths only: vLLM's block."""

ChunkCounts = NDArray[np.int32]
TokenCounts = NDArray[np.int64]


class Study:
    """Judges stacks on one list of requests. Chunk lengths are multiples of the trace's own.
    ``rate`` divides arrival times: 2 is twice the load; ``clients`` makes it a closed loop, without
    times. ``goal`` has what the disk may take, for the admission ``bytes-per-day``. ``replicas``
    serve the requests together, today by ``routing``; a tier ``remote`` is all replicas', others
    are each one's. Loads and keeps 16 bytes per reference and chunk length."""

    def __init__(
        self,
        arrays: TraceArrays,
        cost: RequestCost,
        prices: Prices,
        rate: float = 1.0,
        clients: int | None = None,
        goal: Goal | None = None,
        replicas: int = 1,
        routing: Routing = "round-robin",
    ) -> None:
        self.shares_known = arrays.chunk_tokens > 0
        if not self.shares_known:
            arrays = replace(arrays, chunk_tokens=_UNNAMED_CHUNK)
        self.arrays, self.cost, self.prices = arrays, cost, prices
        self.clients, self.goal, self.rate = clients, goal or Goal(), rate
        self.arrivals = arrays.arrival_s / rate
        self.tokens = int(arrays.input_tokens.sum())
        self.replicas, self.routing = replicas, routing
        self.reported: float | None = None
        self.any_position: float | None = None
        self._chunkings: dict[int, Chunking] = {}
        self._replays: dict[tuple[TierConfiguration, float], LedgerReplay] = {}
        self._runs: dict[tuple[object, ...], tuple[dict[str, float], dict[str, int], float]] = {}

    def on(self, cost: RequestCost) -> Study:
        """Returns the same requests on another engine, of as dear a kind of card."""
        cards = self.prices.cards / self.cost.cards * cost.cards
        prices = replace(self.prices, cards=cards)
        clients, goal = self.clients, self.goal
        fleet = self.replicas, self.routing
        other = Study(self.arrays, cost, prices, self.rate, clients, goal, *fleet)
        other._chunkings = self._chunkings  # they are of tokens, whatever a token's bytes are
        return other

    @cached_property
    def duration_s(self) -> float:
        """Returns the seconds from the first arrival to the last; in a closed loop, as long as all
        requests take without a cache."""
        if self.clients is None:
            return max(_LEAST_DURATION_S, float(self.arrivals[-1] - self.arrivals[0]))
        prompt, output = self.arrays.input_tokens, self.arrays.output_tokens
        first = self.cost.prefill.each(prompt, np.zeros_like(prompt)).sum()
        return float(first + self.cost.decode_s * output.sum()) / self.clients

    @cached_property
    def millions_per_hour(self) -> float:
        """Returns the millions of tokens, in and out, that come in an hour."""
        tokens = max(1, self.tokens + int(self.arrays.output_tokens.sum()))
        return tokens * 3600 / self.duration_s / 1e6

    @cached_property
    def offered(self) -> float:
        """Returns the prefill that comes, without any hit, as a multiple of what the cards can
        do."""
        prompt = self.arrays.input_tokens
        seconds = self.cost.prefill.each(prompt, np.zeros_like(prompt)) - self.cost.prefill.a
        return float(seconds.sum()) / self.duration_s / self.replicas

    @cached_property
    def _fleet(self) -> Fleet | None:
        if self.replicas == 1:
            return None
        return Fleet(self.replicas, self.arrays, self.cost, self.times)

    @cached_property
    def device(self) -> int:
        """Returns the bytes of the engine's own prefix cache: its room for KV less what answers
        take while they are written. Prompts that run take theirs as the latest that were used."""
        room = self.cost.device
        if room is None or not room.caching or self.cost.serving == "in_turn":
            return 0
        whole = replace(self.without, tiers=(("device", room.nbytes),))
        return max(0, room.tokens - ceil(self.run(whole).answers)) * room.token_bytes

    @property
    def today(self) -> TierConfiguration:
        """Returns the stack that is there without buying anything."""
        tiers = (("device", self.device),) if self.device else ()
        return replace(self.without, tiers=tiers)

    @property
    def without(self) -> TierConfiguration:
        """Returns the stack that keeps no KV."""
        return TierConfiguration((), self.arrays.chunk_tokens, routing=self.routing)

    @cached_property
    def device_chunk(self) -> int:
        """Returns the tokens of a chunk on the device: the trace's own; where layers keep different
        things twice that or more, until they are few groups, as engines make blocks as large as a
        state."""
        tokens, longest = self.arrays.chunk_tokens, int(self.arrays.input_tokens.max())
        while not self.cost.few_groups(tokens) and tokens < longest:
            tokens *= 2
        return tokens

    def plain(self, stack: TierConfiguration) -> bool:
        """Returns whether curves give the stack's hits exactly; else the Ledger is replayed."""
        return stack.plain and one_order(self.cost.groups(stack.chunk_tokens))

    def most_chunks(self, chunk_tokens: int, tier: str = "cpu") -> int:
        """Returns the most chunks that a tier can use, on the replica that uses most."""
        if not self.plain(TierConfiguration((), chunk_tokens)):
            return self._unbounded(chunk_tokens).written[0]
        if tier != "remote" and self.replicas > 1:
            return self._tiers(self.without, chunk_tokens, 1.0).most
        curve = self.curves(chunk_tokens)["prefix"]
        return (curve.capacity_for(curve.ceiling) or 0) if curve.ceiling > 0 else 0

    def _unbounded(self, chunk_tokens: int) -> LedgerReplay:
        return self.replayed(TierConfiguration((("cpu", 1 << 62),), chunk_tokens))

    def rooms(self, stack: TierConfiguration) -> list[int]:
        """Returns how many chunks each tier can hold, the device of its own length. A disk tier
        keeps some of its bytes for itself; the device holds what each rank needs."""
        size = self.cost.chunk_bytes(stack.chunk_tokens)
        sizes = {"device": self.cost.device_chunk_bytes(self.device_chunk)}
        return [
            chunks_under(nbytes, size) if name == "disk" else nbytes // sizes.get(name, size)
            for name, nbytes in stack.tiers
        ]

    def references(self, chunk_tokens: int) -> AccessTrace:
        """Returns the requests in chunks of ``chunk_tokens``."""
        return self._chunking(chunk_tokens).references

    def curves(self, chunk_tokens: int) -> dict[Kind, HitCurve]:
        """Returns the hit curves by kind; capacities are in chunks."""
        return self._chunking(chunk_tokens).curves

    def ceiling(self, chunk_tokens: int) -> float:
        """Returns the hit rate of a cache without a bound."""
        if not self.plain(TierConfiguration((), chunk_tokens)):
            found = self._unbounded(chunk_tokens)
            return int(found.hits.sum()) * chunk_tokens / max(1, self.tokens)
        return self.curves(chunk_tokens)["prefix"].ceiling

    def hits(self, stack: TierConfiguration) -> TokenCounts:
        """Returns the prompt tokens that each tier serves, ``[requests, tiers]``, in whole chunks,
        one request after another; the last token of a prompt is always computed. They come from
        curves for LRU, else from a replay of the Ledger behind the device's LRU."""
        tokens: TokenCounts = self.held(stack).astype(np.int64) * self.arrays.chunk_tokens
        return tokens

    def held(self, stack: TierConfiguration, load: float = 1.0) -> ChunkCounts:
        """Returns hits in chunks of the trace's own length, int32 ``[requests, tiers]``. The device
        serves the front of a run, in the engine's blocks; the tiers behind it what goes further, as
        an engine asks them for it. Routers that look at queues see those of ``load``."""
        base = self.arrays.chunk_tokens
        own = np.zeros((len(self.arrays), 0), dtype=np.int32)
        bought = replace(stack, tiers=tuple(stack.bought.items()))
        if len(bought.tiers) < len(stack.tiers):
            own = self._own(stack, load)
        behind = np.zeros((len(self.arrays), 0), dtype=np.int32)
        if bought.tiers:
            if self.plain(bought):
                tiers = self._tiers(stack, stack.chunk_tokens, load)
                pool = self._chunking(stack.chunk_tokens).tiers if "remote" in stack.sizes else None
                behind = tiers.hits([self.rooms(bought)], stack.placement, pool)[0]
            else:
                behind = self.replayed(bought).hits.astype(np.int32)
            behind = usable(behind, self.arrays.input_tokens, stack.chunk_tokens)
            behind *= stack.chunk_tokens // base
        left = own.sum(axis=1, dtype=np.int32)
        for tier in range(behind.shape[1]):
            cut = np.minimum(left, behind[:, tier])
            behind[:, tier] -= cut
            left -= cut
        return np.concatenate([own, behind], axis=1)

    def _route(self, stack: TierConfiguration, load: float) -> Route:
        base, rooms = (
            self.arrays.chunk_tokens,
            dict(zip(stack.sizes, self.rooms(stack), strict=True)),
        )
        own = rooms.pop("device", 0) * self.device_chunk // base
        rooms.pop("remote", None)
        of = sum if stack.placement == "write_on_eviction" else max
        behind = of([0, *rooms.values()]) * (stack.chunk_tokens // base)
        return Route.of(stack.routing, load, max(own, behind), len(self.arrays.chunk_ids))

    def _tiers(self, stack: TierConfiguration, chunk_tokens: int, load: float) -> TierCurves:
        """Returns the order of uses of a stack's own tiers, in chunks of ``chunk_tokens``."""
        chunking = self._chunking(chunk_tokens)
        if self._fleet is None:
            return chunking.tiers
        route = self._route(stack, load)
        replica = self._fleet.replica(self.references(self.arrays.chunk_tokens), route)
        return self._fleet.tiers(chunking.references, replica, route)

    def _own(self, stack: TierConfiguration, load: float) -> ChunkCounts:
        """Returns the hits of the device alone, in chunks of the trace's own length,
        ``[requests, 1]``."""
        alone = TierConfiguration(stack.tiers[:1], self.device_chunk)
        if self.plain(alone):
            own = self._tiers(stack, alone.chunk_tokens, load).hits([self.rooms(alone)])[0]
        else:
            own = self.replayed(alone).hits
        times = self.device_chunk // self.arrays.chunk_tokens
        return usable(own, self.arrays.input_tokens, self.device_chunk) * times

    def replayed(self, stack: TierConfiguration, rate: float = 1.0) -> LedgerReplay:
        """Replays the Ledger over the requests, with ``rate`` < 1 over that share of the chunks, or
        of the requests, the first ones, where layers keep different things. ``stack`` is of tiers
        that are bought, or of the device alone. The results are kept."""
        key = (stack, rate)
        if key not in self._replays:
            bytes_per_day = self.goal.disk_writes(stack.sizes.get("disk", 0))
            most = np.maximum(0, self.arrays.input_tokens - 1) // stack.chunk_tokens
            references, rooms = self.references(stack.chunk_tokens), self.rooms(stack)
            found = replay_stack(
                stack, rooms, references, self.cost, self.times, most, bytes_per_day, rate
            )
            self._replays[key] = found
            if len(self._replays) > _KEPT_REPLAYS:
                del self._replays[next(iter(self._replays))]
        return self._replays[key]

    @cached_property
    def times(self) -> Seconds:
        """Returns when each request comes, in seconds; spread evenly in a closed loop."""
        if self.clients is None:
            return self.arrivals
        return np.linspace(0.0, self.duration_s, len(self.arrays))

    def run(
        self, stack: TierConfiguration, load: float = 1.0, prefill: PrefillCost | None = None
    ) -> Served:
        """Runs the requests, ``load`` times as fast as they come, infinitely fast: all are there at
        once."""
        cost = self.cost if prefill is None else replace(self.cost, prefill=prefill)
        base = self.arrays.chunk_tokens
        chunking = self._chunking(base)
        at = np.zeros_like(self.arrivals) if isinf(load) else self.arrivals / load
        chunks, replica = chunking.names, None
        if self._fleet is not None:
            route = self._route(stack, load)
            replica = self._fleet.replica(chunking.references, route)
            chunks = self._fleet.names(chunking, replica, route)
        arrivals = Arrivals(
            at,
            self.arrays.input_tokens,
            self.arrays.output_tokens,
            chunks,
            chunking.references.offsets,
            base,
            replica,
            self.replicas,
            chunking.names if "remote" in stack.sizes else None,
        )
        names = [name for name, _ in stack.tiers]
        times = stack.chunk_tokens // base
        return serve_requests(
            arrivals, self.held(stack, load), names, cost, times=times, clients=self.clients
        )

    def unrun(self, stack: TierConfiguration) -> StackOutcome:
        """Returns what is known of a stack without a run: its price, and what its disk takes."""
        cost = self.prices.per_hour(stack.bought)
        return StackOutcome(stack, {}, 0.0, cost, self.disk_writes(stack))

    def judge(self, stack: TierConfiguration, *runs: str) -> StackOutcome:
        """Returns the hits, times and costs of a stack. ``runs`` are the kinds that are wanted,
        ``arrivals`` (latencies) and ``saturated`` (the load that it can take); both by default."""
        wanted = runs or ("arrivals", "saturated")
        latency: dict[str, float] = {}
        by_tier = [0] * len(stack.tiers)
        capacity = per_million = 0.0
        goodput = None
        if "saturated" in wanted:
            _, by_tier, last = self.summary(stack, inf)
            capacity = self.duration_s / last if last else inf
            if self.prices.cards:
                hourly = self.prices.cards + self.prices.per_hour(stack.bought)
                per_million = hourly / (self.millions_per_hour * capacity)
        if "arrivals" in wanted:
            latency, by_tier, _ = self.summary(stack, 1.0)
            goodput = latency.get("goodput")
        hit = dict(zip((name for name, _ in stack.tiers), by_tier, strict=True))
        return replace(
            self.unrun(stack),
            hit_tokens=hit,
            hit_rate=sum(hit.values()) / max(1, self.tokens),
            latency={name: value for name, value in latency.items() if name != "goodput"},
            capacity=capacity,
            per_million=per_million,
            goodput=goodput,
        )

    def latencies(self, served: Served) -> dict[str, float]:
        """Returns the mean and percentiles of a run: ``ttft.p90`` and the like, in seconds, and the
        ``goodput``, requests a second that keep all bounds of the goal."""
        good = np.ones(len(served.ttft), dtype=bool)
        for name, most in self.goal.slo.items():
            kind = name.partition(".")[0]
            if kind != "itl":
                good &= (served.ttft if kind == "ttft" else served.e2e) <= most
        return served.latencies() | {"goodput": float(good.sum()) / self.duration_s}

    def summary(
        self, stack: TierConfiguration, load: float
    ) -> tuple[dict[str, float], list[int], float]:
        """Returns the :meth:`latencies` of a run at a multiple of the load, hit tokens by tier, and
        the end of the run. Stacks whose tiers serve the same chunks share one."""
        base = self.arrays.chunk_tokens
        key: tuple[object, ...] = (stack, load)
        if self.plain(stack):
            least, effective = 0, []
            for (name, _), room in zip(stack.tiers, self.rooms(stack), strict=True):
                tokens = room * (base if name == "device" else stack.chunk_tokens)
                apart = name != "device" and stack.placement == "write_on_eviction"
                if tokens > least or apart or name == "remote":
                    effective.append((name, room))
                    least = max(least, tokens)
            bought = any(name != "device" for name, _ in effective)
            length = stack.chunk_tokens if bought else base
            placement = stack.placement if len(effective) > 1 else ""
            key = (tuple(effective), placement, length, stack.routing, load)
        if key not in self._runs:
            served = self.run(stack, load)
            starts = np.zeros(1) if isinf(load) or self.clients else self.arrivals / load
            last = float((served.e2e + starts).max()) if self.clients is None else served.busy_s
            latency = {} if isinf(load) else self.latencies(served)
            hits = served.hits.sum(axis=0).tolist()
            by_name = dict(zip((n for n, _ in stack.tiers), hits, strict=True))
            self._runs[key] = (latency, by_name, last)
        latency, by_name, last = self._runs[key]
        return latency, [by_name.get(name, 0) for name, _ in stack.tiers], last

    def disk_writes(self, stack: TierConfiguration, share: float = 1.0) -> float:
        """Returns the bytes written to a disk per day, of replicas a mean: what the disk does not
        hold when it is used is written there. With another policy or admission, what the Ledger
        wrote, or in a ``share`` of the chunks, scaled up."""
        size = stack.sizes.get("disk")
        if size is None:
            return 0.0
        if not self.plain(stack):
            bought = replace(stack, tiers=tuple(stack.bought.items()))
            chunks = self.replayed(bought, share).written[list(stack.bought).index("disk")]
            return chunks * self.cost.chunk_bytes(stack.chunk_tokens) * _DAY_S / self.duration_s
        chunking = self._chunking(stack.chunk_tokens)
        index = [name for name, _ in stack.tiers].index("disk")
        tiers = self._tiers(stack, stack.chunk_tokens, 1.0)
        written = len(chunking.references.ids) - tiers.uses_held(self.rooms(stack)[index])
        each = written * self.cost.chunk_bytes(stack.chunk_tokens) / self.replicas
        return each * _DAY_S / self.duration_s

    def _chunking(self, chunk_tokens: int) -> Chunking:
        if chunk_tokens not in self._chunkings:
            arrays = self.arrays.longer_chunks(chunk_tokens // self.arrays.chunk_tokens)
            references = AccessTrace(
                arrays.chunk_ids, arrays.offsets, chunk_tokens, arrivals=self.arrivals
            )
            curves = hit_curves(references)
            # A rate is of all prompt tokens, those after the last full chunk too.
            curves = {kind: replace(curve, tokens=self.tokens) for kind, curve in curves.items()}
            names = np.unique(arrays.chunk_ids, return_inverse=True)[1].astype(np.int64)
            tiers = TierCurves(references)
            self._chunkings[chunk_tokens] = Chunking(references, tiers, curves, names)
        return self._chunkings[chunk_tokens]
