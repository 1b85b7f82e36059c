"""Derives the numbers of one cell from its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from reports.paired import OutputChanges, Speedup, compare_outputs, pair_rows, ttft_speedup
from reports.quality import AnswerSummary, QualitySummary, answers_of, quality_of
from reports.sample import TIERS, Sample, done, frame, times


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
    def of(cls, values: Sequence[float] | NDArray[np.float64]) -> Spread:
        """Returns the spread of any number of values, also of none."""
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
    """The work that one tier did in a cell: chunks that loads were promised and that it gave,
    bytes, the seconds of the calls that moved them, chunks evicted, chunks that failed, chunks that
    were not written because too much was queued, how often the tier was left out of look-ups for a
    while, and what the tier itself counts of trouble."""

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
    """How a cell of reuse ``blend`` recomputes: the share of reused tokens, by what they are
    chosen, and after what segments were encoded."""

    ratio: float
    selection: str
    encoding: str


class SharedMeta(TypedDict):
    """How a cell of reuse ``shared`` reuses another model's KV: the name of that base, and the
    layers that are computed again."""

    base: str
    recompute_layers: str


class CellMeta(TypedDict):
    """The description of a cell. ``tiers`` maps tier names to bytes; ``busy_s`` is the sum of the
    cell's own wall time over its rounds, for cells that were measured in turns."""

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
    """The codec with which tiers but the device tier kept KV; absent: they kept it as it is."""
    state: NotRequired[str]
    """The state of the cache at the start: ``cold``, ``warm``: after requests that had the same
    parts, ``lasting``: with what earlier runs left in it, or ``base``: the base model has served
    each prompt before."""
    blend: NotRequired[BlendMeta]
    shared: NotRequired[SharedMeta]
    any_position: NotRequired[float]
    """The share of the prompt tokens whose part another prompt had before, wherever it stood."""
    tier_work: NotRequired[Mapping[str, TierWork]]
    busy_s: NotRequired[float]
    command: NotRequired[Sequence[str]]
    """The words of the command that measures the cell's workload with its run's flags."""


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
    """The share of TTFT from the send that matching, rotating and selecting took, all requests
    together."""
    tail_tokens: int | None = None
    """Prompt tokens behind the last full chunk that a hit can end with; None without chunks."""
    prefill_saved_s: float | None = None
    """Seconds of prefill that the same requests took without reuse, less those of prefill and
    loading here; None where the engine does not tell."""
    goodput_per_s: float | None = None
    """Requests per second whose TTFT was at most ``goodput_bound_s``: the median without reuse."""
    goodput_bound_s: float | None = None

    def tier_rate(self, tier: str) -> float | None:
        """Returns the share of prompt tokens that this tier served."""
        return self.hit_tokens[tier] / self.prompt_tokens if self.prompt_tokens else None


