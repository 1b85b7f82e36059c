"""Reads or makes what is tuned for: a trace, or the requests that ``lmcache bench`` would make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import gcd

import numpy as np

from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from lmcache_cli.bench.cells import Scenario
from lmcache_cli.bench.plan import make_plan
from lmcache_cli.bench.requests import make_requests
from lmcache_cli.engines.engine import Load
from lmcache_cli.errors import UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.trace.tools import TraceSource
from lmcache_cli.tune.options import TuneOptions
from workloads import Request
from workloads.tokens import Encode
from workloads.traces import TraceArrays, TraceError, load_arrays


@dataclass(frozen=True, slots=True)
class RequestSource:
    """The requests that are tuned for, as arrays; as tokens too where they were made here.
    ``chunks`` are the chunk lengths to try, ``load`` how the requests come."""

    arrays: TraceArrays
    chunks: list[int]
    load: Load = field(default_factory=lambda: Load(None))
    requests: tuple[Request, ...] = ()
    scenario: Scenario | None = None
    warnings: list[str] = field(default_factory=list)


def trace_source(options: TuneOptions) -> RequestSource:
    """Reads the requests of a trace as they are. Raises ``UserError``."""
    try:
        file, unit_s = options.path(), options.time_unit
        trace = TraceSource(file, options.format, None, unit_s, options.tokenizer).open()
        arrays = load_arrays(trace.requests())
    except TraceError as error:
        raise UserError(str(error)) from error
    if not len(arrays):
        raise UserError(f"{options.source}: there is no request in it")
    warnings = list(trace.malformed.examples)
    if trace.malformed.count:
        warnings.append(f"{trace.malformed.count} lines were left out")
    if not arrays.chunk_tokens:
        warnings.append(
            f"{options.source} has lengths only ({trace.format}): what prompts share is unknown, so"
            " every token counts as new; the room of the cards and the load are right, tiers can't"
            " be sized"
        )
        return RequestSource(arrays, [16], warnings=warnings + odd_lengths(arrays))
    warnings += odd_lengths(arrays)
    return RequestSource(arrays, options.chunks(arrays.chunk_tokens), warnings=warnings)


def odd_lengths(arrays: TraceArrays) -> list[str]:
    """Returns what is odd about a trace's lengths and times, one line each."""
    count, found = len(arrays), []
    empty = int((arrays.input_tokens <= 0).sum())
    if empty:
        found.append(f"{empty} of {count} prompts have no token; they count as one")
    silent = int((arrays.output_tokens <= 0).sum())
    if silent:
        found.append(
            f"{silent} of {count} requests have no output length: their answers count as one"
            " token, so decoding costs nothing and the load is understated"
        )
    seconds = float(arrays.arrival_s[-1] - arrays.arrival_s[0])
    if count > 1 and seconds <= 0:
        found.append("all requests arrive at once: the trace has no times, or one for all")
    elif count > 100 and count / seconds > _MOST_RATE:
        found.append(
            f"{count / seconds:,.0f} requests a second: are its times in another unit?"
            " --time-unit SECONDS says which (0.001 for milliseconds)"
        )
    return found


_MOST_RATE = 1000


def made_source(
    options: TuneOptions, bench: BenchOptions, encode: Encode, bos: int | None
) -> RequestSource:
    """Makes the requests that ``lmcache bench`` makes of these options and this tokenizer, token
    for token. Raises ``UserError``."""
    plan = make_plan(bench, options.out)
    warnings: list[str] = []
    [scenario, *others] = plan.scenarios
    if others:
        raise UserError("--context-tokens: tune is for one length at a time")
    requests = make_requests(scenario, plan.corpus, encode, bos, warnings.append)
    chunks = options.chunks_made()
    arrays = request_arrays(requests, reduce(gcd, chunks))
    return RequestSource(arrays, chunks, plan.load, tuple(requests), scenario, warnings)


def request_arrays(requests: Sequence[Request], chunk_tokens: int) -> TraceArrays:
    """Turns requests into a trace: chunks of ``chunk_tokens``, named by their prefix. Requests are
    to ascend in time."""
    # Only what is equal matters here, not the shape of the KV.
    hasher = ChunkHasher(Namespace(KVLayout(1, 1, 1, "int8", chunk_tokens), "trace"))
    names: dict[bytes, int] = {}
    sessions: dict[str, int] = {}
    ids: list[int] = []
    offsets = [0]
    for request in requests:
        ids += [names.setdefault(k, len(names)) for k in hasher.keys(request.token_ids).prefix]
        offsets.append(len(ids))
        sessions.setdefault(request.session, len(sessions))
    return TraceArrays(
        np.array(ids, np.int64),
        np.array(offsets, np.int64),
        np.array([r.arrival_s for r in requests], np.float64),
        np.array([len(r.token_ids) for r in requests], np.int64),
        np.array([r.max_tokens for r in requests], np.int64),
        np.array([sessions[r.session] for r in requests], np.int64),
        tuple(sessions),
        chunk_tokens,
    )
