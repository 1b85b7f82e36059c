"""One row of raw facts per request. Every number of a report is derived from these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIERS = ("device", "cpu", "disk", "remote")
"""Tier names, fastest first. A run file has one ``hit_*`` column for each."""
_TIMES = ("scheduled_s", "sent_s", "first_token_s", "finished_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The raw facts of one request.

    Times are seconds on one monotonic clock that starts with the run. ``token_s`` holds the time of
    each output token, the first included. ``hit_tokens`` maps a tier to the prompt tokens it
    served; a tier that the cell does not have is absent. ``error`` is None if the request
    succeeded; if it failed, ``finished_s`` is when it failed and ``first_token_s`` means nothing.

    ``own_cores`` and ``other_cores`` are how many cores the measuring process and all others had
    meanwhile, None where that says nothing.

    The last eleven may be None. Seven are blend's: tokens reused by content (those reused exactly
    are in ``hit_tokens`` only), how many of them were recomputed, the share of the prompt's
    token-layers that was run, seconds spent matching, rotating and selecting; and against a full
    prefill the mean KL divergence in nats, and top-1 agreement, over ``kl_positions`` of the
    answer. ``f1`` and ``exact`` say how right the answer is, see :mod:`reports.quality`.

    Raises ``ValueError`` for an unknown tier or a time that is not finite.
    """

    cell: int = 0
    repeat: int = 0
    request_id: str
    session: str
    workload: str = ""
    prompt_tokens: int
    output_tokens: int
    scheduled_s: float
    sent_s: float
    first_token_s: float
    finished_s: float
    token_s: tuple[float, ...] = ()
    hit_tokens: Mapping[str, int] = field(default_factory=dict)
    expected_hit_tokens: int | None = None
    bytes_loaded: int = 0
    bytes_stored: int = 0
    load_s: float = 0.0
    lookup_s: float = 0.0
    prefill_s: float = 0.0
    output_ids: tuple[int, ...] = ()
    error: str | None = None
    blended_tokens: int | None = None
    selected_tokens: int | None = None
    token_layer_share: float | None = None
    blend_s: float | None = None
    kl: float | None = None
    kl_positions: int | None = None
    agreement: float | None = None
    f1: float | None = None
    exact: float | None = None
    own_cores: float | None = None
    other_cores: float | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.hit_tokens) - set(TIERS))
        if unknown:
            raise ValueError(
                f"request {self.request_id}: hit_tokens names the tier {unknown[0]!r}; "
                f"the tiers are {', '.join(TIERS)}"
            )
        for name in _TIMES:
            if name == "first_token_s" and self.error is not None:
                continue
            if not math.isfinite(getattr(self, name)):
                raise ValueError(
                    f"request {self.request_id}: {name} is {getattr(self, name)}; "
                    "a sample needs finite times"
                )

    @property
    def completed(self) -> bool:
        """Returns whether the request succeeded."""
        return self.error is None

    @property
    def hits(self) -> int:
        """Returns the prompt tokens that any tier served."""
        return sum(self.hit_tokens.values())

    @property
    def ttft_s(self) -> float:
        """Returns the seconds from the scheduled arrival to the first token."""
        return self.first_token_s - self.scheduled_s

    def later(self, seconds: float) -> Sample:
        """Returns the same sample on a clock that began ``seconds`` earlier."""
        if not seconds:
            return self
        times = {name: getattr(self, name) + seconds for name in _TIMES}
        return replace(self, token_s=tuple(at + seconds for at in self.token_s), **times)

    def to_row(self) -> dict[str, Any]:
        """Returns a flat dict: ``hit_tokens`` becomes ``hit_*`` values by tier, None if absent."""
        row: dict[str, Any] = {}
        for name in FIELDS:
            if name == "hit_tokens":
                row.update({f"hit_{tier}": self.hit_tokens.get(tier) for tier in TIERS})
            else:
                row[name] = getattr(self, name)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Sample:
        """Makes a sample from what ``to_row`` returns; keys it does not know are ignored.

        Raises ``KeyError`` for a missing key and ``ValueError`` for a value that no sample has.
        """
        values = {name: row[name] for name in FIELDS if name not in ("hit_tokens", *BLEND_FIELDS)}
        values |= {name: row.get(name) for name in BLEND_FIELDS}  # older runs lack them
        values["token_s"] = tuple(values["token_s"])
        values["output_ids"] = tuple(values["output_ids"])
        hits = {tier: row[f"hit_{tier}"] for tier in TIERS}
        present = {tier: tokens for tier, tokens in hits.items() if tokens is not None}
        return cls(hit_tokens=present, **values)