def summarise(
    samples: Sequence[Sample], off: Sequence[Sample] | None, meta: CellMeta
) -> CellSummary:
    """Summarises one cell's samples, all repeats together.

    ``off`` are the samples of the same requests served without reuse; None leaves the speed-up and
    the comparison of outputs empty. A cell without samples, or with failed ones only, has None
    where there is nothing to tell.
    """
    rows = frame(samples)
    found = done(rows)
    values = times(rows)
    pairs = pair_rows(frame(off), rows) if off is not None else None
    total = {name: int(found[name].sum()) for name in _SUMMED}
    prompt_tokens, hits = total["prompt_tokens"], total["hits"]
    expected = found.expected_hit_tokens
    all_expect = len(found) > 0 and bool(expected.notna().all())
    load_s = float(found.load.sum())
    layers = found.dropna(subset="token_layer_share")
    own = found[found.output_tokens > 0].dropna(subset="blend_s")
    chunk = meta["chunk_tokens"]
    behind = found.prompt_tokens - (found.prompt_tokens - 1) // (chunk or 1) * (chunk or 1)
    bound = None if off is None else Spread.of(times(frame(off))["ttft"]).p50
    if off is None and meta["reuse"] in BASES:
        bound = Spread.of(values["ttft"]).p50
    speed = _throughput(rows, meta.get("busy_s")).requests_per_s
    layer_tokens, own_ttft = int(layers.prompt_tokens.sum()), float(own.ttft_from_send.sum())
    return CellSummary(
        meta=meta,
        n=len(found),
        failed=len(rows) - len(found),
        **{name: Spread.of(values[name]) for name in SPREADS},
        throughput=_throughput(rows, meta.get("busy_s")),
        prompt_tokens=prompt_tokens,
        output_tokens=total["output_tokens"],
        hit_tokens={tier: int(found[f"hit_{tier}"].sum()) for tier in TIERS},
        # A server that had more than it was asked for counts something else.
        hit_rate=hits / prompt_tokens if prompt_tokens and not overfull(rows) else None,
        recomputed_tokens=prompt_tokens - hits + total["selected_tokens"],
        expected_hit_tokens=int(expected.sum()) if all_expect else None,
        unexpected_hits=int((found.hits != expected).sum()) if all_expect else None,
        bytes_loaded=total["bytes_loaded"],
        bytes_stored=total["bytes_stored"],
        load_bytes_per_s=total["bytes_loaded"] / load_s if load_s > 0 else None,
        speedup=Speedup() if pairs is None else ttft_speedup(pairs),
        # Salts that tell a running server's prompts apart are part of what it answers.
        outputs=OutputChanges()
        if pairs is None or meta["engine"] == "openai"
        else compare_outputs(pairs),
        blended_tokens=total["blended_tokens"],
        selected_tokens=total["selected_tokens"],
        token_layer_share=float((layers.token_layer_share * layers.prompt_tokens).sum())
        / layer_tokens
        if layer_tokens
        else None,
        blend=Spread.of(found.blend_s.dropna()),
        quality=quality_of(found),
        answers=answers_of(found),
        own_share=float(own.blend_s.sum()) / own_ttft if own_ttft > 0 else None,
        tail_tokens=int(behind.sum()) if chunk and meta["tiers"] else None,
        prefill_saved_s=None if pairs is None else _saved(pairs),
        goodput_per_s=_share_within(values["ttft"], bound, speed, len(found)),
        goodput_bound_s=bound,
    )


def _saved(pairs: Any) -> float | None:
    saved = float(pairs.prefill_off.sum() - (pairs.prefill_cell + pairs.load_cell).sum())
    return saved if float(pairs.prefill_off.sum()) > 0 else None


def _share_within(values: Any, bound: float | None, speed: float | None, n: int) -> float | None:
    if bound is None or speed is None or not n:
        return None
    # Equal times that were added up from elsewhere may differ in their last digits.
    return speed * int((values <= bound * (1 + 1e-9)).sum()) / n


def overfull(rows: Any) -> bool:
    """Returns whether a request claims to have hit more tokens than its prompt has."""
    return bool((done(rows).hits > done(rows).prompt_tokens).any())


BASES = ("off", "base")
"""The rows that the others are compared with: without reuse, or of a second server."""
SPREADS = (
    *("ttft", "ttft_from_send", "client_queue", "itl", "tpot", "e2e"),
    *("lookup", "load", "prefill"),
)
_SUMMED = (
    *("prompt_tokens", "output_tokens", "hits", "bytes_loaded", "bytes_stored"),
    *("blended_tokens", "selected_tokens"),
)


def _throughput(rows: Any, busy_s: float | None) -> Throughput:
    if rows.empty:
        return Throughput()
    if busy_s is None:
        busy_s = float(rows.finished_s.max() - rows.scheduled_s.min())
    if busy_s <= 0:
        return Throughput()
    found = done(rows)
    tokens = (int(found[name].sum()) / busy_s for name in ("prompt_tokens", "output_tokens"))
    return Throughput(len(found) / busy_s, *tokens)


@dataclass(frozen=True, slots=True)
class RefusedCell:
    """A cell that was not measured, or not to its end: what it is, and why in one line."""

    meta: CellMeta
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns what the cell is, as in a run file, and ``reason``."""
        return {**self.meta, "reason": self.reason}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> RefusedCell:
        """Makes a refused cell from what ``to_json`` returns."""
        meta: Any = {name: value for name, value in stored.items() if name != "reason"}
        return cls(meta, stored["reason"])


def refused_lines(refused: Sequence[RefusedCell]) -> list[str]:
    """Returns a line per reuse mode and reason, with the number of cells if there are several."""
    found = Counter((cell.meta["reuse"], cell.reason) for cell in refused)
    return [
        f"Not measured: {reuse}{f' ({count} cells)' if count > 1 else ''}: {reason}"
        for (reuse, reason), count in found.items()
    ]
