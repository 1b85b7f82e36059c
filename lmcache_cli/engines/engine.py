"""The interface of engines to the bench: an engine opens sessions, and a session serves
requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cache_core.blend.certificate import Subject
from cache_core.plan import TierCounters
from lmcache_cli.engines.cache_spec import CacheSpec
from reports.quality import Quality
from reports.sample import Sample
from workloads.request import Request


@dataclass(frozen=True, slots=True)
class Load:
    """The way in which requests arrive: from ``concurrency`` clients that each wait for their
    answer (closed loop), or, if that is None, at the requests' own arrival times (open loop)."""

    concurrency: int | None = 1


class Session(Protocol):
    """A session of one cell: an engine with a cache of its own, or with none."""

    def ready(self) -> None:
        """Brings up what serves, outside of all numbers. Raises ``UserError`` if it can't."""

    def serve(self, requests: Sequence[Request], load: Load) -> Iterator[Sample]:
        """Serves the requests in order and yields one sample each, also for a failed one. Cell,
        repeat and workload of the samples are the caller's to fill in."""

    def settle(self) -> None:
        """Waits until everything that was stored is written."""

    def held_chunks(self) -> int:
        """Returns the number of chunks in the cache: 0 is a cold start."""

    def capacities(self) -> Mapping[str, int | None]:
        """Returns the capacity of each tier in chunks; None is unbounded. If it is empty, hits
        can't be foretold."""

    def clear(self) -> None:
        """Empties the cache and its counters."""

    def counters(self) -> Mapping[str, TierCounters]:
        """Returns the counters of each tier since the last clear."""

    def chunk_bytes(self) -> int:
        """Returns the bytes of one chunk."""

    def troubles(self) -> Mapping[str, Mapping[str, int]]:
        """Returns by tier what went wrong beneath it (damage, timeouts, ...) since the session was
        opened."""

    def close(self) -> None:
        """Frees the cache; the engine stays."""


@runtime_checkable
class Judging(Protocol):
    """A session whose answers are not those of a full prefill."""

    def judge(self, request: Request) -> Quality:
        """Measures how far the answer to the request that the session served last is from a full
        prefill's."""


@runtime_checkable
class BlendEngine(Protocol):
    """An engine that can reuse KV at any position, if the model stands it."""

    def blend_subject(self) -> Subject:
        """Returns the subject that the model's certificate for blend must have."""

    def blend_bos(self) -> int | None:
        """Returns the token behind which passages are encoded where there is no system prompt: the
        tokenizer's BOS, or the configuration's where the tokenizer puts none."""


@runtime_checkable
class Sharing(Protocol):
    """A session that reuses what another model has computed."""

    def share(self, requests: Sequence[Request]) -> None:
        """Lets the model whose KV is reused serve these prompts first, outside of all numbers."""


class Engine(Protocol):
    """A model that is ready to serve. Token ids are of its own tokenizer."""

    name: str
    model: str
    max_context: int
    bos: int | None
    encode: Callable[[str], Sequence[int]]
    frame: tuple[str, str]
    """The texts that the model's chat template puts before and after a user's turn; empty without
    one."""
    interleaves: bool
    """Whether the engine's sessions can take turns request by request, all of them ready."""

    def token_bytes(self) -> int:
        """Returns the bytes of KV per token."""

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        """Returns the chunks per tier by size alone. Raises ``UserError`` for a tier that holds no
        chunk."""

    def open(self, spec: CacheSpec, max_tokens: int) -> Session:
        """Opens a session whose requests have up to ``max_tokens`` tokens, prompt and output.
        Raises ``UserError`` if the model's context is shorter, ``MemoryError`` if the tiers don't
        fit."""

    def session_bytes(self) -> int:
        """Returns the bytes of memory that each session takes beside its tiers."""

    def warm_up(self, tokens: int) -> None:
        """Runs a prompt outside of all numbers: one of ``tokens`` tokens, the longest to come,
        where what is made ready depends on the length, else one that is soon done."""

    def facts(self) -> dict[str, object]:
        """Returns what describes the engine in a run file."""

    def now(self) -> float:
        """Returns the seconds on the engine's own clock (a virtual one in the simulator)."""

    def close(self) -> None:
        """Frees the model."""


def first_come_first_served(
    requests: Sequence[Request],
    load: Load,
    serve: Callable[[Request, float, float], Sample],
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[Sample]:
    """Yields ``serve(request, scheduled_s, sent_s)`` for each request, in order.

    Closed loop: each of ``concurrency`` clients sends its next request when its last is answered,
    so request i is due when request i - concurrency finished. Open loop: due at its arrival time.
    The server is this very process, so a due request is sent at once; it may still have to queue.
    """
    start = now()
    finished: list[float] = []
    for i, request in enumerate(requests):
        if load.concurrency is None:
            due = start + request.arrival_s
            if due > now():
                sleep(due - now())
        else:
            due = start if i < load.concurrency else finished[i - load.concurrency]
        sample = serve(request, due, due)
        finished.append(sample.finished_s)
        yield sample


def sample_of(
    request: Request, due_s: float, sent_s: float, token_s: Sequence[float], **facts: Any
) -> Sample:
    """Returns the sample of a request that this process has answered: its prompt, and a token at
    each of ``token_s``, at least one. ``facts`` are further fields of a sample."""
    return Sample(
        request_id=request.id,
        session=request.session,
        prompt_tokens=len(request.token_ids),
        output_tokens=len(token_s),
        scheduled_s=due_s,
        sent_s=sent_s,
        first_token_s=token_s[0],
        finished_s=token_s[-1],
        token_s=tuple(token_s),
        **facts,
    )
