"""The numbers of one cell, from its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np

from reports.paired import OutputChanges, Speedup, compare_outputs, pair_samples, ttft_speedup
from reports.quality import AnswerSummary, QualitySummary, answers_of, quality_of
from reports.sample import TIERS, Sample


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, percentiles by linear interpolation, and extremes of ``n`` values, in the unit of the
    values. Everything but ``n`` is None if there were none."""

    n: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    min: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of any number of values, also of none."""
        if len(values) == 0:
            return cls()
        array = np.asarray(values, dtype=np.float64)
        p50, p90, p99 = (float(p) for p in np.percentile(array, [50, 90, 99]))
        return cls(
            n=array.size,
            mean=float(array.mean()),
            p50=p50,
            p90=p90,
            p99=p99,
            min=float(array.min()),
            max=float(array.max()),
        )


class TierWork(TypedDict):
    """What one tier did in a cell: chunks that loads were promised and that it gave, bytes, the
    seconds of the calls that moved them, chunks evicted, chunks that failed, chunks that were not
    written because too much was queued, how often the tier was left out of look-ups for a while,
    and what the tier itself counts of trouble."""

    promised_chunks: int
    delivered_chunks: int
    read_bytes: int
    read_s: float
    written_bytes: int
    write_s: float
    evicted_chunks: int
    failed_chunks: int
    dropped_chunks: int
    suspensions: int
    troubles: Mapping[str, int]


class BlendMeta(TypedDict):
    """How a cell of reuse ``blend`` recomputes: the share of reused tokens, which of them, seen at
    which layer, narrowed over how many, and behind what chunks were encoded."""

    ratio: float
    selection: str
    check_layer: int
    narrow_layers: int
    encoding: str


class SharedMeta(TypedDict):
    """How a cell of reuse ``shared`` reuses another model's KV: the name of that base, and the
    layers that are computed again."""

    base: str
    recompute_layers: str


class CellMeta(TypedDict):
    """What a cell is. ``tiers`` maps tier names to bytes; ``busy_s`` is the sum of the cell's own
    wall time over its rounds, for cells that were measured in turns."""

    workload: str
    engine: str
    model: str
    reuse: str
    chunk_tokens: int | None
    tiers: Mapping[str, int]
    context_tokens: NotRequired[int]
    """Length of a document or context, for workloads that are swept over it."""
    policy: NotRequired[str]
    placement: NotRequired[str]
    admission: NotRequired[str]
    codec: NotRequired[str]
    """How tiers but the device tier kept KV; absent: as it is."""
    state: NotRequired[str]
    """``cold``, ``warm``: after requests that had the same parts, ``lasting``: with what earlier
    runs left in it, or ``base``: the base model has served each prompt before."""
    blend: NotRequired[BlendMeta]
    shared: NotRequired[SharedMeta]
    tier_work: NotRequired[Mapping[str, TierWork]]
    busy_s: NotRequired[float]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Completed requests, and their tokens, per second; None if no time passed."""

    requests_per_s: float | None = None
    input_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class CellSummary:
    """One cell in numbers. All but ``failed`` are of the ``n`` requests that completed.

    Spreads are in seconds: ``ttft`` and ``e2e`` from the scheduled arrival, ``ttft_from_send`` from
    the send, ``client_queue`` between the two; ``itl`` pools all gaps between output tokens;
    ``tpot`` is one value per request of two tokens or more. ``expected_hit_tokens`` is None unless
    every request says what it expects; ``unexpected_hits`` counts requests that hit more or less.
    """

    meta: CellMeta
    n: int
    failed: int
    ttft: Spread
    ttft_from_send: Spread
    client_queue: Spread
    itl: Spread
    tpot: Spread
    e2e: Spread
    lookup: Spread
    load: Spread
    prefill: Spread
    throughput: Throughput
    prompt_tokens: int
    output_tokens: int
    hit_tokens: dict[str, int]
    hit_rate: float | None
    recomputed_tokens: int
    expected_hit_tokens: int | None
    unexpected_hits: int | None
    bytes_loaded: int
    bytes_stored: int
    load_bytes_per_s: float | None
    speedup: Speedup
    outputs: OutputChanges
    blended_tokens: int
    selected_tokens: int
    token_layer_share: float | None
    blend: Spread
    quality: QualitySummary
    answers: AnswerSummary
    own_share: float | None
    """Of TTFT from the send: what matching, rotating and selecting took, all requests together."""

    def tier_rate(self, tier: str) -> float | None:
        """The share of prompt tokens that this tier served."""
        return self.hit_tokens[tier] / self.prompt_tokens if self.prompt_tokens else None