FIELDS = tuple(f.name for f in fields(Sample))
BLEND_FIELDS = FIELDS[FIELDS.index("blended_tokens") :]
_AT = FIELDS.index("hit_tokens")
COLUMNS = (*FIELDS[:_AT], *(f"hit_{tier}" for tier in TIERS), *FIELDS[_AT + 1 :])
"""The columns of a run file, in its order."""


def columns_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """Returns the columns of :func:`frame` as lists and arrays: what is read once for a round of
    ``check`` needs no table."""
    rows = [sample.to_row() for sample in samples]
    table = {name: [row[name] for row in rows] for name in COLUMNS}
    columns: dict[str, Any] = {**table}
    for name in (*_OPTIONAL, *_TIMES):
        columns[name] = np.array(table[name], dtype=np.float64)
    for name in ("lookup", "load", "prefill"):
        columns[name] = np.array(columns.pop(f"{name}_s"), dtype=np.float64)
    columns["hits"] = np.nansum([columns[f"hit_{tier}"] for tier in TIERS], axis=0)
    columns["ttft"] = columns["first_token_s"] - columns["scheduled_s"]
    columns["ttft_from_send"] = columns["first_token_s"] - columns["sent_s"]
    columns["client_queue"] = columns["sent_s"] - columns["scheduled_s"]
    columns["e2e"] = columns["finished_s"] - columns["scheduled_s"]
    further = np.array(table["output_tokens"], dtype=np.float64) - 1
    further[further <= 0] = np.nan
    columns["tpot"] = (columns["e2e"] - columns["ttft"]) / further
    return columns


def frame(samples: Sequence[Sample]) -> Any:
    """Returns a pandas DataFrame of one row per sample: the columns of a run file, and what follows
    from them, in seconds: ``ttft`` and ``e2e`` from the scheduled arrival, ``ttft_from_send``,
    ``client_queue`` between the two, ``tpot`` per further output token (NaN without one); ``hits``
    are the tokens that any tier served. What is None in a sample is NaN."""
    import pandas

    return pandas.DataFrame(columns_of(samples))


_OPTIONAL = (*(f"hit_{tier}" for tier in TIERS), "expected_hit_tokens", *BLEND_FIELDS)


def done(rows: Any) -> Any:
    """Returns the rows of requests that succeeded."""
    return rows[rows.error.isna()]


def succeeded(rows: Any) -> NDArray[np.bool_]:
    """Returns which requests of :func:`frame` or :func:`columns_of` succeeded."""
    return np.array([error is None or error != error for error in rows["error"]], dtype=bool)


def times(rows: Any) -> dict[str, NDArray[np.float64]]:
    """Returns the values of single requests that succeeded, in seconds, by name; TTFT only of those
    that were answered, and all gaps between output tokens pooled as ``itl``. ``rows`` are those of
    :func:`frame` or :func:`columns_of`."""
    good = succeeded(rows)
    answered = good & (np.asarray(rows["output_tokens"]) > 0)
    gaps = [
        np.diff(token_s) for token_s, here in zip(rows["token_s"], answered, strict=True) if here
    ]

    def of(name: str, which: NDArray[np.bool_]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.asarray(rows[name], dtype=np.float64)[which]
        return values

    tpot = of("tpot", good)
    return {
        "ttft": of("ttft", answered),
        "ttft_from_send": of("ttft_from_send", answered),
        "itl": np.concatenate([*gaps, np.empty(0)]),
        "tpot": tpot[~np.isnan(tpot)],
        **{name: of(name, good) for name in ("e2e", "lookup", "load", "prefill", "client_queue")},
    }