def summarise(
    samples: Sequence[Sample], off: Sequence[Sample] | None, meta: CellMeta
) -> CellSummary:
    """The summary of one cell's samples, all repeats together.

    ``off`` are the samples of the same requests served without reuse; None leaves the speed-up and
    the comparison of outputs empty. A cell without samples, or with failed ones only, has None
    where there is nothing to tell.
    """
    done = [s for s in samples if s.completed]
    answered = [s for s in done if s.output_tokens > 0]
    pairs = pair_samples(off, done) if off is not None else []
    hit_tokens = {tier: sum(s.hit_tokens.get(tier, 0) for s in done) for tier in TIERS}
    hits = sum(hit_tokens.values())
    prompt_tokens = sum(s.prompt_tokens for s in done)
    expected = [s.expected_hit_tokens for s in done if s.expected_hit_tokens is not None]
    all_expect = bool(done) and len(expected) == len(done)
    bytes_loaded = sum(s.bytes_loaded for s in done)
    load_s = sum(s.load_s for s in done)
    return CellSummary(
        meta=meta,
        n=len(done),
        failed=len(samples) - len(done),
        ttft=Spread.of([s.ttft_s for s in answered]),
        ttft_from_send=Spread.of([s.first_token_s - s.sent_s for s in answered]),
        client_queue=Spread.of([s.sent_s - s.scheduled_s for s in done]),
        itl=Spread.of([float(gap) for s in answered for gap in np.diff(s.token_s)]),
        tpot=Spread.of(
            [(s.e2e_s - s.ttft_s) / (s.output_tokens - 1) for s in done if s.output_tokens > 1]
        ),
        e2e=Spread.of([s.e2e_s for s in done]),
        lookup=Spread.of([s.lookup_s for s in done]),
        load=Spread.of([s.load_s for s in done]),
        prefill=Spread.of([s.prefill_s for s in done]),
        throughput=_throughput(samples, meta.get("busy_s")),
        prompt_tokens=prompt_tokens,
        output_tokens=sum(s.output_tokens for s in done),
        hit_tokens=hit_tokens,
        hit_rate=hits / prompt_tokens if prompt_tokens else None,
        recomputed_tokens=prompt_tokens - hits + sum(s.selected_tokens or 0 for s in done),
        expected_hit_tokens=sum(expected) if all_expect else None,
        unexpected_hits=sum(s.hits != s.expected_hit_tokens for s in done) if all_expect else None,
        bytes_loaded=bytes_loaded,
        bytes_stored=sum(s.bytes_stored for s in done),
        load_bytes_per_s=bytes_loaded / load_s if load_s > 0 else None,
        speedup=ttft_speedup(pairs),
        outputs=compare_outputs(pairs),
        blended_tokens=sum(s.blended_tokens or 0 for s in done),
        selected_tokens=sum(s.selected_tokens or 0 for s in done),
        token_layer_share=_token_layer_share(done),
        blend=Spread.of([s.blend_s for s in done if s.blend_s is not None]),
        quality=quality_of(done),
        answers=answers_of(done),
        own_share=_own_share(answered),
    )


def _token_layer_share(samples: Sequence[Sample]) -> float | None:
    run = [(s.token_layer_share, s.prompt_tokens) for s in samples]
    known = [(share, tokens) for share, tokens in run if share is not None]
    total = sum(tokens for _, tokens in known)
    return sum(share * tokens for share, tokens in known) / total if total else None


def _own_share(samples: Sequence[Sample]) -> float | None:
    own = [(s.blend_s, s.first_token_s - s.sent_s) for s in samples if s.blend_s is not None]
    total = sum(ttft for _, ttft in own)
    return sum(spent for spent, _ in own) / total if total > 0 else None


def _throughput(samples: Sequence[Sample], busy_s: float | None) -> Throughput:
    if not samples:
        return Throughput()
    if busy_s is None:
        busy_s = max(s.finished_s for s in samples) - min(s.scheduled_s for s in samples)
    if busy_s <= 0:
        return Throughput()
    done = [s for s in samples if s.completed]
    return Throughput(
        requests_per_s=len(done) / busy_s,
        input_tokens_per_s=sum(s.prompt_tokens for s in done) / busy_s,
        output_tokens_per_s=sum(s.output_tokens for s in done) / busy_s,
    )


@dataclass(frozen=True, slots=True)
class RefusedCell:
    """What a cell is, and in one line why it was not measured, or not to its end."""

    meta: CellMeta
    reason: str

    def to_json(self) -> dict[str, Any]:
        """What it is, as in a run file, and ``reason``."""
        return {**self.meta, "reason": self.reason}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> RefusedCell:
        """The reverse."""
        meta: Any = {name: value for name, value in stored.items() if name != "reason"}
        return cls(meta, stored["reason"])


def refused_lines(refused: Sequence[RefusedCell]) -> list[str]:
    """A line per reuse mode and reason, with the number of cells where there are several."""
    found = Counter((cell.meta["reuse"], cell.reason) for cell in refused)
    return [
        f"Not measured: {reuse}{f' ({count} cells)' if count > 1 else ''}: {reason}"
        for (reuse, reason), count in found.items()
    ]
